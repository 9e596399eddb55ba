"""The summary of a manifest: what lists and selections need, in one first read (spec §6.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.format import _msgpack, layout, upgrade
from ckptfmt.format.features import FORMAT_VERSION, Features
from ckptfmt.format.values import decode_plain, encode_plain

TARGET_NBYTES: Final = 16 * 1024  # a first read of 16 KiB + header gets the whole summary

Number = int | float | None
_STR: Final = frozenset({str})
_MOVABLE: Final = ("metrics", "counters", "tags", "sections")
_KNOWN: Final = frozenset(
    {*_MOVABLE, "number", "revision", "id", "save", "parent", "time", "dropped", "dropped_at"}
    | {"writer", "features", "moved"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One top-level key of the state tree; `""` stands for all top-level leaves."""

    name: str
    nbytes: int  # decoded bytes of its arrays
    arrays: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is known of a checkpoint without its body."""

    number: int
    revision: int
    id: str | None  # of the checkpoint: the save id that made revision 0; None: never existed
    save: str  # save id that made this object
    parent: tuple[int, str] | None  # (number, id) the run was resumed from
    time: int  # microseconds since the Unix epoch by the writer's clock; informational
    counters: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Number] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    dropped: tuple[str, ...] = ()  # sections removed by a revision
    dropped_at: Mapping[str, int] = field(default_factory=dict)  # when, like `time`; or absent
    writer: Mapping[str, str] = field(default_factory=dict)
    features: Features = field(default_factory=Features)
    moved: tuple[str, ...] = ()  # fields whose rest lies in the body
    unknown: Mapping[str, Any] = field(default_factory=dict)  # fields of a newer minor: kept


def encode(summary: Summary) -> tuple[bytes, dict[str, Any]]:
    """Return the stored summary and what had to move to the body to keep it small.

    A save is never refused for its many metrics: the longest entries move first.
    """
    fields: dict[str, Any] = {
        **summary.unknown,
        "number": summary.number,
        "revision": summary.revision,
        "id": summary.id,
        "save": summary.save,
        "parent": None if summary.parent is None else [*summary.parent],
        "time": summary.time,
        "counters": {k: encode_plain(v) for k, v in summary.counters.items()},
        "metrics": dict(summary.metrics),
        "tags": list(summary.tags),
        "sections": [[s.name, s.nbytes, s.arrays] for s in summary.sections],
        "dropped": list(summary.dropped),
        "writer": dict(summary.writer),
        "features": summary.features.encode(),
        "moved": [],
    }
    if summary.dropped_at:
        fields["dropped_at"] = dict(summary.dropped_at)
    data = _msgpack.pack(fields)
    moved: dict[str, Any] = {}
    for name in _MOVABLE:
        if len(data) <= TARGET_NBYTES:
            break
        moved[name] = _move(fields, name, len(data) - TARGET_NBYTES)
        fields["moved"].append(name)
        data = _msgpack.pack(fields)
    return data, moved


def _move(fields: dict[str, Any], name: str, excess: int) -> Any:
    """Take entries out of a field, longest first, until `excess` bytes are saved."""
    whole = fields[name]
    if isinstance(whole, list):
        fields[name] = []
        return whole
    longest = sorted(whole, key=lambda k: -len(_msgpack.pack([k, whole[k]])))
    gone = {}
    for key in longest:
        if excess <= -32:  # room for the names in `moved`
            break
        excess -= len(_msgpack.pack(key)) + len(_msgpack.pack(whole[key]))
        gone[key] = whole[key]
    fields[name] = {k: v for k, v in whole.items() if k not in gone}
    return gone


def decode(data: bytes, *, tombstone: bool = False, version: int = FORMAT_VERSION) -> Summary:
    """Parse and check a summary of a version that steps lead from.

    Raises:
        FormatError: a field is missing, of the wrong type or out of range.
    """
    fields = _msgpack.unpack(data, "$")
    if not isinstance(fields, dict):
        raise FormatError("expected a map", at="$", found=type(fields).__name__)
    fields = upgrade.summary(version, fields)
    number = _uint(fields, "number", layout.MAX_NUMBER)
    if number == 0:
        raise FormatError("numbers start at 1", at="$.number")
    known: dict[str, Any] = {
        "number": number,
        "revision": _uint(fields, "revision", layout.MAX_REVISION),
        "id": _id(fields, "id", optional=tombstone),
        "save": _id(fields, "save"),
        "time": _uint(fields, "time", 2**63 - 1),
        "writer": _map(fields, "writer", str),
        "features": Features.decode(fields.get("features"), "$.features"),
    }
    if tombstone:
        return Summary(parent=None, **known)
    if (known["save"] == known["id"]) != (known["revision"] == 0):
        raise FormatError(
            "exactly revision 0 is made by the save that names the checkpoint",
            at="$.save",
            revision=known["revision"],
        )
    if "parent" not in fields:
        raise FormatError("missing field", at="$.parent")
    moved = _names(fields, "moved")
    return Summary(
        **known,
        parent=_parent(fields.get("parent")),
        counters=counters(fields),
        metrics=metrics(fields),
        tags=_names(fields, "tags"),
        sections=sections(fields),
        dropped=_names(fields, "dropped"),
        dropped_at=_times({"dropped_at": {}, **fields}, "dropped_at"),
        moved=moved,
        unknown={name: value for name, value in fields.items() if name not in _KNOWN},
    )


def whole(summary: Summary, body: Mapping[str, Any]) -> Summary:
    """Return the summary with what was moved to the body.

    Raises:
        FormatError: the body lacks them.
    """
    full: dict[str, Any] = {}
    for name in summary.moved:
        match name:
            case "metrics":
                full[name] = _united(name, summary.metrics, metrics(body))
            case "counters":
                full[name] = _united(name, summary.counters, counters(body))
            case "tags":
                full[name] = summary.tags + _names(body, "tags")
            case "sections":
                full[name] = summary.sections + sections(body)
            case _:
                raise FormatError("unknown field was moved", at="$.moved", found=name)
    return dataclasses.replace(summary, **full) if full else summary


def _united(name: str, kept: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    if kept.keys() & moved.keys():
        raise FormatError("a key is both in summary and body", at=f"$.{name}")
    return {**kept, **moved}


def counters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the field `counters`."""
    return {
        k: decode_plain(v, at=f"$.counters.{k}") for k, v in _map(fields, "counters").items()
    }


