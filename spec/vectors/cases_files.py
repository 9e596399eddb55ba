"""Vectors for data files and bundles (spec §5)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ckpt_bytes import (
    MIB,
    bundle_file,
    column,
    dict_node,
    frame,
    header,
    header_nbytes,
    pack,
    save,
    tombstone,
)
from samples import RAMP, empty, every_dtype, small, wide
from vectors import Vector, bad, found, good

FILE = "datafile-header"
BUNDLE = "bundle"


def cases() -> Iterator[Vector]:
    """Yield all vectors of this file."""
    yield from _headers()
    yield from _bad_headers()
    yield from _bundles()


def _text(rows: dict[str, Any]) -> bytes:
    return json.dumps({"__metadata__": {"format": "pt"}} | rows).encode()


def _row(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _headers() -> Iterator[Vector]:
    def right(name: str, title: str, rows: dict[str, Any], area: int) -> Vector:
        data = frame(_text(rows), RAMP[:area])
        entries = {k: [r["dtype"], r["shape"], *r["data_offsets"]] for k, r in rows.items()}
        expect = {"header_nbytes": header_nbytes(data), "entries": entries}
        return good(name, "5.1", title, FILE, data, expect)

    yield right("none", "no entry", {}, 0)
    two = {"weight": _row("F32", [2, 3], 0, 24), "bias#0": _row("U8", [8], 24, 32)}
    yield right("two", "a natural entry and a part", two, 32)
    yield right(
        "order", "entries in another order than their bytes", dict(reversed(two.items())), 32
    )
    yield right("zero", "an entry without elements", {"a": _row("F32", [0, 3], 0, 0)} | two, 32)
    yield right("scalar", "a 0-d entry", {"s": _row("F64", [], 0, 8)}, 8)
    yield right("names", "names with a dot, a quote, Greek and a suffix",
                {'fc.1"': _row("U8", [1], 0, 1), "ж": _row("U8", [1], 1, 2),
                 "#~0": _row("U8", [1], 2, 3)}, 3)  # fmt: skip
    content = {"a": _row("U8", [1], 0, 1)}
    data = frame(json.dumps(content).encode(), b"\7")
    expect = {"header_nbytes": header_nbytes(data), "entries": {"a": ["U8", [1], 0, 1]}}
    yield good(
        "plain", "5.1.3", "no metadata: other tools write such files", FILE, data, expect
    )


def _bad_headers() -> Iterator[Vector]:
    def wrong(name: str, title: str, data: bytes, code: str = "format") -> Vector:
        return bad(name, "5.1.5", title, FILE, data, code)

    def rows(
        name: str, title: str, content: dict[str, Any], area: int = 8, code: str = "format"
    ) -> Vector:
        return wrong(name, title, frame(_text(content), RAMP[:area]), code)

    one = {"a": _row("U8", [8], 0, 8)}
    good_one = frame(_text(one), RAMP[:8])
    yield wrong("nothing", "an empty file", b"", "integrity")
    yield wrong("seven", "seven bytes", good_one[:7], "integrity")
    yield wrong("cut-in-header", "ends inside the header", good_one[:40], "integrity")
    yield wrong("cut-in-data", "a byte is missing", good_one[:-1], "integrity")
    yield wrong("extended", "a byte behind the last entry", good_one + b"\0", "integrity")
    yield wrong(
        "length-lies",
        "N reaches beyond the file",
        frame(_text(one), RAMP[:8], declared=2**20),
        "integrity",
    )
    yield wrong("length-huge", "N is 2⁶⁴ − 1", frame(_text(one), RAMP[:8], declared=2**64 - 1))
    yield wrong(
        "length-limit", "N is above 64 MiB", frame(_text(one), RAMP[:8], declared=64 * MIB + 1)
    )
    yield wrong("not-json", "text that is not JSON", frame(b"{not json}", b""))
    yield wrong("not-utf8", "a header that is not UTF-8", frame(b'{"\xff": 1}', b""))
    yield wrong("list", "a list instead of an object", frame(b"[]", b""))
    yield wrong("space-first", "a header that does not begin with a brace", frame(b" {}", b""))
    yield wrong("deep", "deep nesting", frame(b'{"a":' + b"[" * 50_000, b""))
    yield wrong(
        "twice",
        "a name twice",
        frame(b'{"a":%s,"a":%s}' % ((json.dumps(one["a"]).encode(),) * 2), RAMP[:8]),
    )
    yield rows("dtype", "an unknown dtype", {"a": _row("F128", [1], 0, 8)})
    yield rows("hole", "a hole", one | {"b": _row("U8", [4], 12, 16)}, 16)
    yield rows("hole-first", "a hole at the front", {"a": _row("U8", [4], 4, 8)})
    yield rows("overlap", "an overlap", one | {"b": _row("U8", [8], 4, 12)}, 12)
    yield rows("backwards", "begin behind end", {"a": _row("U8", [8], 8, 0)})
    yield rows("shape", "shape × dtype is not the length", {"a": _row("F32", [3], 0, 8)})
    yield rows("shape-negative", "a negative extent", {"a": _row("U8", [-8], 0, 8)})
    yield rows("shape-float", "half an extent", {"a": _row("U8", [8.0], 0, 8)})
    yield rows("shape-wraps", "an absurd shape", {"a": _row("U8", [2**63, 2, 2**62], 0, 8)})
    yield rows("offset-negative", "a negative offset", {"a": _row("U8", [8], -8, 0)})
    yield rows("offset-bool", "true is no offset", {"a": _row("U8", [7], True, 8)})
    yield rows(
        "offsets-one", "one offset", {"a": {"dtype": "U8", "shape": [8], "data_offsets": [0]}}
    )
    yield rows("lacks-dtype", "no dtype", {"a": {"shape": [8], "data_offsets": [0, 8]}})
    yield rows("entry-list", "an entry that is a list", {"a": ["U8", [8], 0, 8]})
    yield wrong("metadata", "metadata that is no text", frame(b'{"__metadata__":{"a":1}}', b""))


def _bundles() -> Iterator[Vector]:
    for name, title, clause, base in (
        ("small", "two arrays and a number", "5.6", small()),
        ("empty", "no array, no file row", "5.6.2", empty()),
        ("wide", "sections, tied, split, encoded, empty and 0-d", "5.6.4", wide()),
        ("dtypes", "every dtype", "5.4.2", every_dtype()),
    ):
        s = save(base.body["tree"], base.arrays, bundle=True)
        yield good(name, clause, title, BUNDLE, bundle_file(s), found(s, data=True))
    s = save(small().body["tree"], small().arrays, bundle=True)
    data = bundle_file(s)

    def wrong(
        name: str, clause: str, title: str, changed: bytes, code: str = "format"
    ) -> Vector:
        return bad(name, clause, title, BUNDLE, changed, code)

    def table(
        name: str, clause: str, title: str, code: str = "format", **columns: Any
    ) -> Vector:
        c = s.copy()
        c.body["files"] |= columns
        return wrong(name, clause, title, bundle_file(c), code)

    text = base64.b64encode(s.encode()).decode()
    yield wrong(
        "missing", "5.6.5", "no manifest", frame(_text({"a": _row("U8", [8], 0, 8)}), RAMP[:8])
    )
    yield wrong(
        "not-base64", "5.6.5", "text that is not base64", bundle_file(s, text="*" + text[1:])
    )
    yield wrong(
        "unpadded",
        "5.6.5",
        "base64 without padding",
        bundle_file(s, text=text.rstrip("=") + "A"),
    )
    yield wrong(
        "line-break", "5.6.5", "a line break", bundle_file(s, text=text[:76] + "\n" + text[76:])
    )
    yield wrong("nothing", "5.6.5", "an empty manifest", bundle_file(s, text=""), "integrity")
    flipped = bytearray(s.encode())
    flipped[-3] ^= 1
    yield wrong(
        "flip-manifest",
        "6.1",
        "a damaged manifest",
        bundle_file(s, text=base64.b64encode(flipped).decode()),
        "integrity",
    )
    dead = base64.b64encode(tombstone(1, id_=None)).decode()
    yield wrong("tombstone", "5.6.5", "a tombstone", bundle_file(s, text=dead))
    yield wrong(
        "flip-data",
        "7.2.2",
        "a flipped bit in the data",
        data[:-1] + bytes([data[-1] ^ 1]),
        "integrity",
    )
    yield wrong("cut", "5.6.3", "the last byte is missing", data[:-1], "integrity")
    yield wrong("extended", "5.6.3", "a byte too many", data + b"\0", "integrity")
    yield table("key", "5.6.2", "a file beside the bundle", key=["data/x.safetensors"])
    yield table("header", "5.6.2", "a header length", header_nbytes=column("Q", [8]))
    yield table("digest", "5.6.2", "a header digest", header_digest=b"\1" * 16)
    yield table("number", "5.6.2", "the number of another", number=column("Q", [0]))
    yield table(
        "short",
        "5.6.3",
        "another length of the data area",
        "integrity",
        nbytes=column("Q", [40]),
    )
    two = {k: v * 2 for k, v in s.body["files"].items()} | {"key": ["", "data/x"]}
    yield table("two-files", "5.6.2", "two files", **two)
    store_manifest = base64.b64encode(small().encode()).decode()
    yield wrong(
        "of-store", "5.6.2", "the manifest of a store", bundle_file(s, text=store_manifest)
    )
    yield _too_large()


def _too_large() -> Vector:
    """Return a bundle whose manifest is right, but above 32 MiB; written with repetition."""
    s = save(dict_node({}), bundle=True)
    padding = 33 * MIB
    body = pack(s.body | {"padding": b"#"})[:-3]  # an unknown field is no fault
    body += b"\xc6" + padding.to_bytes(4, "big")
    first = pack(s.summary)
    room = -(128 + len(first) + len(body)) % 3  # base64 groups begin with the padding
    whole = body + bytes(padding)
    head = header(first, whole)
    prefix = base64.b64encode(head + first + body + bytes(room)).decode()
    full, rest = divmod(padding - room, 3)
    suffix = base64.b64encode(bytes(rest)).decode()
    start = '{"__metadata__":{"format":"pt","ckptfmt":"' + prefix
    end = suffix + '"}}'
    length = len(start) + 4 * full + len(end)
    end += " " * (-length % 8)
    length += -length % 8
    runs = [
        [(length.to_bytes(8, "little") + start.encode()).hex(), 1],
        [b"AAAA".hex(), full],
        [end.encode().hex(), 1],
    ]
    check = hashlib.sha256()
    for text, count in runs:
        check.update(bytes.fromhex(str(text)) * int(count))
    vector = bad(
        "too-large", "5.6.1", "a manifest of 33 MiB", BUNDLE, b"", sha256=check.hexdigest()
    )
    del vector.fields["hex"]
    vector.fields["runs"] = runs
    return vector
