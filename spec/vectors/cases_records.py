"""Vectors for nodes, annotations, intents and rank parts (spec §6.4, §8.3, §8.6, §8.7)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from ckpt_bytes import TIME, column, dict_node, pack, save_id, sealed
from samples import grid
from vectors import Vector, bad, good, typed


def cases() -> Iterator[Vector]:
    """Yield all vectors of this file."""
    yield from _nodes()
    yield from _bad_nodes()
    yield from _annotations()
    yield from _intents()
    yield from _parts()


def _nodes() -> Iterator[Vector]:
    def node(name: str, clause: str, title: str, value: Any, arrays: int = 0) -> Vector:
        # A plain node stands for itself below the root of a tree.
        tree = dict_node({"value": value})
        return good(
            name, clause, title, "node", pack(tree), {"tree": typed(tree)}, arrays=arrays
        )

    yield node(
        "plain", "6.4", "nil, bools, a str, a bin", [1, [None, True, False, "ж\0", b"\0"]]
    )
    ints = [0, -1, 127, 128, -32, -33, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
    yield node("ints", "6.4", "integers of 64 bits", [1, ints])
    floats = [0.0, -0.0, 1.5, 5e-324, float("inf"), float("-inf"), float("nan")]
    yield node("floats", "6.4", "floats, all bits", [1, floats])
    big = [
        b"\x01" + bytes(8),
        b"\xff\x7f" + b"\xff" * 7,
        b"\x00\x80" + bytes(63),
        b"\x80" + bytes(8),
    ]
    yield node("big-ints", "6.4.3", "integers beyond 64 bits", [1, [[5, b] for b in big]])
    yield node(
        "containers",
        "6.4.7",
        "dict, list, tuple, empty and nested",
        [2, [[0, [], []], [1, []], [2, []], [0, ["b", "a"], [1, [2, [[1, [2]]]]]]]],
    )
    yield node("int-keys", "6.4.7", "int keys keep their type and order",
               [0, [10, 2, -1, 2**64 - 1, "x"], [1, 2, 3, 4, 5]])  # fmt: skip
    yield node("empty-key", "6.4", "an empty key below the root", dict_node({"": 1}))
    yield node(
        "similar-keys", "6.4.2", "keys whose texts differ", [0, [1, "01", "1 "], [1, 2, 3]]
    )
    yield node("arrays", "6.4", "rows, one of them twice", [1, [[3, 0], [3, 1], [3, 0]]], 2)
    scalars = [
        [4, "F32", b"\0\0\x80\x3f"],
        [4, "BOOL", b"\1"],
        [4, "BF16", b"\x80\x3f"],
        [4, "I64", b"\xff" * 8],
        [4, "C64", bytes(4) + b"\0\0\x80\x3f"],
        [4, "F4", b"\2"],
    ]
    yield node("scalars", "6.4", "NumPy scalars", [1, scalars])
    yield node(
        "complex", "6.4", "complex numbers", [1, [[6, 1.0, -0.0], [6, 0.5, float("inf")]]]
    )
    dates = ["2026-01-02T03:04:05", "2026-01-02T03:04:05.000006", "0001-01-01T00:00:00",
             "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05.600000-23:59",
             "2026-01-02T03:04:05+05:30:15.000250"]  # fmt: skip
    yield node("dates", "6.4.5", "naive and with an offset", [1, [[7, d] for d in dates]])


def _bad_nodes() -> Iterator[Vector]:
    def node(name: str, clause: str, title: str, value: Any, code: str = "format") -> Vector:
        data = pack(dict_node({"value": value}))
        return bad(name, clause, title, "node", data, code, arrays=1)

    yield node("empty-array", "6.4", "a node without tag", [])
    yield node("tag-str", "6.4", "a tag that is no number", ["0", [], []])
    yield node("tag-bool", "6.3.2", "true is no tag", [True, []])
    yield node("tag-negative", "6.4", "a negative tag", [-1, []])
    yield node("tag-8", "6.4", "a later tag", [8, 1], "unsupported")
    yield node("map", "6.4", "a msgpack map is no node", {"a": 1})
    yield node("dict-short", "6.4", "a key without value", [0, ["a", "b"], [1]])
    yield node("dict-long", "6.4", "a fourth element", [0, ["a"], [1], 2])
    yield node("dict-bool-key", "6.4", "a bool is no key", [0, [True], [1]])
    yield node("dict-float-key", "6.4", "a float is no key", [0, [1.0], [1]])
    yield node("dict-nil-key", "6.4", "nil is no key", [0, [None], [1]])
    yield node("dict-bin-key", "6.4", "a bin is no key", [0, [b"a"], [1]])
    yield node("dict-same-key", "6.4.2", "a key twice", [0, ["a", "a"], [1, 2]])
    yield node("dict-same-text", "6.4.2", "1 and '1'", [0, [1, "1"], [1, 2]])
    yield node("list-bare", "6.4", "a list without its list", [1])
    yield node("list-of", "6.4", "a list of a map", [1, {"a": 1}])
    yield node("row-high", "6.4", "a row that is not there", [3, 1])
    yield node("row-negative", "6.4", "a negative row", [3, -1])
    yield node("row-bool", "6.3.2", "false is no row", [3, False])
    yield node("row-none", "6.4", "a reference to nothing", [3])
    yield node(
        "scalar-dtype", "5.4.4", "an unknown dtype", [4, "F128", bytes(16)], "unsupported"
    )
    yield node("scalar-short", "6.4", "three bytes of F32", [4, "F32", bytes(3)])
    yield node("scalar-two", "6.4", "two elements", [4, "F32", bytes(8)])
    yield node("scalar-bool", "6.4", "a BOOL of 2", [4, "BOOL", b"\2"])
    yield node("int-small", "6.4.3", "1 has a node of its own", [5, b"\1"])
    yield node("int-uint64", "6.4.3", "2⁶⁴ − 1 has a node of its own", [5, b"\0" + b"\xff" * 8])
    yield node("int-padded", "6.4.3", "a needless leading zero", [5, b"\0\1" + bytes(8)])
    yield node(
        "int-padded-minus", "6.4.3", "a needless leading FF", [5, b"\xff\xfe" + bytes(8)]
    )
    yield node("int-empty", "6.4.3", "no bytes", [5, b""])
    yield node("complex-int", "6.4", "an int part", [6, 1, 0.0])
    yield node("complex-short", "6.4", "one part", [6, 1.0])
    for name, text in {
        "space": "2026-01-02 03:04:05",
        "zulu": "2026-01-02T03:04:05Z",
        "month": "2026-13-01T00:00:00",
        "date": "2026-01-02",
        "fraction": "2026-01-02T03:04:05.6",
        "offset": "2026-01-02T03:04:05+24:00",
        "offset-short": "2026-01-02T03:04:05+05",
        "zero": "2026-01-02T03:04:05.000000",
        "text": "now",
        "digits": "\uff12026-01-02T03:04:05",
    }.items():
        yield node(f"date-{name}", "6.4.5", f"the text {text!r}", [7, text])
    yield bad(
        "cut", "2.4", "cut short", "node", pack(dict_node({"value": "text"}))[:-1], arrays=0
    )
    yield bad(
        "extended", "2.4", "a byte behind it", "node", pack(dict_node({})) + b"\0", arrays=0
    )
    data = b"\x93\x00\x91\xa1v\x91"
    yield bad("ext", "2.4", "an ext type", "node", data + b"\xd4\x05\x00", arrays=0)
    yield bad(
        "timestamp",
        "2.4",
        "a msgpack timestamp",
        "node",
        data + b"\xd6\xff" + bytes(4),
        arrays=0,
    )
    yield bad(
        "not-utf8", "2.4", "a str that is not UTF-8", "node", data + b"\xa1\x80", arrays=0
    )
    title = "a surrogate in UTF-8 form"
    yield bad("surrogate", "2.4", title, "node", data + b"\xa3\xed\xa0\x80", arrays=0)


def _json(value: Any) -> Any:
    """Return a payload as JSON: bytes in hexadecimal, nodes as they are."""
    match value:
        case dict():
            return {k: _json(v) for k, v in value.items()}
        case list():
            return [_json(v) for v in value]
        case bytes():
            return value.hex()
    return value


Seal = Callable[[dict[str, Any]], bytes]


def _sealing(kind: str, clause: str, key: str, payload: dict[str, Any]) -> Iterator[Vector]:
    """Yield what is wrong with the seal of any record."""
    data = sealed(payload)
    text = pack(payload)

    def wrong(name: str, title: str, changed: bytes, code: str, where: str = "8.3.1") -> Vector:
        return bad(name, where, title, kind, changed, code, key=key)

    yield wrong(
        "flip",
        "a flipped bit in the payload",
        data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        "integrity",
    )
    yield wrong(
        "flip-seal",
        "a flipped bit in the digest",
        data[:5] + bytes([data[5] ^ 1]) + data[6:],
        "integrity",
    )
    yield wrong("cut", "cut short", data[:-1], "integrity")
    yield wrong("nothing", "an empty file", b"", "integrity")
    yield wrong("extended", "a byte behind the record", data + b"\0", "integrity")
    yield wrong("bare", "a payload without seal", text, "integrity")
    short = pack([hashlib.sha256(text).digest()[:16], text])
    yield wrong("seal-short", "a digest of 16 bytes", short, "integrity")
    yield wrong("payload-list", "a list as payload", sealed([1]), "format", clause)
    yield wrong(
        "payload-cut",
        "a payload cut short under a good seal",
        sealed(text[:-1]),
        "format",
        clause,
    )
    for field in payload:
        rest = {k: v for k, v in payload.items() if k != field}
        if field not in ("host", "pid") and not (
            kind == "intent" and field in ("time", "numbers")
        ):
            yield wrong(f"lacks-{field}", f"no {field}", sealed(rest), "format", clause)


def _annotations() -> Iterator[Vector]:
    id_ = save_id(1)
    key = f"annotations/0000000012-{id_}-000003.msgpack"
    payload = {
        "number": 12,
        "id": id_,
        "n": 3,
        "time": TIME,
        "fields": {
            "tags.best": True,
            "metrics.bleu": 0.5,
            "notes": "späte Messung",
            "old": None,
        },
    }

    def right(name: str, title: str, **changed: Any) -> Vector:
        value = payload | changed
        expect = {"payload": _json(value)}
        return good(name, "8.6", title, "annotation", sealed(value), expect, key=key)

    def wrong(name: str, title: str, code: str = "format", **changed: Any) -> Vector:
        return bad(name, "8.6", title, "annotation", sealed(payload | changed), code, key=key)

    yield right("fields", "a tag, a metric, a note, a removal")
    yield right("none", "no field", fields={})
    yield right("unknown", "a later addition", novelty=[1])
    yield wrong("other-number", "another number than its key", "integrity", number=13)
    yield wrong("other-id", "another id than its key", "integrity", id=save_id(2))
    yield wrong("other-n", "another n than its key", "integrity", n=4)
    yield wrong("id", "an id that is none", id="x")
    yield wrong("fields-list", "fields by number", fields=[])
    yield wrong("fields-array", "an array as value", fields={"w": [3, 0]})
    yield from _sealing("annotation", "8.6", key, payload)


def _intents() -> Iterator[Vector]:
    id_ = save_id(1)
    key = f"intents/{id_}"
    payload = {
        "kind": "save", "save": id_, "number": 13, "revision": 0, "base": [12, 0],
        "reuse": [f"data/{save_id(2)}-model-0.safetensors"], "numbers": [],
        "ttl_seconds": 86400, "time": TIME, "host": "node7", "pid": 4711,
    }  # fmt: skip

    def right(name: str, title: str, **changed: Any) -> Vector:
        value = payload | changed
        expect = {"payload": _json(value)}
        return good(name, "8.3", title, "intent", sealed(value), expect, key=key)

    def wrong(name: str, title: str, code: str = "format", **changed: Any) -> Vector:
        return bad(name, "8.3", title, "intent", sealed(payload | changed), code, key=key)

    yield right("save", "a save that may reuse a file")
    yield right("first", "the first save of a store", number=1, base=None, reuse=[])
    retention: dict[str, Any] = {"number": 0, "base": None, "reuse": [], "numbers": [3, 4]}
    yield right("retention", "a retention", kind="retention", **retention)
    yield right("copy", "a checkpoint of another store", kind="copy", base=None)
    yield right("unknown", "a later addition", novelty=None)
    yield wrong("other-save", "another save id than its key", "integrity", save=save_id(3))
    yield wrong("kind", "a later kind", "unsupported", kind="read")
    yield wrong("number-high", "eleven digits", number=10**10)
    yield wrong("number-bool", "true is no number", number=True)
    yield wrong("base-short", "a base without revision", base=[12])
    yield wrong("reuse-escape", "a key that leaves the store", reuse=["data/../marker"])
    yield wrong("reuse-int", "a key that is no str", reuse=[7])
    yield wrong("numbers-str", "a number that is text", kind="retention", numbers=["3"])
    yield from _sealing("intent", "8.3", key, payload)


def _parts() -> Iterator[Vector]:
    s = grid()
    arrays = {k: v for k, v in s.body["arrays"].items() if k != "aliases"}
    chunks, files = dict(s.body["chunks"]), dict(s.body["files"])
    # Rank 1 holds the second file: boxes 1 and 3 of the array.
    chunks |= {
        "file": column("I", [0, 0]), "codec": column("B", [0, 1]),
        "offset": chunks["offset"][8:16] + chunks["offset"][24:],
        "nbytes": chunks["nbytes"][8:16] + chunks["nbytes"][24:],
        "digest": chunks["digest"][16:32] + chunks["digest"][48:],
        "start": column("Q", [0, 3, 2, 3]), "shape": column("Q", [2, 3, 2, 3]),
    }  # fmt: skip
    files = {
        "key": files["key"][1:],
        **{k: files[k][8:] for k in ("nbytes", "header_nbytes", "number")},
        "header_digest": files["header_digest"][16:],
    }
    payload = {
        "kind": "rows", "save": save_id(1), "rank": 1, "world": 2, "digest": "xxh3-128",
        "arrays": arrays | {"chunks": column("I", [2])}, "chunks": chunks, "files": files,
    }  # fmt: skip
    key = f"intents/{save_id(1)}.1"

    def one(name: str, title: str, data: dict[str, Any]) -> Vector:
        expect = {"payload": _json(data)}
        return good(name, "8.7", title, "part", sealed(data), expect, key=key)

    yield one("two-boxes", "two of four boxes of an array", payload)
    only = {
        **payload,
        "arrays": payload["arrays"] | {"chunks": column("I", [1])},
        "chunks": {
            k: v[: len(v) // 2] if isinstance(v, bytes) else v for k, v in chunks.items()
        }
        | {"raw_digest": b""},
    }
    yield one("one-box", "one box, which is not the whole array", only)
    failed = {
        "kind": "failed", "save": save_id(1), "rank": 1, "world": 2, "reason": "disk full",
    }  # fmt: skip
    yield one("failed", "a rank that gave up", failed)
    for name in ("rank", "reason"):
        data = sealed({k: v for k, v in failed.items() if k != name})
        title = f"a rank that gave up, without {name}"
        yield bad(f"failed-lacks-{name}", "8.7", title, "part", data, "format", key=key)

    def wrong(name: str, title: str, code: str = "format", **changed: Any) -> Vector:
        return bad(name, "8.7", title, "part", sealed(payload | changed), code, key=key)

    yield wrong("other-rank", "another rank than its key", "integrity", rank=0)
    yield wrong("other-save", "another save id than its key", "integrity", save=save_id(2))
    yield wrong("rank-high", "a rank that the world lacks", world=1)
    yield wrong("kind", "an unknown kind", "unsupported", kind="maybe")
    yield wrong("digest", "an unknown digest", "unsupported", digest="crc32")
    yield wrong("box-outside", "a box that leaves the array",
                chunks=chunks | {"start": column("Q", [0, 4, 2, 3])})  # fmt: skip
    yield wrong("box-lost", "boxes of the first chunk only",
                chunks=chunks | {"start": column("Q", [0, 3])})  # fmt: skip
    yield wrong("key-escape", "a key that leaves the store", files=files | {"key": ["data/.."]})
    yield from _sealing("part", "8.7", key, payload)