def metrics(fields: Mapping[str, Any]) -> dict[str, Number]:
    """Decode the field `metrics`."""
    return _map(fields, "metrics", int, float, type(None))


def sections(fields: Mapping[str, Any]) -> tuple[Section, ...]:
    """Decode the field `sections`."""
    rows = fields.get("sections")
    if not isinstance(rows, list):
        raise FormatError("expected a list of sections", at="$.sections", found=rows)
    for row in rows:
        # `match` would say the same in three times the time, for each checkpoint of a list.
        if type(row) is not list or [type(value) for value in row] != [str, int, int]:
            raise FormatError("expected [str, uint, uint]", at="$.sections", found=row)
        if min(row[1:]) < 0:
            raise FormatError("expected [str, uint, uint]", at="$.sections", found=row)
    return tuple(Section(name=name, nbytes=n, arrays=arrays) for name, n, arrays in rows)


def _times(fields: Mapping[str, Any], name: str) -> dict[str, int]:
    times = _map(fields, name, int)
    return {key: _uint(times, key, 2**63 - 1) for key in times}


def _uint(fields: Mapping[str, Any], name: str, limit: int) -> int:
    found = fields.get(name)
    if type(found) is not int or not 0 <= found <= limit:
        raise FormatError(
            "expected an unsigned integer", at=f"$.{name}", found=found, limit=limit
        )
    return found


def _id(fields: Mapping[str, Any], name: str, *, optional: bool = False) -> Any:
    found = fields.get(name, "")
    if not layout.is_save_id(found) and not (optional and found is None):
        raise FormatError("expected 24 hexadecimal digits", at=f"$.{name}", found=found)
    return found


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = fields.get(name)
    if (
        not isinstance(found, list)
        or not _STR.issuperset(map(type, found))
        or "" in found
        or len(set(found)) != len(found)
    ):
        raise FormatError(
            "expected a list of distinct, non-empty str", at=f"$.{name}", found=found
        )
    return tuple(found)


def _map(fields: Mapping[str, Any], name: str, *types: type) -> dict[str, Any]:
    found = fields.get(name)
    if not isinstance(found, dict):  # its keys are str: `_msgpack` reads no others
        raise FormatError("expected a map", at=f"$.{name}", found=found)
    for key, value in found.items():
        if types and type(value) not in types:
            raise FormatError("value of the wrong type", at=f"$.{name}.{key}", found=value)
    return found


def _parent(found: object) -> tuple[int, str] | None:
    match found:
        case None:
            return None
        case [int(n), str(id_)] if 1 <= n <= layout.MAX_NUMBER and layout.is_save_id(id_):
            return n, id_
    raise FormatError("expected null or [number, id]", at="$.parent", found=found)
