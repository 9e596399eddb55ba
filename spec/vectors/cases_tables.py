"""Vectors for the state tree and the tables of the body (spec §6.4–6.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ckpt_bytes import MIB, Array, Box, Saved, column, dict_node, manifest, pack, save
from samples import RAMP, empty, every_dtype, floats, grid, probe, small, wide
from vectors import Vector, bad, found, good

KIND = "manifest"
Change = Callable[[dict[str, Any]], object]


def cases() -> Iterator[Vector]:
    """Yield all vectors of this file."""
    yield from _tree()
    yield from _paths()
    yield from _probe()
    yield from _arrays()
    yield from _chunks()
    yield from _boxes()
    yield from _files()


def _changed(saved: Saved, change: Change) -> bytes:
    c = saved.copy()
    change(c.body)
    return c.encode()


def _set(table: str, **columns: Any) -> Change:
    return lambda body: body[table].update(columns)


def _with_tree(tree: Any) -> bytes:
    return manifest(small().summary, small().body | {"tree": tree})


def _tree() -> Iterator[Vector]:
    model = small().body["tree"][2][0]

    def wrong(name: str, clause: str, title: str, tree: Any, code: str = "format") -> Vector:
        return bad(f"tree-{name}", clause, title, KIND, _with_tree(tree), code)

    yield wrong("list", "6.4.1", "a list at the root", [1, [model]])
    yield wrong("nil", "6.4.1", "nothing at the root", None)
    yield wrong("root-int", "6.4.1", "an int key at the root", [0, ["model", 1], [model, 7]])
    yield wrong(
        "root-empty", "6.4.1", "an empty key at the root", [0, ["model", ""], [model, 7]]
    )
    yield wrong(
        "row-high", "6.4", "a row that is not there", dict_node({"model": model, "x": [3, 2]})
    )
    yield wrong(
        "row-negative", "6.4", "a negative row", dict_node({"model": model, "x": [3, -1]})
    )
    yield wrong("row-lost", "6.4.9", "a row without reference",
                dict_node({"model": dict_node({"weight": [3, 0]})}))  # fmt: skip
    yield wrong(
        "row-order",
        "6.4.9",
        "first references out of order",
        dict_node({"model": dict_node({"bias": [3, 1], "weight": [3, 0]})}),
    )
    yield wrong(
        "path",
        "6.4.9",
        "the table has another path",
        dict_node({"model": dict_node({"weights": [3, 0], "bias": [3, 1]})}),
    )
    yield wrong(
        "swapped",
        "6.4.9",
        "the tree has the paths of two rows the other way round",
        dict_node({"model": dict_node({"bias": [3, 0], "weight": [3, 1]})}),
    )
    yield wrong("alias-lost", "6.4.9", "a further reference that is no alias",
                dict_node({"model": model, "tied": [3, 0]}))  # fmt: skip
    yield wrong(
        "tag-8", "6.4", "a later tag", dict_node({"model": model, "x": [8, 1]}), "unsupported"
    )


def _paths() -> Iterator[Vector]:
    def aliases(name: str, title: str, *rows: Any, clause: str = "6.4.9") -> Vector:
        change = _set("arrays", aliases=list(rows))
        return bad(f"alias-{name}", clause, title, KIND, _changed(wide(), change))

    yield aliases("missing", "tied in the tree, not in the table")
    yield aliases("extra", "an alias that the tree lacks", [0, "model/head"], [1, "model/x"])
    yield aliases("path", "an alias at another path", [0, "model/tail"])
    yield aliases("row", "an alias of another row", [1, "model/head"])
    yield aliases("row-high", "an alias of no row", [7, "model/head"], clause="6.5")
    yield aliases("row-negative", "a negative row", [-1, "model/head"], clause="6.5")
    yield aliases("short", "an alias without path", [0], clause="6.5")
    yield aliases("twice", "an alias twice", [0, "model/head"], [0, "model/head"], clause="6.5")
    keys = {"a/b": [3, 0], "a~b": [3, 1], "": [3, 2], -1: [3, 3], "ж": [3, 4], "~1": [3, 5]}
    paths = ["a~1b", "a~0b", "", "-1", "ж", "~01"]
    arrays = [Array(f"model/{p}", "U8", (1,), bytes([i])) for i, p in enumerate(paths)]
    names = {a.path: f"entry{i}" for i, a in enumerate(arrays)}
    s = save(dict_node({"model": dict_node(keys)}), arrays, names=names)
    title = "slash, tilde, nothing, a negative int, Greek"
    yield good("path-escapes", "6.4.8", title, KIND, s.encode(), found(s))

    def long(name: str, length: int) -> tuple[str, Saved]:
        key = "x" * (length - len("model/"))
        array = Array(f"model/{key}", "U8", (1,), b"\1")
        tree = dict_node({"model": dict_node({key: [3, 0]})})
        return name, save(tree, [array], names={array.path: "x"})

    name, s = long("path-longest", 8192)
    yield good(name, "6.4.8", "8,192 bytes", KIND, s.encode(), found(s))
    name, s = long("path-too-long", 8193)
    yield bad(name, "6.4.8", "8,193 bytes", KIND, s.encode())

    def deep(depth: int) -> Any:
        node: Any = 1
        for _ in range(depth - 1):
            node = [1, [node]]
        return dict_node({"a": node})

    e = empty()
    e.body["tree"] = deep(100)
    yield good(
        "tree-deepest", "6.4.4", "100 containers around a leaf", KIND, e.encode(), found(e)
    )
    for depth, text in ((101, "101 containers"), (20_000, "20,000 containers")):
        body = _body_with_lists(e.body, depth - 1)
        yield bad(f"tree-deep-{depth}", "6.4.4", text, KIND, manifest(e.summary, body))


def _body_with_lists(body: dict[str, Any], depth: int) -> bytes:
    """Return the packed body with a tree of nested lists, too deep for a recursive packer."""
    rest = {k: v for k, v in body.items() if k != "tree"}
    packed = pack(rest)
    size = 3 if packed[0] == 0xDE else 1
    nested = b"\x92\x01\x91" * depth + b"\x01"
    tree = pack("tree") + b"\x93\x00\x91\xa1a\x91" + nested
    return b"\xde" + (len(rest) + 1).to_bytes(2, "big") + packed[size:] + tree


def _probe() -> Iterator[Vector]:
    s = probe()
    yield good("probe", "6.8.6", "a probe with arrays", KIND, s.encode(), found(s))
    lost = probe()
    lost.body["probe"] = None
    yield bad("probe-lost", "6.4.9", "probe arrays without a probe", KIND, lost.encode())
    s.arrays[1].path = "probe/inputs/x"
    s = save(s.body["tree"], s.arrays, probe=s.body["probe"])
    yield bad("probe-path", "6.4.10", "a probe array without the prefix", KIND, s.encode())


def _arrays() -> Iterator[Vector]:
    def wrong(
        name: str, clause: str, title: str, code: str = "format", *, base: Saved | None = None,
        **columns: Any,
    ) -> Vector:  # fmt: skip
        data = _changed(base or small(), _set("arrays", **columns))
        return bad(f"arrays-{name}", clause, title, KIND, data, code)

    for field in small().body["arrays"]:
        data = _changed(small(), lambda body, field=field: body["arrays"].pop(field))
        yield bad(f"arrays-lacks-{field}", "6.5", f"no column {field}", KIND, data)
    yield wrong("path-short", "6.5", "fewer paths than rows", path=["model/weight"])
    yield wrong(
        "path-type", "6.5", "a path that is no str", path=["model/weight", b"model/bias"]
    )
    yield wrong("path-twice", "6.5", "a path twice", path=["model/weight", "model/weight"])
    yield wrong("dtype-short", "6.5", "one row too few", dtype=column("H", [0]))
    yield wrong("dtype-odd", "6.5", "half a value", dtype=column("H", [0, 0])[:-1])
    yield wrong("dtype-high", "6.5", "beyond `dtypes`", dtype=column("H", [0, 1]))
    yield wrong("dtype-list", "6.5", "a list instead of a packed column", dtype=[0, 0])
    yield wrong("dtypes-unknown", "5.4.4", "an unknown dtype", "unsupported", dtypes=["F128"])
    yield wrong("dtypes-twice", "6.5", "a name twice", dtypes=["F32", "F32"])
    yield wrong("dtypes-int", "6.5", "a dtype by number", dtypes=[11])
    yield wrong("ndim-short", "6.5", "one row too few", ndim=column("B", [2]))
    yield wrong("ndim-differs", "6.5", "more dimensions than extents", ndim=column("B", [2, 2]))
    yield wrong("ndim-fewer", "6.5", "fewer dimensions than extents", ndim=column("B", [1, 1]))
    yield wrong("shape-short", "6.5", "one extent too few", shape=column("Q", [2, 3]))
    yield wrong(
        "shape-differs",
        "5.4.1",
        "shape × dtype is not the length",
        shape=column("Q", [2, 4, 2]),
    )
    yield wrong("dtype-wider", "5.4.1", "shape × dtype is not the length", dtypes=["F64"])
    yield wrong("shape-zero", "6.5.2", "no elements, but a chunk", shape=column("Q", [2, 0, 2]))
    yield wrong("chunks-short", "6.5", "one row too few", chunks=column("I", [1]))
    yield wrong("chunks-none", "6.5.2", "elements, but no chunk", chunks=column("I", [1, 0]))
    yield wrong("chunks-more", "6.6", "more chunks than rows", chunks=column("I", [1, 2]))
    yield wrong("chunks-huge", "6.6", "2³² − 1 chunks", chunks=column("I", [1, 2**32 - 1]))
    yield wrong(
        "shape-absurd", "6.5.1", "2⁶⁴ − 1 elements", shape=column("Q", [2, 3, 2**64 - 1])
    )
    yield wrong("shape-wraps", "6.5.1", "a product that wraps around 2⁶⁴ to the length",
                shape=column("Q", [2**63 + 1, 2, 2]),
                dtypes=["U8"])  # fmt: skip
    yield wrong("aliases-type", "6.5", "aliases by name", aliases={"a": "b"})

    def empties(*shape: int) -> Saved:
        tree = dict_node({"model": dict_node({"w": [3, 0]})})
        return save(tree, [Array("model/w", "F64", shape, b"")])

    s = empties(2, 0, 3)
    yield good("arrays-empty", "6.5.2", "no elements, no chunk", KIND, s.encode(), found(s))
    s = empties(0, 2**62)
    title = "no elements, but an extent that no memory can address"
    yield bad("arrays-empty-absurd", "6.5.1", title, KIND, s.encode())
    s = empties(0, 2**30, 2**30)
    yield bad("arrays-empty-product", "6.5.1", title, KIND, s.encode())

    def ones(ndim: int) -> Saved:
        tree = dict_node({"model": dict_node({"w": [3, 0]})})
        return save(tree, [Array("model/w", "U8", (1,) * ndim, b"\7")])

    s = ones(32)
    yield good("arrays-ndim-32", "6.5", "32 dimensions", KIND, s.encode(), found(s))
    s = ones(65)
    yield bad("arrays-ndim-65", "6.5", "65 dimensions", KIND, s.encode())
    s = every_dtype()
    yield good("arrays-dtypes", "5.4.2", "every dtype", KIND, s.encode(), found(s))
    s = save(
        dict_node({"model": dict_node({"w": [3, 0]})}),
        [Array("model/w", "F32", (2,), floats(1, 2))],
        digest="sha256",
    )
    yield good("sha256", "7.2", "digests of 32 bytes", KIND, s.encode(), found(s))
    s.body["digest"] = "xxh3-128"
    yield bad("digest-size", "6.6", "digests of another length", KIND, s.encode())


def _chunks() -> Iterator[Vector]:
    def wrong(
        name: str, clause: str, title: str, code: str = "format", *, base: Saved | None = None,
        **columns: Any,
    ) -> Vector:  # fmt: skip
        data = _changed(base or small(), _set("chunks", **columns))
        return bad(f"chunks-{name}", clause, title, KIND, data, code)

    for field in small().body["chunks"]:
        data = _changed(small(), lambda body, field=field: body["chunks"].pop(field))
        yield bad(f"chunks-lacks-{field}", "6.6", f"no column {field}", KIND, data)
    yield wrong("file-high", "6.6", "a file that is not there", file=column("I", [0, 1]))
    yield wrong("file-short", "6.6", "one row too few", file=column("I", [0]))
    yield wrong("offset-beyond", "6.6", "ends behind its file", offset=column("Q", [0, 25]))
    yield wrong("offset-wraps", "6.6", "offset + length wraps around 2⁶⁴",
                offset=column("Q", [0, 2**64 - 8]))  # fmt: skip
    yield wrong("nbytes-zero", "6.6", "an empty chunk", nbytes=column("Q", [24, 0]))
    yield wrong(
        "nbytes-less", "5.4.1", "a raw chunk that is too short", nbytes=column("Q", [24, 4])
    )
    yield wrong("nbytes-more", "5.4.1", "a raw chunk that is too long",
                nbytes=column("Q", [28, 8]))  # fmt: skip
    yield wrong("nbytes-huge", "6.6", "2⁶⁴ − 1 bytes", nbytes=column("Q", [24, 2**64 - 1]))
    yield wrong("codec-high", "6.6", "beyond `codecs`", codec=column("B", [0, 1]))
    yield wrong("codecs-unknown", "7.1.2", "an unknown codec", "unsupported", codecs=["lz4"])
    yield wrong("codecs-unused", "7.1.2", "an unknown codec that no chunk uses", "unsupported",
                codecs=["raw", "lz4"])  # fmt: skip
    yield wrong("codecs-twice", "6.6", "a name twice", codecs=["raw", "raw"])
    yield wrong("digest-short", "6.6", "one byte too few", digest=bytes(31))
    yield wrong("digest-type", "6.6", "digests as text", digest="0" * 32)
    yield wrong("raw-digest-extra", "6.6", "raw chunks have none", raw_digest=bytes(16))
    yield wrong(
        "raw-digest-short", "6.6", "one of two is missing", base=wide(), raw_digest=bytes(16)
    )
    yield wrong("start-extra", "6.6.1", "a box of an only chunk", start=column("Q", [0, 0, 0]),
                shape=column("Q", [2, 3, 2]))  # fmt: skip
    yield wrong("overlap", "6.6.3", "two arrays on the same bytes", offset=column("Q", [0, 16]))
    title = "two arrays on exactly the same bytes"
    tree = dict_node({"a": [3, 0], "b": [3, 1]})
    s = save(tree, [Array(p, "F32", (2,), floats(1, 2)) for p in ("a", "b")])
    yield wrong("same", "6.6.3", title, base=s, offset=column("Q", [0, 0]))
    big = save(
        dict_node({"model": dict_node({"w": [3, 0]})}),
        [Array("model/w", "U8", (64,), bytes(64), boxes=[Box((0,), (64,), "zstd")])],
    )
    big.body["arrays"]["shape"] = column("Q", [2**30 + 1])
    title = "an encoded chunk that decodes to more than 1 GiB"
    yield bad("chunks-bomb", "6.6.4", title, KIND, big.encode())
    big.body["arrays"]["shape"] = column("Q", [2**30])
    title = "1 GiB is allowed by the table; the frame decides later"
    big.arrays[0].shape = (2**30,)
    yield good("chunks-gibibyte", "6.6.4", title, KIND, big.encode(), found(big))


def _boxes() -> Iterator[Vector]:
    s = grid()
    yield good("boxes-grid", "6.6.2", "a 2 × 2 grid in two files", KIND, s.encode(), found(s))
    starts = [(0, 0), (0, 3), (2, 0), (2, 3)]

    def wrong(
        name: str, title: str, *, clause: str = "6.6.2", **changed: list[tuple[int, int]]
    ) -> Vector:
        boxes = {"start": starts, "shape": [(2, 3)] * 4} | changed
        columns = {k: column("Q", (n for box in v for n in box)) for k, v in boxes.items()}
        data = _changed(grid(), _set("chunks", **columns))
        return bad(f"boxes-{name}", clause, title, KIND, data)

    yield wrong("overlap", "the same box twice: overlap and hole of equal volume",
                start=[(0, 0), (0, 0), (2, 0), (2, 3)])  # fmt: skip
    yield wrong(
        "shifted", "a box that is one column off", start=[(0, 0), (0, 2), (2, 0), (2, 3)]
    )
    yield wrong(
        "outside", "a box that leaves the array", start=[(0, 0), (0, 4), (2, 0), (2, 3)]
    )
    yield wrong("outside-first", "a box that leaves along the first axis",
                start=[(0, 0), (0, 3), (3, 0), (2, 3)])  # fmt: skip
    yield wrong(
        "start-huge", "a start near 2⁶⁴", start=[(0, 0), (0, 3), (2**64 - 2, 0), (2, 3)]
    )
    yield wrong("shape-huge", "an extent near 2⁶⁴", shape=[(2, 3)] * 3 + [(2, 2**64 - 3)])
    yield wrong("empty", "an empty box", shape=[(2, 3)] * 3 + [(0, 3)])
    yield wrong("thin", "boxes that leave a hole", shape=[(2, 3)] * 3 + [(2, 2)])
    yield wrong("short", "a box too few", clause="6.6", start=starts[:3])
    hole = grid()
    for name in ("start", "shape"):
        hole.body["chunks"][name] = hole.body["chunks"][name][: 3 * 16]
    chunks = hole.body["chunks"]
    for name, size in (("file", 4), ("offset", 8), ("nbytes", 8), ("codec", 1), ("digest", 16)):
        chunks[name] = chunks[name][: 3 * size]
    chunks["codec"], chunks["raw_digest"] = column("B", [0, 0, 0]), b""
    hole.body["arrays"]["chunks"] = column("I", [3])
    yield bad("boxes-hole", "6.6.2", "a box is missing", KIND, hole.encode())
    slices = [Box((0,), (8,)), Box((16,), (8,)), Box((8,), (8,))]
    tree = dict_node({"model": dict_node({"w": [3, 0]})})
    s = save(tree, [Array("model/w", "U8", (24,), RAMP[:24], boxes=slices)])
    yield good("boxes-any-order", "6.6.2", "boxes in any order", KIND, s.encode(), found(s))
    rings = [Box((0, 0), (1, 4)), Box((1, 3), (3, 1)), Box((3, 0), (1, 3)), Box((1, 0), (2, 2)),
             Box((1, 2), (2, 1))]  # fmt: skip
    s = save(tree, [Array("model/w", "U8", (4, 4), RAMP[:16], boxes=rings)])
    title = "a spiral that no straight cut divides"
    yield good("boxes-spiral", "6.6.2", title, KIND, s.encode(), found(s))
    zero_d = save(tree, [Array("model/w", "F32", (), floats(1))])
    zero_d.body["arrays"]["chunks"] = column("I", [2])
    chunks = zero_d.body["chunks"]
    for name in ("file", "codec"):
        chunks[name] = chunks[name] * 2
    chunks["offset"], chunks["nbytes"] = column("Q", [0, 4]), column("Q", [4, 4])
    chunks["digest"] *= 2
    title = "two boxes of a 0-d array overlap"
    yield bad("boxes-0d", "6.6.2", title, KIND, zero_d.encode())


def _files() -> Iterator[Vector]:
    def wrong(
        name: str, clause: str, title: str, *, base: Saved | None = None, **columns: Any
    ) -> Vector:
        data = _changed(base or small(), _set("files", **columns))
        return bad(f"files-{name}", clause, title, KIND, data)

    for field in small().body["files"]:
        data = _changed(small(), lambda body, field=field: body["files"].pop(field))
        yield bad(f"files-lacks-{field}", "6.7", f"no column {field}", KIND, data)
    key = small().body["files"]["key"][0]
    for name, text in {
        "escape": "data/../../etc/passwd", "absolute": "/etc/passwd", "dots": "data/..",
        "parent": "../data/x.safetensors", "nested": "data/a/b.safetensors",
        "hidden": "data/.hidden", "elsewhere": "manifests/x", "backslash": "data/a\\b",
        "zero": "data/a\0b", "newline": f"{key}\n", "nothing": "data/", "empty": "",
        "scheme": "s3://bucket/x", "long": "data/" + "x" * 201, "space": "data/a b",
        "unicode": "data/\u0455",
    }.items():  # fmt: skip
        yield wrong(f"key-{name}", "4.3.3", f"the key {text[:40]!r}", key=[text])
    yield wrong("key-type", "6.7", "a key that is no str", key=[key.encode()])
    two = grid()
    keys = two.body["files"]["key"]
    yield wrong("key-twice", "6.7", "a key twice", base=two, key=[keys[0], keys[0]])
    yield wrong("key-more", "6.7", "a key without row", key=[key, "data/x"])
    yield wrong("nbytes-small", "6.7", "shorter than its header", nbytes=column("Q", [16]))
    yield wrong("nbytes-short", "6.7", "half a value", nbytes=bytes(4))
    yield wrong(
        "nbytes-huge",
        "6.7",
        "2⁶⁴ − 1 bytes with a header that wraps",
        nbytes=column("Q", [2**64 - 1]),
        header_nbytes=column("Q", [2**64 - 1]),
    )
    yield wrong(
        "header-large",
        "6.7",
        "a header above 64 MiB",
        header_nbytes=column("Q", [64 * MIB + 8]),
        nbytes=column("Q", [65 * MIB]),
    )
    yield wrong("header-digest", "6.7", "one byte too few", header_digest=bytes(15))
    yield wrong("number-high", "6.7", "eleven digits", number=column("Q", [10**10]))
