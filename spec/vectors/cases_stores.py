"""Vectors for whole stores: what *latest* is, and whether it verifies (spec §4, §7, §8, §9)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_bytes import (
    DIGESTS,
    TIME,
    Array,
    Box,
    Saved,
    column,
    dict_node,
    header_nbytes,
    manifest,
    planes,
    save,
    save_id,
    sealed,
    tombstone,
    zstd,
)
from samples import RAMP, empty, every_dtype, floats, grid, probe, sections, small, wide
from vectors import Vector, bad, found, good

KIND = "store"
MARKER = json.dumps(
    {"format": "ckptfmt", "version": "1-dev", "about": "A store of checkpoints."}
).encode()
Files = Mapping[str, bytes]


def cases() -> Iterator[Vector]:
    """Yield all vectors of this file."""
    yield from _contents()
    yield from _latest()
    yield from _revisions()
    yield from _damage()
    yield from _data()
    yield from _annotated()
    yield from _markers()


def _store(*saved: Saved, **more: Any) -> dict[str, bytes]:
    files = {"ckptfmt.json": MARKER}
    for s in saved:
        files |= s.store()
    return files | more


def _expect(s: Saved, *warnings: str, **more: Any) -> dict[str, Any]:
    fields = {
        "metrics": s.summary["metrics"],
        "tags": s.summary["tags"],
        "warnings": [*warnings],
    }
    return found(s, data=True) | fields | more


def _number(n: int, *, parent: Saved | None = None) -> Saved:
    """Return a checkpoint of one array; numbers above 1 differ in content."""
    tree = dict_node({"model": dict_node({"w": [3, 0]}), "step": n})
    array = Array("model/w", "F32", (2,), floats(n, -n), save=n)
    link = None if parent is None else [parent.summary["number"], parent.summary["id"]]
    return save(tree, [array], number=n, parent=link)


def _flip(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _contents() -> Iterator[Vector]:
    for name, clause, title, s in (
        ("small", "4.1", "two arrays and a number", small()),
        ("empty-tree", "6", "no array, no data file", empty()),
        ("wide", "6.6", "tied, split, encoded, empty and 0-d", wide()),
        ("grid", "6.6.2", "boxes of two ranks in two files, one of them encoded", grid()),
        ("dtypes", "5.4.2", "every dtype", every_dtype()),
        ("sections", "6.4", "the standard sections, with rank_local", sections()),
        ("probe", "6.8.6", "a probe, which is no part of the tree", probe()),
    ):
        yield good(name, clause, title, KIND, _store(s), _expect(s))
    s = save(small().body["tree"], small().arrays, digest="sha256")
    yield good("sha256", "7.2", "digests of 32 bytes", KIND, _store(s), _expect(s))
    yield good(
        "names", "5.3", "collision, empty, reserved", KIND, _store(_names()), _expect(_names())
    )
    one, two = _number(1), _number(2)
    two.arrays[0].save = 2
    tree = dict_node({"model": dict_node({"w": [3, 0], "b": [3, 1]})})
    arrays = [
        Array("model/w", "F32", (2,), floats(1, -1), save=1),
        Array("model/b", "F32", (2,), floats(5, 6), save=2),
    ]
    reuse = save(tree, arrays, number=2, wrote={1: 1}, parent=[1, save_id(1)])
    key = reuse.body["files"]["key"][0]
    assert reuse.files[key] == one.files[key]
    title = "a chunk of the checkpoint before is referenced, not written"
    yield good("reuse", "7.3", title, KIND, _store(one, reuse), _expect(reuse))
    yield good(
        "reuse-deleted",
        "7.3.4",
        "the same after the other was deleted",
        KIND,
        _store(one, reuse) | {one.key: tombstone(1, id_=save_id(1))},
        _expect(reuse),
    )


def _names() -> Saved:
    keys = {"a": dict_node({"b": [3, 0]}), "a.b": [3, 1], "": [3, 2], "x#0": [3, 3],
            "__metadata__": [3, 4]}  # fmt: skip
    paths = ["a/b", "a.b", "", "x#0", "__metadata__"]
    arrays = [Array(f"model/{p}", "U8", (1,), bytes([i])) for i, p in enumerate(paths)]
    names = {"model/a.b": "a.b#~0", "model/": "#~0", "model/x#0": "x#0#~0",
             "model/__metadata__": "__metadata__#~0"}  # fmt: skip
    return save(dict_node({"model": dict_node(keys)}), arrays, names=names)


def _latest() -> Iterator[Vector]:
    one, two = _number(1), _number(2)
    third = _number(3)
    yield good("two", "8.2.6", "the highest number", KIND, _store(one, two), _expect(two))
    gap = _number(9)
    yield good("gap", "8.2.6", "numbers may have gaps", KIND, _store(one, gap), _expect(gap))
    deleted = {two.key: tombstone(2, id_=save_id(2))}
    yield good(
        "tombstone-last",
        "8.1",
        "the newest was deleted",
        KIND,
        _store(one, two) | deleted,
        _expect(one),
    )
    foreign = {
        "manifests/notes.txt": b"hello", "manifests/1-0.ckpt": b"", "data/README": b"",
        "manifests/00000000003-000.ckpt": b"x", "other/file": b"y",
    }  # fmt: skip
    title = "names that do not follow the grammar are ignored"
    yield good("foreign", "4.1.2", title, KIND, _store(one) | foreign, _expect(one))
    lease = sealed(
        {
            "kind": "save",
            "save": save_id(7),
            "number": 2,
            "revision": 0,
            "base": None,
            "reuse": [],
            "numbers": [],
            "ttl_seconds": 60,
            "time": TIME,
        }
    )
    crashed = {
        f"intents/{save_id(7)}": lease,
        f"data/{save_id(7)}-model-0.safetensors": b"torn",
    }
    yield good("crashed-save", "8.5", "intent and torn data of a dead writer", KIND,
               _store(one) | crashed, _expect(one))  # fmt: skip
    torn = {f"intents/{save_id(7)}": lease[:9]}
    yield good(
        "torn-intent",
        "8.3.4",
        "readers need no intents",
        KIND,
        _store(one) | torn,
        _expect(one),
    )
    yield bad("nothing", "8.2.6", "an empty store", KIND, {"ckptfmt.json": MARKER}, "not-found")
    gone = {one.key: tombstone(1, id_=save_id(1))}
    yield bad("all-deleted", "8.2.6", "only a tombstone", KIND, _store(one) | gone, "not-found")
    damaged = {third.key: _flip(third.encode(), -1)}
    yield bad(
        "all-damaged",
        "8.2.6",
        "only a damaged one",
        KIND,
        {"ckptfmt.json": MARKER} | damaged,
        "not-found",
    )
    title = "open by number: the damage itself is the error"
    yield bad(
        "number-damaged",
        "8.1.3",
        title,
        KIND,
        _store(one, third) | damaged,
        "integrity",
        operation=3,
    )
    yield bad(
        "number-deleted",
        "8.1.1",
        "open by number: deleted",
        KIND,
        _store(one, two) | deleted,
        "not-found",
        operation=2,
    )
    yield bad(
        "number-absent",
        "8.1.1",
        "open by number: never there",
        KIND,
        _store(one),
        "not-found",
        operation=2,
    )


def _revision(of: Saved, revision: int, *, drop: bool = True) -> Saved:
    """Return a revision of `wide()` without its optimizer, as *slim* makes it."""
    tree = of.body["tree"]
    keep = [key for key in tree[1] if not (drop and key == "optimizer")]
    node = dict_node({k: v for k, v in zip(tree[1], tree[2], strict=True) if k in keep})
    if drop:  # rows are numbered anew
        node[2][keep.index("lr")] = [3, 3]
    arrays = [a for a in of.arrays if not (drop and a.path.startswith("optimizer/"))]
    s = save(node, arrays, revision=revision, dropped=["optimizer"] if drop else [])
    s.summary["save"] = save_id(50 + revision)
    if drop:
        s.summary["dropped_at"] = {"optimizer": TIME + 1}
    return s


def _revisions() -> Iterator[Vector]:
    base = wide()
    slim, same = _revision(base, 2), _revision(base, 1, drop=False)
    old = {k: v for k, v in base.files.items() if "optimizer" not in k}
    files = _store(base, same, slim)
    for key in base.files.keys() - old.keys():
        del files[key]
    title = "the highest revision counts; data that only older ones need is gone"
    yield good("slim", "9.3", title, KIND, files, _expect(slim, dropped=["optimizer"]))
    deleted = files | {base.key: tombstone(1, id_=save_id(1))}
    yield bad(
        "slim-deleted", "8.1.1", "revision 000 is a tombstone", KIND, deleted, "not-found"
    )
    orphan = {k: v for k, v in files.items() if k != base.key}
    yield bad("slim-orphan", "8.1.1", "revision 000 is absent", KIND, orphan, "not-found")
    whole = _store(base, same, slim)
    broken = whole | {slim.key: _flip(slim.encode(), -1)}
    title = "a damaged revision: the one below counts, with a warning"
    yield good("revision-damaged", "8.2.6", title, KIND, broken, _expect(same, slim.key))
    blocked = whole | {slim.key: tombstone(1, 2, id_=None)}
    title = "a tombstone above revision 000 only blocks its name"
    yield good("revision-blocked", "8.1.2", title, KIND, blocked, _expect(same))
    zero = whole | {base.key: _flip(base.encode(), -1)}
    title = "revision 000 is damaged, but present: the number lives"
    yield good(
        "revision-zero-damaged",
        "8.1.1",
        title,
        KIND,
        zero,
        _expect(slim, dropped=["optimizer"]),
    )
    newer = whole | {slim.key: manifest(slim.summary, slim.body, version=2)}
    yield bad(
        "revision-newer", "8.2.6", "the highest revision is newer", KIND, newer, "unsupported"
    )


def _damage() -> Iterator[Vector]:
    one, two = _number(1), _number(2)
    data = two.encode()

    def passed(name: str, title: str, changed: bytes, clause: str = "8.2.6") -> Vector:
        files = _store(one, two) | {two.key: changed}
        return good(name, clause, title, KIND, files, _expect(one, two.key))

    for name, title, changed in (
        ("newest-empty", "an empty manifest", b""),
        ("newest-torn", "a torn manifest", data[:300]),
        ("newest-torn-header", "a manifest torn in its header", data[:100]),
        ("newest-zeros", "zeros as long as the manifest", bytes(len(data))),
        ("newest-flip-magic", "a flip in the magic", _flip(data, 0)),
        ("newest-flip-version", "a flip in the version is damage, not novelty", _flip(data, 8)),
        ("newest-flip-kind", "a flip in the kind does not make a tombstone", _flip(data, 10)),
        ("newest-flip-summary", "a flip in the summary", _flip(data, 150)),
        ("newest-flip-body", "a flip in the body", _flip(data, -5)),
        ("newest-extended", "bytes behind the manifest", data + b"\0"),
        ("newest-foreign", "another format under a manifest's name", b"PK\3\4" + bytes(200)),
    ):
        yield passed(name, title, changed)
    yield passed(
        "newest-swapped", "the manifest of number 1 under the name of 2", one.encode(), "6.2.3"
    )
    moved = manifest(two.summary | {"revision": 1, "save": save_id(8)}, two.body)
    yield passed(
        "newest-other-revision", "a revision 1 under the name of revision 0", moved, "6.2.3"
    )
    for name, title, changed in (
        ("newer-version", "version 2", manifest(two.summary, two.body, version=2)),
        ("newer-kind", "an unknown kind", manifest(two.summary, two.body, kind=3)),
        (
            "newer-feature",
            "an unknown read feature",
            manifest(
                two.summary | {"features": {"read": ["x-dev"], "write": [], "delete": []}}, b""
            ),
        ),
    ):
        files = _store(one, two) | {two.key: changed}
        yield bad(
            name, "8.2.6", f"{title}: no older checkpoint instead", KIND, files, "unsupported"
        )
    three = _number(3)
    files = _store(one, two, three) | {two.key: _flip(data, 150)}
    title = "an older damaged one does not matter"
    yield good("older-damaged", "8.2.6", title, KIND, files, _expect(three))


def _data() -> Iterator[Vector]:
    one, two = _number(1), _number(2)
    (key,) = two.files
    content = two.files[key]
    files = _store(one, two)
    gone = {k: v for k, v in files.items() if k != key}
    title = "the newest misses a data file: the one before, with a warning"
    yield good("data-missing", "6.7.1", title, KIND, gone, _expect(one, two.key))
    title = "the newest has a data file of another length"
    yield good(
        "data-short", "6.7.1", title, KIND, files | {key: content[:-1]}, _expect(one, two.key)
    )
    yield good(
        "data-long", "6.7.1", title, KIND, files | {key: content + b"\0"}, _expect(one, two.key)
    )
    yield bad(
        "data-missing-number", "8.2.7", "opened by number", KIND, gone, "integrity", operation=2
    )
    yield bad(
        "data-flip",
        "7.2.2",
        "a flipped bit in a chunk",
        KIND,
        files | {key: _flip(content, -1)},
        "integrity",
    )
    title = "a flipped bit in the header of a data file"
    yield bad(
        "data-flip-header", "6.7.2", title, KIND, files | {key: _flip(content, 30)}, "integrity"
    )
    title = "a flipped bit in the padding of the header"
    spaces = 8 + header_nbytes(content) - 1
    yield bad(
        "data-flip-padding",
        "6.7.2",
        title,
        KIND,
        files | {key: _flip(content, spaces)},
        "integrity",
    )
    (other,) = one.files
    yield bad("data-swapped", "7.2.2", "two data files of equal length are swapped", KIND,
              files | {key: one.files[other], other: content}, "integrity")  # fmt: skip
    same = _number(2)
    same.body["files"]["number"] = column("Q", [1])
    yield good(
        "data-number",
        "6.7",
        "written by another number",
        KIND,
        _store(one, same),
        _expect(same),
    )
    w = wide()
    packed = next(k for k in w.files if "optimizer" in k)
    title = "a flipped bit in an encoded chunk: found before it is decoded"
    yield bad(
        "data-flip-zstd",
        "7.2.2",
        title,
        KIND,
        _store(w) | {packed: _flip(w.files[packed], -1)},
        "integrity",
    )
    yield from _frames()
    yield from _planes()


def _restored(saved: Saved, old: bytes, data: bytes) -> dict[str, bytes]:
    """Return the store of a checkpoint whose only chunk is `data`, not `old`; digests hold."""
    (key,) = saved.files
    text = saved.files[key][8 : 8 + header_nbytes(saved.files[key])].rstrip()
    text = text.replace(str(len(old)).encode(), str(len(data)).encode())
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + data
    of = DIGESTS["xxh3-128"]
    saved.body["chunks"] |= {"nbytes": column("Q", [len(data)]), "digest": of(data)}
    saved.body["files"] |= {
        "nbytes": column("Q", [len(content)]), "header_nbytes": column("Q", [len(text)]),
        "header_digest": of(content[: 8 + len(text)]),
    }  # fmt: skip
    saved.files[key] = content
    return _store(saved)


def _frames() -> Iterator[Vector]:
    """Yield encoded chunks whose digest holds, but whose frame is wrong."""
    tree = dict_node({"model": dict_node({"w": [3, 0]})})

    def stored(data: bytes) -> dict[str, bytes]:
        array = Array("model/w", "U8", (64,), RAMP[:64], boxes=[Box((0,), (64,), "zstd")])
        return _restored(save(tree, [array]), zstd(RAMP[:64]), data)

    def wrong(name: str, title: str, data: bytes, code: str) -> Vector:
        return bad(f"frame-{name}", "7.1.4", title, KIND, stored(data), code)

    yield wrong("lies", "declares more than the box", zstd(RAMP[:64], declared=2**31), "format")
    yield wrong("shorter", "holds less than the box", zstd(RAMP[:63]), "format")
    yield wrong("longer", "holds more than the box", zstd(RAMP[:65]), "format")
    yield wrong("unsized", "no content size", zstd(RAMP[:64], size=False), "format")
    yield wrong(
        "understated", "holds more than it declares", zstd(RAMP[:65], declared=64), "integrity"
    )
    yield wrong("cut", "cut short", zstd(RAMP[:64])[:-1], "integrity")
    yield wrong("extended", "a byte behind it", zstd(RAMP[:64]) + b"\0", "integrity")
    yield wrong("two", "an empty frame behind it", zstd(RAMP[:64]) + zstd(b""), "integrity")
    yield wrong("foreign", "no frame at all", b"x" * 70, "integrity")


def _annotated() -> Iterator[Vector]:
    s = _number(1)
    s.summary |= {"metrics": {"loss": 0.5, "old": 1.0}, "tags": ["first", "kept"]}

    def note(n: int, *, of: str = save_id(1), **fields: Any) -> dict[str, bytes]:
        payload = {"number": 1, "id": of, "n": n, "time": TIME, "fields": fields}
        return {f"annotations/0000000001-{of}-{n:06d}.msgpack": sealed(payload)}

    files = (
        _store(s)
        | note(1, **{"metrics.bleu": 0.25, "tags.best": True, "metrics.loss": 0.75})
        | note(3, **{"metrics.old": None, "tags.first": None, "notes": "x"})
        | note(2, **{"metrics.old": 2.0, "metrics.bleu": 0.5})
        | note(9, of=save_id(99), **{"metrics.loss": 9.0})
    )
    expect = _expect(s, metrics={"loss": 0.75, "bleu": 0.5}, tags=["best", "kept"])
    yield good(
        "annotations", "8.6", "merged in order of n; another id is ignored", KIND, files, expect
    )
    key = f"annotations/0000000001-{save_id(1)}-000003.msgpack"
    files[key] = _flip(files[key], -1)
    expect = _expect(
        s, key, metrics={"loss": 0.75, "old": 2.0, "bleu": 0.5}, tags=["best", "first", "kept"]
    )
    yield good(
        "annotation-damaged",
        "8.6.5",
        "a damaged one is left out, with a warning",
        KIND,
        files,
        expect,
    )

    swapped = _store(s) | note(2, **{"metrics.loss": 9.0})
    key = f"annotations/0000000001-{save_id(1)}-000001.msgpack"
    swapped[key] = swapped[f"annotations/0000000001-{save_id(1)}-000002.msgpack"]
    expect = _expect(s, key, metrics={"loss": 9.0, "old": 1.0})
    title = "an annotation under the name of another"
    yield good("annotation-swapped", "8.6", title, KIND, swapped, expect)


def _markers() -> Iterator[Vector]:
    s = _number(1)
    files = s.store()
    yield good("marker-absent", "4.2.1", "no marker", KIND, files, _expect(s))
    right = {"format": "ckptfmt", "version": "1-dev", "more": []}
    for name, title, text, code in (
        ("unknown-field", "an unknown field", json.dumps(right).encode(), None),
        ("frozen", "version 1", json.dumps(right | {"version": 1}).encode(), None),
        ("version-2", "version 2", json.dumps(right | {"version": 2}).encode(), "unsupported"),
        (
            "version-text",
            "an unknown draft",
            json.dumps(right | {"version": "2-dev"}).encode(),
            "unsupported",
        ),
        (
            "version-bool",
            "true is no version",
            json.dumps(right | {"version": True}).encode(),
            "format",
        ),
        ("version-none", "no version", b'{"format": "ckptfmt"}', "format"),
        ("format", "another format", json.dumps(right | {"format": "zip"}).encode(), "format"),
        ("text", "no JSON", b"ckptfmt", "format"),
        ("list", "a list", b"[]", "format"),
        ("empty", "an empty file", b"", "format"),
    ):
        store = files | {"ckptfmt.json": text}
        if code is None:
            yield good(f"marker-{name}", "4.2", title, KIND, store, _expect(s))
        else:
            yield bad(f"marker-{name}", "4.2", title, KIND, store, code)


PLANES = {"read": ["planes+zstd"], "write": [], "delete": []}


def _planes() -> Iterator[Vector]:
    """Yield chunks of the codec that sorts bytes, right and wrong ones."""
    tree = dict_node({"model": dict_node({"w": [3, 0]})})
    # 64 numbers whose two high bytes are all the same
    items = b"".join(bytes((i, 3 * i % 256, 128, 63)) for i in range(64))

    def saved(*boxes: Box, dtype: str = "F32", data: bytes = items, **more: Any) -> Saved:
        n = len(data) // {"F32": 4, "F64": 8, "U8": 1}[dtype]
        array = Array("model/w", dtype, (n,), data, boxes=list(boxes))
        return save(tree, [array], **{"features": PLANES, **more})

    def whole(n: int) -> Box:
        return Box((0,), (n,), "planes+zstd")

    def right(name: str, title: str, s: Saved) -> Vector:
        return good(f"planes{name}", "7.1.5", title, KIND, _store(s), _expect(s))

    yield right("", "four planes, the last one a frame", saved(whole(64)))
    yield right("-8", "eight planes", saved(whole(32), dtype="F64"))
    yield right("-1", "one plane", saved(whole(64), dtype="U8", data=b"\7" * 64))
    two = saved(Box((0,), (40,), "planes+zstd"), Box((40,), (24,)))
    yield right("-and-raw", "beside a raw chunk", two)
    raw = planes(items, 4)
    for name, title, data in (
        ("-raw", "no plane is a frame", raw),
        ("-all", "several frames", planes(items, 4, {2, 3})),
        ("-other-width", "items of two bytes: as good", planes(items, 2)),
    ):
        s = saved(whole(64))
        store = _restored(s, planes(items, 4, {3}), data)
        yield good(f"planes{name}", "7.1.5", title, KIND, store, _expect(s))
    lacks = saved(whole(64), features=PLANES | {"read": []})
    title = "the codec in use is not among the features"
    yield bad("planes-no-feature", "9.2.1", title, "manifest", lacks.encode())

    def wrong(name: str, title: str, data: bytes, code: str = "format") -> Vector:
        store = _restored(saved(whole(64)), planes(items, 4, {3}), data)
        return bad(f"planes-{name}", "7.1.6", title, KIND, store, code)

    def lengths(*stored: int) -> bytes:
        return b"".join(n.to_bytes(8, "little") for n in stored)

    yield wrong("width-zero", "items of no bytes", b"\0" + raw[1:])
    yield wrong("width-3", "256 bytes are no items of 3", planes(items[:255], 3))
    s = saved(whole(68), dtype="U8", data=bytes(68))
    store = _restored(s, planes(bytes(68), 1, {0}), planes(bytes(68), 17))
    yield bad("planes-width-17", "7.1.6", "items of 17 bytes", KIND, store, "format")
    yield wrong("cut-head", "ends within the lengths", raw[:32])
    yield wrong("cut", "ends within the last plane", raw[:-1])
    yield wrong("extended", "a byte behind the last plane", raw + b"\0")
    long = b"\4" + lengths(65, 63, 64, 64) + raw[33:]
    yield wrong("long", "a plane of more bytes than items", long)
    huge = b"\4" + lengths(2**64 - 1, 65, 64, 64) + raw[33:]
    yield wrong("wraps", "lengths whose sum wraps around 2⁶⁴", huge)
    short = b"\4" + lengths(64, 64, 64, 63) + raw[33:-1]
    yield wrong("no-frame", "fewer bytes than items, and no frame", short, "integrity")
    none = b"\4" + lengths(64, 64, 64, 0) + raw[33:-64]
    yield wrong("none", "a plane of no bytes", none, "integrity")
    head, frame = b"\4" + lengths(64, 64, 64, 13) + raw[33:-64], zstd(b"\x3f" * 64)
    yield wrong("frame-lies", "a frame that declares more", head + zstd(b"\x3f" * 65))
    yield wrong("frame-flip", "a damaged frame", head + b"\0" + frame[1:], "integrity")
