"""The small records beside manifests: intents and annotations (spec §8.3, §8.6)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptfmt.errors import FormatError, IntegrityError
from ckptfmt.format import _msgpack, layout
from ckptfmt.format.values import decode_plain, encode_plain

SAVE: Final = "save"
RETENTION: Final = "retention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A lease: what a save or a retention in flight is about to do."""

    kind: str  # SAVE or RETENTION
    save: str  # save id: names the intent and the data files it covers
    number: int = 0  # SAVE: the manifest name aimed at
    revision: int = 0
    base: tuple[int, int] | None = None  # SAVE: (number, revision) whose files may be reused
    reuse: tuple[str, ...] = ()  # SAVE: data keys that must not be deleted meanwhile
    numbers: tuple[int, ...] = ()  # RETENTION: checkpoints about to be deleted
    ttl_seconds: int = 86400  # a hint for people; nothing is decided by it
    time: int = 0  # microseconds since the Unix epoch by the writer's clock; informational
    host: str = ""
    pid: int = 0

    def encode(self) -> bytes:
        """Return the stored form."""
        return _seal(
            {
                "kind": self.kind,
                "save": self.save,
                "number": self.number,
                "revision": self.revision,
                "base": None if self.base is None else list(self.base),
                "reuse": list(self.reuse),
                "numbers": list(self.numbers),
                "ttl_seconds": self.ttl_seconds,
                "time": self.time,
                "host": self.host,
                "pid": self.pid,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Intent:
        """Parse the stored form.

        Raises:
            FormatError: a field is missing, of the wrong type or out of range.
        """
        match _unseal(data):
            case {
                "kind": "save" | "retention" as kind,
                "save": str(save),
                "number": int(number),
                "revision": int(revision),
                "base": None | [int(), int()] as base,
                "reuse": list(reuse),
                "numbers": list(numbers),
                **rest,
            } if (
                layout.is_save_id(save)
                and 0 <= number <= layout.MAX_NUMBER
                and (0 <= revision <= layout.MAX_REVISION)
            ):
                pass
            case found:
                raise FormatError("not an intent", at="$", found=str(found)[:200])
        if not all(type(n) is int for n in numbers):
            raise FormatError("expected a list of numbers", at="$.numbers", found=numbers[:9])
        return cls(
            kind=kind,
            save=save,
            number=number,
            revision=revision,
            base=None if base is None else (base[0], base[1]),
            reuse=tuple(layout.check_data_key(key, "$.reuse") for key in reuse),
            numbers=tuple(numbers),
            ttl_seconds=_int(rest, "ttl_seconds"),
            time=_int(rest, "time"),
            host=str(rest.get("host", "")),
            pid=_int(rest, "pid"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Fields attached to a checkpoint after its commit."""

    number: int
    id: str  # of the checkpoint
    n: int  # order among the annotations of this checkpoint
    time: int  # microseconds since the Unix epoch; informational
    fields: Mapping[str, Any]  # plain values; None removes

    def encode(self) -> bytes:
        """Return the stored form."""
        return _seal(
            {
                "number": self.number,
                "id": self.id,
                "n": self.n,
                "time": self.time,
                "fields": {k: encode_plain(v) for k, v in self.fields.items()},
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Annotation:
        """Parse the stored form.

        Raises:
            FormatError: a field is missing, of the wrong type or out of range.
        """
        match _unseal(data):
            case {
                "number": int(number),
                "id": str(id_),
                "n": int(n),
                "time": int(time),
                "fields": dict(fields),
            } if layout.is_save_id(id_) and n >= 0 and all(type(k) is str for k in fields):
                return cls(
                    number=number,
                    id=id_,
                    n=n,
                    time=time,
                    fields={k: decode_plain(v, at=f"$.fields.{k}") for k, v in fields.items()},
                )
            case found:
                raise FormatError("not an annotation", at="$", found=str(found)[:200])


def merge(annotations: Iterable[Annotation]) -> dict[str, Any]:
    """Return the fields in force: in order of n the last one wins, None removes."""
    fields: dict[str, Any] = {}
    for annotation in sorted(annotations, key=lambda a: a.n):
        fields.update(annotation.fields)
    return {name: value for name, value in fields.items() if value is not None}


def _seal(payload: Mapping[str, Any]) -> bytes:
    """Return the stored form: SHA-256 of the payload, then the payload (spec §8.3)."""
    data = _msgpack.pack(payload)
    return _msgpack.pack([hashlib.sha256(data).digest(), data])


def _unseal(data: bytes) -> Any:
    """Return the payload of a sealed record.

    Raises:
        IntegrityError: the seal does not hold.
    """
    try:
        sealed = _msgpack.unpack(data, "$")
    except FormatError as error:
        raise IntegrityError("record is damaged: its seal is unreadable") from error
    match sealed:
        case [bytes(digest), bytes(payload)] if hashlib.sha256(payload).digest() == digest:
            return _msgpack.unpack(payload, "$")
    raise IntegrityError("record is damaged: its seal does not hold")


def _int(fields: Mapping[Any, Any], name: str) -> int:
    found = fields.get(name, 0)
    if type(found) is not int:
        raise FormatError("expected an integer", at=f"$.{name}", found=found)
    return found
