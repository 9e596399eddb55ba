"""Refuse what spec/v1.md refuses although all digests hold: types, columns, boxes, paths.

Independent of the library, like reader.py, whose header and zstd code it uses. Every vector is
judged here with its exact code, so that the vectors themselves are known to be right.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import itertools
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np
import reader
from reader import Refused, need

ID = re.compile("[0-9a-f]{24}")
DATA_KEY = re.compile(r"data/(?!\.)[A-Za-z0-9._-]{1,200}")
NATURAL = {
    "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64",
    "F8_E4M3", "F8_E5M2",
}  # fmt: skip
KNOWN = NATURAL | {
    "C64", "C128", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E4M3B11FNUZ", "F8_E3M4",
    "F8_E4M3IEEE", "F6_E2M3", "F6_E3M2", "F4", "I4", "U4", "I2", "U2",
}  # fmt: skip
Ref = tuple[int, str]


def unpack(data: bytes, kind: type) -> Any:
    """One msgpack object of a type, by the rules of §2.3 and §2.4."""

    def pairs(items: list[tuple[Any, Any]]) -> dict[str, Any]:
        found = dict(items)
        strict = len(found) == len(items) and all(type(k) is str for k in found)
        need(strict, "format", "keys of a map")
        return found

    def ext(*_: object) -> None:
        need(False, "format", "ext type")

    try:
        value = msgpack.unpackb(data, object_pairs_hook=pairs, ext_hook=ext)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise Refused("format", error) from error
    return is_(value, kind)


def is_(value: object, *kinds: type) -> Any:
    """The value, if it is of exactly one of the types."""
    need(type(value) in kinds, "format", f"{value!r:.60} is none of {kinds}")
    return value


def uint(value: object, below: float = 2**64) -> int:
    """The value, if it is an unsigned integer."""
    need(0 <= is_(value, int) < below, "format", value)
    return int(is_(value, int))


def strings(value: object) -> list[str]:
    """The value, if it is a list of str."""
    return [is_(v, str) for v in is_(value, list)]


def id_(value: object) -> str:
    """The value, if it is a save id."""
    need(ID.fullmatch(is_(value, str)), "format", value)
    return str(value)


# --- nodes (§6.4) --------------------------------------------------------------


def walk(node: Any, path: str, refs: list[Ref] | None, rows: int, depth: int = 0) -> None:
    """Check a node; references to arrays are noted in `refs`, or refused if it is None."""
    if type(node) in (type(None), bool, int, float, str, bytes):
        return
    need(is_(node, list) and type(node[0]) is int and node[0] >= 0, "format", path)
    match node:
        case [0, list(keys), list(nodes)] if len(keys) == len(nodes) and depth < 100:
            need({type(k) for k in keys} <= {str, int}, "format", path)
            need(len({str(k) for k in keys}) == len(keys), "format", path)
            names = [str(k).replace("~", "~0").replace("/", "~1") for k in keys]
        case [1 | 2, list(nodes)] if depth < 100:
            names = [str(i) for i in range(len(nodes))]
        case _:
            leaf(node, path, refs, rows)
            return
    for name, child in zip(names, nodes, strict=True):
        below = f"{path}/{name}" if path else name
        # The empty root key is refused elsewhere; here it must not look like the root.
        need(len(below.encode()) <= 8192, "format", "path too long")
        walk(child, below, refs, rows, depth + 1)


def leaf(node: Any, path: str, refs: list[Ref] | None, rows: int) -> None:
    """Check a node with a tag that is no container's."""
    need(node[0] < 8, "unsupported", path)
    match node:
        case [3, int(row)] if refs is not None:
            uint(row, rows)
            refs.append((row, path))
        case [4, str(name), bytes(data)]:
            need(name in KNOWN, "unsupported", name)
            need(len(data) == reader.dtype(name).itemsize, "format", path)
            need(name != "BOOL" or data < b"\2", "format", path)
        case [5, bytes(data)] if data:
            number = int.from_bytes(data, "big", signed=True)
            bits = (number if number >= 0 else ~number).bit_length()
            need(len(data) == bits // 8 + 1, "format", "not the shortest")
            need(not -(2**63) <= number < 2**64, "format", "has a node of its own")
        case [6, float(), float()]:
            pass
        case [7, str(text)]:
            try:
                need(datetime.datetime.fromisoformat(text).isoformat() == text, "format", text)
            except ValueError as error:
                raise Refused("format", error) from error
        case _:
            raise Refused("format", path)


def plain(node: object, *kinds: object) -> None:
    """Check a plain node: nil, or a container of one of the given tags."""
    need(
        not kinds or node is None or is_(node, list)[:1] in [[k] for k in kinds], "format", node
    )
    walk(node, "", None, 0)


# --- tables (§6.5–6.7) ----------------------------------------------------------


def column(
    table: Mapping[str, Any], name: str, kind: str, count: int, below: float = 2**64
) -> list[int]:
    """A packed column of `count` values."""
    data = is_(table.get(name), bytes)
    need(len(data) == count * np.dtype(kind).itemsize, "format", name)
    return [uint(v, below) for v in np.frombuffer(data, kind).tolist()]


def digests(table: Mapping[str, Any], name: str, nbytes: int) -> bytes:
    """A column of digests."""
    data = is_(table.get(name), bytes)
    need(len(data) == nbytes, "format", name)
    return bytes(data)


def unique(table: Mapping[str, Any], name: str) -> list[str]:
    """A list of str, none of them twice."""
    found = strings(table.get(name))
    need(len(set(found)) == len(found), "format", name)
    return found


def tables(body: Mapping[str, Any], *, bundle: bool = False, part: bool = False) -> list[str]:
    """Check the three tables; return the paths."""
    a, c, f = (is_(body.get(k), dict) for k in ("arrays", "chunks", "files"))
    need(is_(body.get("digest"), str) in reader.DIGESTS, "unsupported", body["digest"])
    size = len(reader.DIGESTS[body["digest"]](b""))
    areas = files(f, size, bundle)
    paths, dtypes, codecs = unique(a, "path"), unique(a, "dtypes"), unique(c, "codecs")
    need(set(dtypes) <= KNOWN, "unsupported", dtypes)
    need(set(codecs) <= reader.DECODE.keys(), "unsupported", codecs)
    rows = len(paths)
    kinds, ndim = (
        column(a, "dtype", "<u2", rows, len(dtypes)),
        column(a, "ndim", "u1", rows, 65),
    )
    extents, counts = (
        iter(column(a, "shape", "<u8", sum(ndim))),
        column(a, "chunks", "<u4", rows),
    )
    total = sum(counts)
    need(total * 4 == len(is_(c.get("file"), bytes)), "format", "counts of chunks")
    file, codec = (
        column(c, "file", "<u4", total, len(areas)),
        column(c, "codec", "u1", total, len(codecs)),
    )
    offset, nbytes = column(c, "offset", "<u8", total), column(c, "nbytes", "<u8", total)
    boxed = sum(n * d for n, d in zip(counts, ndim, strict=True) if n > 1 or part)
    starts, shapes = (iter(column(c, k, "<u8", boxed)) for k in ("start", "shape"))
    digests(c, "digest", total * size)
    digests(c, "raw_digest", sum(codecs[k] != "raw" for k in codec) * size)
    ranges = sorted((file[k], offset[k], offset[k] + nbytes[k]) for k in range(total))
    need(all(end <= areas[k] for k, _, end in ranges), "format", "chunk beyond its file")
    apart = all(x[0] != y[0] or x[2] <= y[1] for x, y in itertools.pairwise(ranges))
    need(apart and all(nbytes), "format", "chunks share bytes, or have none")
    chunks = zip(nbytes, (codecs[k] for k in codec), strict=True)
    for row in range(rows):
        itemsize = reader.dtype(dtypes[kinds[row]]).itemsize
        shape = list(itertools.islice(extents, ndim[row]))
        need(math.prod(e for e in shape if e) * itemsize < 2**56, "format", shape)
        need(part or (counts[row] == 0) == (0 in shape), "format", "chunks of nothing")
        boxes = []
        for stored, name in itertools.islice(chunks, counts[row]):
            one = counts[row] == 1 and not part
            start = [0] * ndim[row] if one else list(itertools.islice(starts, ndim[row]))
            box = shape if one else list(itertools.islice(shapes, ndim[row]))
            length = math.prod(box) * itemsize
            need(length == stored if name == "raw" else length <= 2**30, "format", length)
            boxes.append((start, box))
        tiles(boxes, shape, part)
    return paths


def tiles(boxes: list[tuple[list[int], list[int]]], shape: list[int], part: bool) -> None:
    """Check that boxes lie inside the shape, apart, and leave no hole (§6.6.2)."""
    for start, box in boxes:
        ends = zip(start, box, shape, strict=True)
        need(all(e > 0 and s + e <= n for s, e, n in ends), "format", "box outside")
    for (s, e), (t, d) in itertools.combinations(boxes, 2):
        apart = any(a + b <= c or c + f <= a for a, b, c, f in zip(s, e, t, d, strict=True))
        need(apart, "format", "boxes overlap")
    whole = sum(math.prod(box) for _, box in boxes) == math.prod(shape)
    need(whole or part or not boxes, "format", "hole")


def files(f: Mapping[str, Any], size: int, bundle: bool) -> list[int]:
    """Check the file table; return the length of each data area."""
    keys = unique(f, "key")
    right = keys in ([], [""]) if bundle else all(DATA_KEY.fullmatch(k) for k in keys)
    need(right, "format", keys)
    nbytes, heads = (column(f, k, "<u8", len(keys)) for k in ("nbytes", "header_nbytes"))
    column(f, "number", "<u8", len(keys), 10**10)
    found = digests(f, "header_digest", len(keys) * size)
    need(not bundle or (not any(heads) and not any(found)), "format", "row of a bundle")
    need(all(n <= 64 * 2**20 for n in heads), "format", "header too large")
    areas = [n if bundle else n - 8 - h for n, h in zip(nbytes, heads, strict=True)]
    need(all(n >= 0 for n in areas), "format", "file shorter than its header")
    return areas


# --- summary and body (§6.3, §6.8) -----------------------------------------------


def metrics(value: object) -> None:
    """Check a map of metrics."""
    for v in is_(value, dict).values():
        is_(v, int, float, type(None))


def counters(value: object) -> None:
    """Check a map of counters."""
    for v in is_(value, dict).values():
        plain(v)


def tags(value: object) -> None:
    """Check a list of tags."""
    need(all(strings(value)), "format", "empty tag")


def sections(value: object) -> None:
    """Check the rows of sections."""
    for row in is_(value, list):
        need(len(is_(row, list)) == 3, "format", row)
        is_(row[0], str), uint(row[1]), uint(row[2])


MOVABLE: dict[str, Callable[[object], None]] = {
    "metrics": metrics, "counters": counters, "tags": tags, "sections": sections,
}  # fmt: skip


def summary(s: Mapping[str, Any], kind: int) -> None:
    """Check the fields of a summary or a tombstone."""
    uint(s.get("number"), 10**10), uint(s.get("revision"), 1000), uint(s.get("time"))
    need(s["number"] > 0, "format", "number 0")
    need("id" in s and ((s["id"] is None and kind == 2) or id_(s["id"])), "format", "id")
    id_(s.get("save"))
    for v in is_(s.get("writer"), dict).values():
        is_(v, str)
    features = is_(s.get("features"), dict)
    for operation in ("read", "write", "delete"):
        strings(features.get(operation))
    need(set(features["read"]) <= {"planes+zstd"}, "unsupported", features)
    if kind == 2:
        return
    for time in is_(s.get("dropped_at", {}), dict).values():
        uint(time)
    need((s["id"] == s["save"]) == (s["revision"] == 0), "format", "save")
    parent = is_(s.get("parent", ""), list, type(None))
    need(
        parent is None or (len(parent) == 2 and uint(parent[0]) and id_(parent[1])),
        "format",
        parent,
    )
    for name, check in MOVABLE.items():
        check(s.get(name))
    strings(s.get("dropped"))
    need(set(strings(s.get("moved"))) <= MOVABLE.keys(), "format", s["moved"])


def manifest(data: bytes, *, bundle: bool = False) -> None:
    """Check a manifest file, all but its key."""
    kind, first, raw = reader.head(data)
    s = unpack(first, dict)
    summary(s, kind)
    if kind == 2:
        need(not bundle, "format", "tombstone in a bundle")
        return
    body = unpack(raw, dict)
    for name in s["moved"]:
        MOVABLE[name](body.get(name))
        both = isinstance(body[name], dict) and body[name].keys() & s[name].keys()
        need(not both, "format", both)
    paths = tables(body, bundle=bundle)
    optional = {"planes+zstd"} & set(body["chunks"]["codecs"])
    need(optional <= set(s["features"]["read"]), "format", optional)
    wrote = np.frombuffer(body["files"]["number"], "<u8")
    need(not bundle or all(wrote == s["number"]), "format", "number in a bundle's row")
    need(uint(body.get("chunk_nbytes")), "format", "chunk_nbytes")
    for name, tag in {"hyperparameters": 0, "environment": 0, "architecture": 0,
                      "preprocessing": 0, "segments": 1}.items():  # fmt: skip
        plain(body.get(name, ""), tag)
    artifacts(is_(body.get("artifacts"), list), reader.DIGESTS[body["digest"]])
    history(is_(body.get("history"), dict), s["parent"])
    refs: list[Ref] = []
    tree, probe = is_(body.get("tree"), list), is_(body.get("probe", ""), list, type(None))
    need(tree[:1] == [0] and (probe is None or probe[:1] == [0]), "format", "root")
    walk(tree, "", refs, len(paths))
    need(all(type(k) is str and k for k in tree[1]), "format", "root keys")
    walk(probe, "~probe", refs, len(paths))
    first_at = dict(reversed(refs))
    need(
        list(dict.fromkeys(row for row, _ in refs)) == list(range(len(paths))), "format", "rows"
    )
    need([first_at[i] for i in range(len(paths))] == paths, "format", "paths")
    further = [[row, path] for row, path in refs if first_at[row] != path]
    listed = is_(body["arrays"].get("aliases"), list)
    for pair in listed:
        need(len(is_(pair, list)) == 2 and is_(pair[1], str), "format", pair)
        uint(pair[0], len(paths))
    need(sorted(listed) == sorted(further), "format", "aliases")


def artifacts(rows: list[Any], digest: Callable[[bytes], bytes]) -> None:
    """Check names, lengths and digests (§6.8.1)."""
    for row in rows:
        need(len(is_(row, list)) == 4, "format", row)
        name, nbytes, stored, data = row
        text = is_(name, str)
        need(1 <= len(text.encode()) <= 255 and not text.startswith(" "), "format", text)
        need(not re.search(r'[/\\:*?"<>|\x00-\x1f\x7f]|[ .]\Z', text), "format", text)
        need(uint(nbytes) == len(is_(data, bytes)) and digest(data) == stored, "format", text)
    need(len({row[0] for row in rows}) == len(rows), "format", "name twice")


def history(h: Mapping[str, Any], parent: list[Any] | None) -> None:
    """Check the columns and their last row (§6.8.2)."""
    columns = [is_(h.get(k), list) for k in ("number", "id", "seen", "time", "metrics")]
    by = is_(h.get("process", [None] * len(columns[0])), list)
    need(len({len(c) for c in (*columns, by)}) == 1, "format", "columns of different length")
    need(all(p is None or is_(p, str) for p in by), "format", "process")
    for number, name, seen, time, row in zip(*columns, strict=True):
        uint(number), id_(name), is_(seen, int, type(None)), is_(time, int), metrics(row)
    need(len(set(h["id"])) == len(h["id"]), "format", "id twice")
    need(not h["id"] or [h["number"][-1], h["id"][-1]] == parent, "format", "last row")


# --- the other kinds --------------------------------------------------------------


def node(data: bytes, rows: int) -> None:
    """Check the msgpack text of a node."""
    walk(unpack(data, list), "", [], rows)


def record(kind: str, key: str, data: bytes) -> Any:
    """Check a sealed record (§8.3, §8.6, §8.7); return its payload."""
    try:
        digest, stored = msgpack.unpackb(data)
        holds = digest == hashlib.sha256(is_(stored, bytes)).digest()
    except (ValueError, TypeError, msgpack.UnpackException, Refused) as error:
        raise Refused("integrity", error) from error
    need(holds, "integrity", "seal")
    payload = unpack(stored, dict)
    {"annotation": annotation, "intent": intent, "part": part}[kind](payload, key)
    return payload


def annotation(p: Mapping[str, Any], key: str) -> None:
    """Check an annotation."""
    uint(p.get("number"), 10**10), uint(p.get("n"), 10**6), uint(p.get("time"))
    name = f"annotations/{p['number']:010d}-{id_(p.get('id'))}-{p['n']:06d}.msgpack"
    need(name == key, "integrity", name)
    counters(p.get("fields"))


def intent(p: Mapping[str, Any], key: str) -> None:
    """Check an intent."""
    kinds = ("save", "copy", "retention")
    need(is_(p.get("kind"), str) in kinds, "unsupported", p["kind"])
    need(f"intents/{id_(p.get('save'))}" == key, "integrity", p["save"])
    uint(p.get("ttl_seconds"))
    if p["kind"] == "retention":
        for number in is_(p.get("numbers"), list):
            uint(number, 10**10)
        return
    uint(p.get("number"), 10**10), uint(p.get("revision"), 1000)
    base = is_(p.get("base", ""), list, type(None))
    need(base is None or len(base) == 2, "format", base)
    for number in base or ():
        uint(number)
    need(all(DATA_KEY.fullmatch(k) for k in strings(p.get("reuse"))), "format", p["reuse"])


def part(p: Mapping[str, Any], key: str) -> None:
    """Check the rows of one rank."""
    need(is_(p.get("kind"), str) in ("rows", "failed"), "unsupported", p["kind"])
    need(uint(p.get("rank"), 10**6) < uint(p.get("world")), "format", "rank")
    need(f"intents/{id_(p.get('save'))}.{p['rank']}" == key, "integrity", p["save"])
    if p["kind"] == "failed":
        is_(p.get("reason"), str)
        return
    tables(p, part=True)


def datafile(data: bytes) -> dict[str, list[Any]]:
    """Check a safetensors file (§5.1); return its entries."""
    need(len(data) >= 8, "integrity", "short")
    (n,) = struct.unpack_from("<Q", data)
    need(n <= 64 * 2**20, "format", n)
    need(8 + n <= len(data), "integrity", "ends inside its header")
    need(data[8:9] == b"{", "format", "first byte")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(items)) == len(items), "format", "a name twice")
        return dict(items)

    try:
        rows = json.loads(data[8 : 8 + n].decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise Refused("format", error) from error
    for text in is_(rows.pop("__metadata__", {}), dict).values():
        is_(text, str)
    found = {}
    for name, row in rows.items():
        dtype, shape, ends = (is_(row, dict).get(k) for k in ("dtype", "shape", "data_offsets"))
        need(is_(dtype, str) in NATURAL, "format", dtype)
        need(len(is_(ends, list)) == 2, "format", ends)
        nbytes = math.prod(uint(e) for e in is_(shape, list)) * reader.dtype(dtype).itemsize
        need(uint(ends[1]) - uint(ends[0]) == nbytes, "format", name)
        found[name] = [dtype, shape, *ends]
    end = 0
    for _, _, begin, after in sorted(found.values(), key=lambda e: e[2:]):
        need(begin == end, "format", "hole or overlap")
        end = after
    need(end == len(data) - 8 - n, "integrity", "length of the data area")
    return found


def bundle(data: bytes) -> bytes:
    """Check a bundle and its manifest (§5.6); return the manifest."""
    n = struct.unpack_from("<Q", data)[0]
    need(n <= 64 * 2**20, "format", n)
    text = json.loads(data[8 : 8 + n]).get("__metadata__", {}).get("ckptfmt")
    need(type(text) is str and len(text) <= 4 * math.ceil(32 * 2**20 / 3), "format", "manifest")
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused("format", error) from error
    manifest(found, bundle=True)
    return found
