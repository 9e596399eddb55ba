"""The small records beside manifests: intents and annotations (spec §8.3, §8.6).

The rows of one rank are sealed in the same way; see `parts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError
from ckptfmt.format import _msgpack, layout
from ckptfmt.format.values import decode_plain, encode_plain

SAVE: Final = "save"
COPY: Final = "copy"  # a checkpoint of another store, under its own number and names
RETENTION: Final = "retention"
MAX_RECORD_NBYTES: Final = 48 * 2**20  # of one file (spec §11.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A lease: what a save, a copy or a retention in flight is about to do."""

    kind: str  # SAVE, COPY or RETENTION
    save: str  # save id: names the intent and the data files it covers
    number: int = 0  # SAVE, COPY: the manifest name aimed at
    revision: int = 0
    base: tuple[int, int] | None = None  # SAVE: (number, revision) whose files may be reused
    reuse: tuple[str, ...] = ()  # SAVE, COPY: data keys that must not be deleted meanwhile
    numbers: tuple[int, ...] = ()  # RETENTION: checkpoints about to be deleted
    ttl_seconds: int = 86400  # a hint for people; nothing is decided by it
    time: int = 0  # microseconds since the Unix epoch by the writer's clock; informational
    host: str = ""
    pid: int = 0

    def encode(self) -> bytes:
        """Return the stored form."""
        return seal(
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
        fields = unseal(data)
        kind = fields.get("kind")
        if not isinstance(kind, str):
            raise FormatError("expected the kind of a lease", at="$.kind", found=kind)
        if kind not in (SAVE, COPY, RETENTION):
            raise UnsupportedError("lease of an unknown kind: upgrade ckptfmt", found=kind)
        base = fields.get("base", ())
        if base is not None:
            base = _uints(base, "base")
            if len(base) != 2:
                raise FormatError(
                    "expected null or [number, revision]", at="$.base", found=base
                )
        reuse = fields.get("reuse")
        if not isinstance(reuse, list):
            raise FormatError("expected a list of data keys", at="$.reuse", found=reuse)
        return cls(
            kind=kind,
            save=save_id(fields, "save"),
            number=uint(fields, "number", layout.MAX_NUMBER),
            revision=uint(fields, "revision", layout.MAX_REVISION),
            base=base,
            reuse=tuple(layout.check_data_key(key, "$.reuse") for key in reuse),
            numbers=_uints(fields.get("numbers"), "numbers"),
            ttl_seconds=uint(fields, "ttl_seconds"),
            time=uint(fields, "time"),
            host=str(fields.get("host", "")),
            pid=uint({"pid": fields.get("pid", 0)}, "pid"),
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
        return seal(
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
        record = unseal(data)
        fields = record.get("fields")
        if not isinstance(fields, dict):
            raise FormatError("expected a map", at="$.fields", found=fields)
        return cls(
            number=uint(record, "number", layout.MAX_NUMBER),
            id=save_id(record, "id"),
            n=uint(record, "n"),
            time=uint(record, "time"),
            fields={k: _field(k, v) for k, v in fields.items()},
        )


def _field(name: str, node: object) -> Any:
    """Return the value of a field; those with a meaning have a type (spec §8.6.3)."""
    value = decode_plain(node, at=f"$.fields.{name}")
    number = name.startswith("metrics.") and type(value) not in (int, float)
    flag = name.startswith("tags.") and value is not True
    if value is not None and (number or flag):
        raise FormatError("field of the wrong type", at=f"$.fields.{name}", found=value)
    return value


def merge(annotations: Iterable[Annotation]) -> dict[str, Any]:
    """Return the fields in force: in order of n the last one wins.

    A field that was removed stays as None: it also hides what was saved under its name.
    """
    fields: dict[str, Any] = {}
    for annotation in sorted(annotations, key=lambda a: a.n):
        fields.update(annotation.fields)
    return fields


def overlaid(
    prefix: str, saved: Mapping[str, Any], attached: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was saved, overlaid with what was attached later; None removes."""
    late = {n.removeprefix(prefix): v for n, v in attached.items() if n.startswith(prefix)}
    kept = {name: value for name, value in saved.items() if late.get(name, 0) is not None}
    return {**kept, **{name: value for name, value in late.items() if value is not None}}


def seal(payload: Mapping[str, Any]) -> bytes:
    """Return the stored form: SHA-256 of the payload, then the payload (spec §8.3)."""
    data = _msgpack.pack(payload)
    return _msgpack.pack([hashlib.sha256(data).digest(), data])


def unseal(data: bytes) -> dict[str, Any]:
    """Return the payload of a sealed record.

    Raises:
        IntegrityError: the seal does not hold.
        FormatError: it holds, but what it covers is no map.
    """
    try:
        sealed = _msgpack.unpack(data, "$")
    except FormatError as error:
        raise IntegrityError("record is damaged: its seal is unreadable") from error
    match sealed:
        case [bytes(digest), bytes(payload)] if hashlib.sha256(payload).digest() == digest:
            pass
        case _:
            raise IntegrityError("record is damaged: its seal does not hold")
    try:
        found = _msgpack.unpack(payload, "$")
    except IntegrityError as error:  # cut short before it was sealed: its writer is wrong
        raise FormatError("not a msgpack value", at="$") from error
    if not isinstance(found, dict):
        raise FormatError("expected a map", at="$", found=type(found).__name__)
    return found


def uint(fields: Mapping[str, Any], name: str, limit: int = 2**63 - 1) -> int:
    found = fields.get(name)
    if type(found) is not int or not 0 <= found <= limit:
        raise FormatError("expected an unsigned integer", at=f"$.{name}", found=found)
    return found


def _uints(found: object, name: str) -> tuple[Any, ...]:
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise FormatError("expected a list of unsigned integers", at=f"$.{name}", found=found)
    return tuple(found)


def save_id(fields: Mapping[str, Any], name: str) -> str:
    found = fields.get(name)
    if not isinstance(found, str) or not layout.is_save_id(found):
        raise FormatError("expected 24 hexadecimal digits", at=f"$.{name}", found=found)
    return found
