"""Vectors for the manifest's frame, summary and body fields (spec §6.1–6.3, §6.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ckpt_bytes import (
    DIGESTS,
    MIB,
    compressed,
    dict_node,
    identity,
    manifest,
    pack,
    save_id,
    tombstone,
    zstd,
)
from samples import empty, small, wide
from vectors import Vector, bad, found, good

KIND = "manifest"
_digest = DIGESTS["xxh3-128"]


def cases() -> Iterator[Vector]:
    """Yield all vectors of this file."""
    yield from _header()
    yield from _frame()
    yield from _tombstone()
    yield from _summary()
    yield from _features()
    yield from _moved()
    yield from _body()
    yield from _artifacts()
    yield from _history()


def _header() -> Iterator[Vector]:
    s = small()
    yield good("small", "6", "two arrays and a number", KIND, s.encode(), found(s))
    e = empty()
    yield good("empty", "6", "no array, no file", KIND, e.encode(), found(e))
    w = wide()
    yield good("wide", "6.6", "tied, split, encoded, empty and 0-d", KIND, w.encode(), found(w))

    def header(name: str, clause: str, title: str, code: str, **wrong: Any) -> Vector:
        return bad(name, clause, title, KIND, manifest(s.summary, s.body, **wrong), code)

    yield header("magic", "6.1", "another magic", "format", magic=b"\x89PNG\r\n\x1a\n")
    yield header("version-0", "6.1", "version 0", "unsupported", version=0)
    yield header("version-2", "6.1", "version 2", "unsupported", version=2)
    yield header("kind-3", "6.1", "an unknown kind", "unsupported", kind=3)
    yield header("encoding-2", "6.1", "an unknown encoding", "unsupported", encoding=2)
    yield header(
        "reserved-12", "6.1", "reserved bytes in use", "unsupported", zero12=b"\1\0\0\0"
    )
    yield header(
        "reserved-48", "6.1", "reserved bytes in use", "unsupported", zero48=b"\1" + bytes(15)
    )
    yield header("check-zero", "6.1", "no header check", "integrity", check=bytes(8))
    yield header("check-wrong", "6.1", "a wrong header check", "integrity", check=b"\1" * 8)
    yield header(
        "summary-length-huge", "6.1.3", "above 48 MiB", "format", summary_nbytes=48 * MIB
    )
    yield header(
        "summary-length-overflow", "6.1.3", "sum beyond 64 bits", "format",
        summary_nbytes=2**64 - 1, body_nbytes=130,
    )  # fmt: skip
    yield header("body-length-huge", "6.1.3", "above 48 MiB", "format", body_nbytes=48 * MIB)
    yield header(
        "raw-length-differs", "6.1.3", "encoding 0, two lengths", "format", raw_nbytes=1
    )
    length = len(pack(s.summary))
    yield header(
        "summary-length-short", "6.1.4", "a summary length that lies", "integrity",
        summary_nbytes=length - 1,
    )  # fmt: skip
    yield header(
        "summary-length-shifted", "6.1.1", "the sum holds, the border lies", "integrity",
        summary_nbytes=length - 1, body_nbytes=len(pack(s.body)) + 1,
        raw_nbytes=len(pack(s.body)) + 1,
    )  # fmt: skip


def _frame() -> Iterator[Vector]:
    s = small()
    data = s.encode()

    def cut(name: str, title: str, changed: bytes, code: str = "integrity") -> Vector:
        return bad(name, "6.1.1", title, KIND, changed, code)

    def flip(name: str, title: str, at: int, code: str = "integrity") -> Vector:
        return cut(name, title, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], code)

    yield cut("nothing", "an empty file", b"")
    yield cut("cut-in-magic", "four bytes of the magic", data[:4])
    yield cut("foreign-short", "four bytes of another format", b"PK\3\4", "format")
    yield cut("foreign-long", "another format", b"{" + b" " * 200 + b"}", "format")
    yield cut("cut-in-header", "127 bytes", data[:127])
    yield cut("cut-after-header", "128 bytes", data[:128])
    yield cut("cut-in-summary", "ends inside the summary", data[:200])
    yield cut("cut-in-body", "the last byte is missing", data[:-1])
    yield cut("extended", "one byte behind the body", data + b"\0")
    yield cut("zeros", "as long as it should be, but zeros", bytes(len(data)), "format")
    yield flip("flip-magic", "a flipped bit in the magic", 1, "format")
    yield flip("flip-version", "a flipped bit in the version is damage, not novelty", 8)
    yield flip("flip-kind", "a flipped bit in the kind", 10)
    yield flip("flip-length", "a flipped bit in a length", 18)
    yield flip("flip-digest", "a flipped bit in a digest", 70)
    yield flip("flip-summary", "a flipped bit in the summary", 140)
    yield flip("flip-body", "a flipped bit in the body", len(data) - 9)
    packed = compressed(s.summary, s.body)
    expect = found(s) | {"identity": identity(packed)}
    yield good("zstd-body", "6.1.5", "a zstd body", KIND, packed, expect)
    raw = pack(s.body)

    def frame(
        name: str, title: str, stored: bytes, code: str, nbytes: int = len(raw)
    ) -> Vector:
        data = manifest(s.summary, stored, encoding=1, raw_nbytes=nbytes)
        return bad(name, "7.1.4", title, KIND, data, code)

    yield frame("zstd-body-lies", "raw length in the header lies", zstd(raw), "format", 99)
    yield frame(
        "zstd-body-bomb", "the frame declares 4 GiB", zstd(raw, declared=2**32 - 1), "format"
    )
    yield frame("zstd-body-unsized", "no content size", zstd(raw, size=False), "format")
    yield frame("zstd-body-cut", "a frame cut short", zstd(raw)[:-1], "integrity")
    yield frame("zstd-body-extended", "a byte behind the frame", zstd(raw) + b"\0", "integrity")
    yield frame("zstd-body-two", "two frames", zstd(raw) * 2, "integrity")
    too_much = manifest(s.summary, zstd(raw), encoding=1, raw_nbytes=256 * MIB + 1)
    yield bad("zstd-body-huge", "6.1.3", "declares more than 256 MiB", KIND, too_much)
    most = MIB + 64 * len(zstd(raw))
    bomb = manifest(s.summary, zstd(raw), encoding=1, raw_nbytes=most + 1)
    yield bad("zstd-body-expands", "6.1.3", "more than 64 times its length", KIND, bomb)
    lies = manifest(s.summary, zstd(raw), encoding=1, raw_nbytes=most)
    yield bad("zstd-body-ratio", "6.1.5", "64 times its length, which lies", KIND, lies)


def _tombstone() -> Iterator[Vector]:
    def expect(data: bytes, id_: str | None, revision: int = 0) -> dict[str, Any]:
        return {
            "number": 1, "revision": revision, "id": id_, "kind": "tombstone",
            "identity": identity(data),
        }  # fmt: skip

    data = tombstone(1, id_=save_id(1))
    yield good("tombstone", "6.3.7", "a deleted number", KIND, data, expect(data, save_id(1)))
    data = tombstone(1, 2, id_=None, extra="kept")
    title = "a broken lease of a revision, and an unknown field"
    yield good("tombstone-nil", "6.3.7", title, KIND, data, expect(data, None, 2))
    for field in ("number", "revision", "id", "save", "time", "writer", "features"):
        fields = dict(_tombstone_fields())
        del fields[field]
        yield bad(
            f"tombstone-lacks-{field}", "6.3.7", f"no {field}", KIND,
            manifest(fields, b"", kind=2),
        )  # fmt: skip
    body = manifest(_tombstone_fields(), b"\x80", kind=2)
    yield bad("tombstone-body", "6.1.3", "a tombstone with a body", KIND, body)


def _tombstone_fields() -> dict[str, Any]:
    s = empty().summary
    names = ("number", "revision", "id", "save", "time", "writer", "features")
    return {name: s[name] for name in names}


def _summary() -> Iterator[Vector]:
    s = small()
    for field in s.summary:
        changed = s.copy()
        del changed.summary[field]
        yield bad(f"summary-lacks-{field}", "6.3.1", f"no {field}", KIND, changed.encode())

    def wrong(name: str, clause: str, title: str, **fields: Any) -> Vector:
        data = manifest(s.summary | fields, s.body)
        return bad(f"summary-{name}", clause, title, KIND, data)

    yield wrong("number-0", "4.1.1", "numbers begin at 1", number=0)
    yield wrong("number-high", "4.1.1", "eleven digits", number=10**10)
    yield wrong("number-bool", "6.3.2", "true is no number", number=True)
    yield wrong("number-float", "6.3", "a float is no number", number=1.0)
    yield wrong("revision-high", "4.1.1", "four digits", revision=1000, save=save_id(2))
    yield wrong("revision-negative", "6.3", "a negative revision", revision=-1)
    yield wrong("id-upper", "6.3", "upper-case digits", id="A" * 24, save="A" * 24)
    yield wrong("id-short", "6.3", "23 digits", id="a" * 23, save="a" * 23)
    yield wrong("id-nil", "6.3", "only a tombstone may have none", id=None)
    yield wrong("id-not-save", "6.3", "revision 0 of another save", save=save_id(2))
    yield wrong("save-is-id", "6.3", "revision 1 by the save of revision 0", revision=1)
    yield wrong("parent-short", "6.3", "a parent without id", parent=[1])
    yield wrong("parent-id", "6.3", "a parent whose id is none", parent=[1, "x"])
    yield wrong("time-negative", "6.3", "before 1970", time=-1)
    yield wrong("counters-array", "6.4", "an array among the counters", counters={"a": [3, 0]})
    yield wrong("metrics-str", "6.3", "text is no metric", metrics={"loss": "low"})
    yield wrong("metrics-bool", "6.3.2", "true is no metric", metrics={"loss": True})
    yield wrong("metrics-key", "2.4", "a key that is no str", metrics={1: 0.5})
    yield wrong("tags-int", "6.3", "a number is no tag", tags=[1])
    yield wrong("tags-empty", "6.3", "an empty tag", tags=[""])
    yield wrong("sections-row", "6.3.4", "a row of two", sections=[["model", 1]])
    yield wrong("sections-negative", "6.3.4", "negative", sections=[["model", -1, 1]])
    yield wrong("features-list", "6.3", "features by number", features=[])
    yield wrong("features-int", "6.3", "a feature that is no str", features={"read": [1]})
    slim = {"dropped": ["optimizer"]}
    yield wrong("dropped-at-list", "6.3", "times without names", **slim, dropped_at=[1])
    yield wrong("dropped-at-low", "6.3", "a time before 1970", **slim, dropped_at={"x": -1})
    yield wrong("dropped-at-str", "6.3", "a time that is text", **slim, dropped_at={"x": "1"})
    yield wrong("writer-int", "6.3", "a version that is no str", writer={"version": 1})

    def right(name: str, clause: str, title: str, **fields: Any) -> Vector:
        c = s.copy()
        c.summary |= fields
        return good(f"summary-{name}", clause, title, KIND, c.encode(), found(c))

    yield right(
        "parent-foreign", "6.8.3", "a parent of another store, with a higher number",
        parent=[120, save_id(120)],
    )  # fmt: skip
    yield right("revision", "9.3.1", "revision 1", revision=1, save=save_id(2))
    yield right("unknown-field", "9.1.2", "a later addition", novelty={"a": [1, b"x"]})
    yield right(
        "metrics-odd", "6.3", "nil, NaN and a 64-bit int",
        metrics={"a": None, "b": float("nan"), "c": 2**63},
    )  # fmt: skip
    yield right("number-highest", "4.1.1", "ten nines", number=10**10 - 1)
    yield right(
        "counters-tree", "6.3", "a tree of counters", counters={"progress": dict_node({"k": 3})}
    )
    body = pack(s.body)
    first = pack(s.summary)
    twice = b"\xde" + (len(s.summary) + 1).to_bytes(2, "big")
    assert first[0] == 0x80 | len(s.summary) or first[0] == 0xDE

    def text(name: str, title: str, data: bytes) -> Vector:
        return bad(f"summary-{name}", "2.4", title, KIND, manifest(data, body))

    content = first[1:] if first[0] != 0xDE else first[3:]
    yield text("key-twice", "a key twice", twice + content + pack("number") + pack(1))
    yield text("extended", "a byte behind the map", first + b"\xc0")
    yield text("cut", "a map cut short", first[:-1])
    yield text("list", "a list instead of a map", pack(list(s.summary)))
    yield text("ext", "an ext type", twice + content + pack("x") + b"\xd4\x01\x00")
    yield text("not-utf8", "a str that is not UTF-8", twice + content + pack("x") + b"\xa1\xff")
    yield text("bin-key", "a key that is a bin", twice + content + pack(b"x") + pack(1))
    yield text("empty", "nothing", b"")


def _features() -> Iterator[Vector]:
    s = small()

    def with_(**features: Any) -> bytes:
        return manifest(s.summary | {"features": s.summary["features"] | features}, s.body)

    def expect(data: bytes) -> dict[str, Any]:
        return found(s) | {"identity": identity(data)}

    yield bad(
        "feature-read", "6.3.3", "an unknown read feature", KIND, with_(read=["x-dev"]),
        "unsupported",
    )  # fmt: skip
    data = manifest(
        s.summary | {"features": {"read": ["x-dev"], "write": [], "delete": []}}, b"\xc1"
    )
    yield bad(
        "feature-read-body", "6.3.3", "refused before the body is parsed", KIND, data,
        "unsupported",
    )  # fmt: skip
    for operation in ("write", "delete"):
        data = with_(**{operation: ["x-dev"]})
        title = f"an unknown {operation} feature does not hinder reading"
        yield good(f"feature-{operation}", "9.2", title, KIND, data, expect(data))
    data = with_(repair=["x-dev"])
    title = "an unknown operation is ignored"
    yield good("feature-operation", "9.2.3", title, KIND, data, expect(data))


def _moved() -> Iterator[Vector]:
    s = small()
    s.summary |= {"moved": ["metrics", "tags", "counters"], "tags": ["a"]}
    s.body |= {"metrics": {"accuracy": 0.5}, "tags": ["b"], "counters": {"long": "x" * 99}}
    expect = found(s) | {
        "metrics": {"val_loss": 0.25, "accuracy": 0.5},
        "tags": ["a", "b"],
        "counters": ["seen", "long"],
    }
    title = "the rest of metrics, tags and counters is in the body"
    yield good("moved", "6.3.5", title, KIND, s.encode(), expect)

    def wrong(
        name: str, title: str, change: Callable[[dict[str, Any], dict[str, Any]], object]
    ) -> Vector:
        c = s.copy()
        change(c.summary, c.body)
        return bad(f"moved-{name}", "6.3.5", title, KIND, c.encode())

    yield wrong("absent", "moved, but not in the body", lambda _, b: b.pop("tags"))
    yield wrong("twice", "in both parts", lambda _, b: b["metrics"].update(val_loss=1.0))
    yield wrong("unknown", "a field that cannot move", lambda h, _: h["moved"].append("id"))
    yield wrong("type", "of another type", lambda _, b: b.update(metrics=[]))


def _body() -> Iterator[Vector]:
    s = small()
    for field in s.body:
        changed = s.copy()
        del changed.body[field]
        yield bad(f"body-lacks-{field}", "6.8", f"no {field}", KIND, changed.encode())

    def wrong(
        name: str, clause: str, title: str, code: str = "format", **fields: Any
    ) -> Vector:
        data = manifest(s.summary, s.body | fields)
        return bad(f"body-{name}", clause, title, KIND, data, code)

    yield wrong("digest-unknown", "7.2", "an unknown digest", "unsupported", digest="crc32")
    yield wrong("digest-type", "6.8", "a digest without name", digest=7)
    yield wrong("chunk-size-0", "6.8", "chunks of nothing", chunk_nbytes=0)
    yield wrong("chunk-size-bool", "6.3.2", "true is no size", chunk_nbytes=True)
    yield wrong("arrays-list", "6.8", "a list of arrays", arrays=[])
    yield wrong("environment-list", "6.8", "neither nil nor a dict", environment=[1, []])
    yield wrong(
        "hyperparameters-array", "6.4", "an array outside tree and probe",
        hyperparameters=dict_node({"w": [3, 0]}),
    )  # fmt: skip
    yield wrong("segments-dict", "6.8", "segments are a list", segments=dict_node({}))
    full = s.copy()
    full.body |= {
        "hyperparameters": dict_node({"lr": 1e-3, "betas": [2, [0.9, 0.999]]}),
        "environment": dict_node({"python": "3.11.9", "packages": dict_node({"numpy": "2.0"})}),
        "architecture": dict_node({"framework": "none", "config": [1, [6, 2]]}),
        "preprocessing": dict_node({"mean": [1, [0.5]], "vocabulary": "vocab.txt"}),
        "segments": [1, [dict_node({"from_seen": 0, "global_batch": 8, "dataset_size": 100,
                                    "dataset": None, "world": 1, "accumulation": 1})]],
        "novelty": [1, 2],
    }  # fmt: skip
    title = "all metadata, and a later addition"
    yield good("body-full", "6.8", title, KIND, full.encode(), found(full))
    raw = pack(s.body)
    twice = b"\xde" + (len(s.body) + 1).to_bytes(2, "big") + raw[3 if raw[0] == 0xDE else 1 :]

    def text(name: str, title: str, data: bytes) -> Vector:
        return bad(f"body-{name}", "2.4", title, KIND, manifest(s.summary, data))

    yield text("key-twice", "a key twice", twice + pack("digest") + pack("sha256"))
    yield text("extended", "a byte behind the map", raw + b"\xc0")
    yield text("cut", "a map cut short", raw[:-1])
    yield text("list", "a list instead of a map", pack([s.body]))
    yield text("length-lies", "an array of 2³² − 1 items in five bytes", b"\xdd" + b"\xff" * 4)
    yield text("reserved-type", "the type that msgpack never uses", b"\xc1")
    yield text("empty", "nothing", b"")


def _artifacts() -> Iterator[Vector]:
    def row(name: str, data: bytes = b"hello") -> list[Any]:
        return [name, len(data), _digest(data), data]

    s = small()

    def checkpoint(*rows: list[Any]) -> bytes:
        return manifest(s.summary, s.body | {"artifacts": list(rows)})

    data = checkpoint(row("vocab.txt"), row("größe 1.json", b""), row(".hidden"))
    expect = found(s) | {
        "identity": identity(data),
        "artifacts": {
            "vocab.txt": b"hello".hex(),
            "größe 1.json": "",
            ".hidden": b"hello".hex(),
        },
    }
    yield good("artifacts", "6.8.1", "three small files", KIND, data, expect)

    def wrong(name: str, title: str, *rows: list[Any]) -> Vector:
        return bad(f"artifacts-{name}", "6.8.1", title, KIND, checkpoint(*rows))

    for name, text in {
        "escape": "../vocab.txt", "absolute": "/etc/passwd", "dots": "..", "dot": ".",
        "backslash": "a\\b", "drive": "c:x", "zero": "a\0b", "empty": "", "long": "x" * 256,
        "space-first": " a", "space-last": "a ", "dot-last": "a.",
    }.items():  # fmt: skip
        yield wrong(name, f"the name {text[:20]!r}", row(text))
    yield wrong("twice", "one name twice", row("a"), row("a", b"other"))
    yield wrong("length", "a length that lies", ["a", 4, _digest(b"hello"), b"hello"])
    yield wrong("digest", "a digest that does not hold", ["a", 5, _digest(b"x"), b"hello"])
    yield wrong("short", "a row of three", ["a", 5, _digest(b"hello")])


def _history() -> Iterator[Vector]:
    s = small()
    rows: dict[str, list[Any]] = {
        "number": [57, 1, 2],
        "id": [save_id(57), save_id(21), save_id(22)],
        "seen": [900, None, 1000],
        "time": [1, 2, 3],
        "metrics": [{"val_loss": 0.5}, {}, {"val_loss": None}],
    }
    s.summary |= {"number": 3, "parent": [2, save_id(22)]}
    s.body["history"] = rows
    title = "three ancestors, one of another store"
    yield good("history", "6.8.2", title, KIND, s.encode(), found(s))

    process = [None, save_id(21), save_id(21)]
    known = s.copy()
    known.summary |= {"writer": known.summary["writer"] | {"process": save_id(21)}}
    known.body["history"] = rows | {"process": process}
    title = "which process saved an ancestor, where that is known"
    yield good("history-process", "6.8.2", title, KIND, known.encode(), found(known))

    def wrong(name: str, title: str, clause: str = "6.8.2", **columns: Any) -> Vector:
        c = s.copy()
        c.body["history"] |= columns
        return bad(f"history-{name}", clause, title, KIND, c.encode())

    yield wrong("short", "columns of different length", seen=[900, 1000])
    yield wrong("id", "an id that is none", id=["x", save_id(21), save_id(22)])
    yield wrong("id-twice", "an id twice", "6.8.3", id=[save_id(22), save_id(21), save_id(22)])
    yield wrong("process-short", "a column of another length", process=process[1:])
    yield wrong("process-int", "a number is no process", process=[None, 1, None])
    yield wrong("process-empty", "an empty name of a process", process=[None, "", None])
    yield wrong("seen-str", "text is no count", seen=["900", 1, 2])
    yield wrong("metrics-str", "text is no metric", metrics=[{"a": "b"}, {}, {}])
    yield wrong("last", "the last row is not the parent", id=[save_id(n) for n in (57, 22, 21)])
