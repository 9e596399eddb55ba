"""What a vector is, and how the expected results are written (spec §12.3)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from ckpt_bytes import Saved, identity


class Vector(NamedTuple):
    """One file of `v1/`: its name without suffix, and its fields."""

    name: str
    fields: dict[str, Any]


def good(
    name: str,
    clause: str,
    title: str,
    kind: str,
    data: bytes | Mapping[str, bytes],
    expect: object,
    **more: Any,
) -> Vector:
    """Return a vector that a reader accepts."""
    return Vector(
        f"{kind}-{name}",
        {"clause": f"§{clause}", "title": title, "kind": kind, "valid": True, "code": None}
        | more
        | _bytes(data)
        | {"expect": expect},
    )


def bad(
    name: str,
    clause: str,
    title: str,
    kind: str,
    data: bytes | Mapping[str, bytes],
    code: str = "format",
    **more: Any,
) -> Vector:
    """Return a vector that a reader refuses with `code`."""
    return Vector(
        f"{kind}-{name}",
        {"clause": f"§{clause}", "title": title, "kind": kind, "valid": False, "code": code}
        | more
        | _bytes(data),
    )


def _bytes(data: bytes | Mapping[str, bytes]) -> dict[str, Any]:
    if isinstance(data, bytes):
        return {"hex": data.hex()}
    return {"files": {key: content.hex() for key, content in sorted(data.items())}}


def typed(node: object) -> object:
    """Return a node in the JSON form of spec §12.3."""
    match node:
        case None | bool():
            return node
        case int():
            return {"int": str(node)}
        case float():
            return {"float": struct.pack(">d", node).hex()}
        case str():
            return {"str": node}
        case bytes():
            return {"bytes": node.hex()}
        case [0, keys, values]:
            return {"dict": [[typed(k), typed(v)] for k, v in zip(keys, values, strict=True)]}
        case [1, values]:
            return {"list": [typed(v) for v in values]}
        case [2, values]:
            return {"tuple": [typed(v) for v in values]}
        case [3, row]:
            return {"array": row}
        case [4, dtype, data]:
            return {"scalar": [dtype, data.hex()]}
        case [5, data]:
            return {"int": str(int.from_bytes(data, "big", signed=True))}
        case [6, re, im]:
            return {"complex": [struct.pack(">d", x).hex() for x in (re, im)]}
        case [7, text]:
            return {"datetime": text}
    raise ValueError(f"not a node: {node!r}")


def arrays(saved: Saved, *, data: bool = False) -> dict[str, Any]:
    """Return what a reader finds in the array table, with the content if asked for."""
    return {
        a.path: {"dtype": a.dtype, "shape": list(a.shape), "aliases": list(a.aliases)}
        | ({"hex": a.data.hex()} if data else {})
        for a in saved.arrays
    }


def found(saved: Saved, *, data: bool = False) -> dict[str, Any]:
    """Return what a reader finds in a manifest."""
    names = ("number", "revision", "id")
    return {name: saved.summary[name] for name in names} | {
        "kind": "checkpoint",
        "identity": identity(saved.encode()),
        "tree": typed(saved.body["tree"]),
        "arrays": arrays(saved, data=data),
    }
