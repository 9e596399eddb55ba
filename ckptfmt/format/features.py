"""Versions and features: what this release may touch (spec §9).

Unknown feature ⇒ refuse. Unknown field ⇒ ignore and keep. Nothing is ever invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.format import codec

FORMAT_VERSION: Final = 1
MARKER_VERSION: Final = "1-dev"  # becomes 1 when the draft is frozen
READABLE_MARKERS: Final = ("1-dev", 1)

Operation: TypeAlias = Literal["read", "write", "delete"]

KNOWN: Final[dict[Operation, frozenset[str]]] = {
    "read": frozenset(codec.OPTIONAL),
    "write": frozenset(),
    "delete": frozenset(),
}


_STR: Final = frozenset({str})


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a program must know before it may read, extend or delete a checkpoint."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    unknown: Mapping[str, object] = field(default_factory=dict)  # other operations: kept

    def encode(self) -> dict[str, object]:
        """Return the msgpack form."""
        known = {"read": [*self.read], "write": [*self.write], "delete": [*self.delete]}
        return {**self.unknown, **known}

    @classmethod
    def decode(cls, value: object, at: str) -> Features:
        """Parse the msgpack form.

        Raises:
            FormatError: not a map of lists of str.
        """
        if not isinstance(value, dict):
            raise FormatError("expected a map of features", at=at, found=value)
        rows: dict[str, tuple[str, ...]] = {}
        for operation in KNOWN:
            names = value.get(operation)
            if not isinstance(names, list) or not _STR.issuperset(map(type, names)):
                raise FormatError("expected a list of str", at=f"{at}.{operation}", found=names)
            rows[operation] = tuple(names)
        others = {name: names for name, names in value.items() if name not in KNOWN}
        return cls(**rows, unknown=others)

    def require(self, operation: Operation, **where: object) -> None:
        """Refuse `operation` when it needs a feature this release does not know.

        Raises:
            UnsupportedError: it does; the message names the features.
        """
        unknown = sorted(set(getattr(self, operation)) - KNOWN[operation])
        if unknown:
            raise UnsupportedError(
                f"checkpoint needs features {unknown} to {operation}; this ckptfmt knows"
                f" {sorted(KNOWN[operation])}: upgrade ckptfmt",
                **where,
            )
