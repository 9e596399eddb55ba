"""An independent reader of ckptfmt checkpoints, written from spec/v1.md alone.

`load(place)` takes the folder of a store, or a bundle file, and returns the newest checkpoint
as (tree, {path: array}); the headers, every length and every digest are checked on the way.
What it leaves out is in checker.py: refusing what is wrong although all digests hold.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import itertools
import json
import math
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # only for the types that NumPy lacks
import msgpack
import numpy as np
import xxhash
import zstandard

DIGESTS = {"xxh3-128": xxhash.xxh3_128_digest, "sha256": lambda b: hashlib.sha256(b).digest()}
NUMPY = {f"{k}{8 * n}": f"<{k.lower()}{n}" for k in "UIFC" for n in (1, 2, 4, 8, 16)}
NAMES = {
    "BF16": "bfloat16", "F4": "float4_e2m1fn", "F6_E2M3": "float6_e2m3fn",
    "F6_E3M2": "float6_e3m2fn", "F8_E4M3": "float8_e4m3fn", "F8_E4M3IEEE": "float8_e4m3",
    "F8_E8M0": "float8_e8m0fnu", "I4": "int4", "U4": "uint4", "I2": "int2", "U2": "uint2",
}  # fmt: skip


class Refused(Exception):
    """The bytes are not to be trusted; `code` is that of spec §2.5."""

    def __init__(self, code: str, what: object) -> None:
        super().__init__(f"{code}: {what}")
        self.code = code


def need(ok: object, code: str, what: object) -> None:
    if not ok:
        raise Refused(code, what)


def dtype(name: str) -> np.dtype[Any]:
    named = NAMES.get(name, name.lower().replace("f8", "float8"))
    return np.dtype("?" if name == "BOOL" else NUMPY.get(name) or getattr(ml_dtypes, named))


def head(data: bytes) -> tuple[int, bytes, bytes]:
    """Kind, summary and decoded body of a manifest file (§6.1)."""
    need(b"\x89CKPT\r\n\x1a".startswith(data[:8]), "format", "magic")
    need(len(data) >= 128, "integrity", "header cut short")
    fields = struct.unpack("<8xHBB4sQQQ8s16s32s32s", data[:128])
    version, kind, encoding, zero, n, stored, raw, check, zeros, *digests = fields
    blank = data[:40] + bytes(8) + data[48:128]
    need(hashlib.sha256(blank).digest()[:8] == check, "integrity", "header check")
    known = version == 1 and kind in (1, 2) and encoding in (0, 1) and not any(zero + zeros)
    need(known, "unsupported", "header")
    most = min(256 * 2**20, 2**20 + 64 * stored)
    need(128 + n + stored <= 48 * 2**20 and raw <= most, "format", "absurd lengths")
    need((encoding or raw == stored) and (kind == 1 or not stored), "format", "lengths")
    need(len(data) == 128 + n + stored, "integrity", "length")
    summary, body = data[128 : 128 + n], data[128 + n :]
    need(hashlib.sha256(summary).digest() == digests[0], "integrity", "summary")
    need(hashlib.sha256(body).digest() == digests[1], "integrity", "body")
    return kind, summary, unzstd(body, raw) if encoding else body


def unzstd(data: bytes, nbytes: int) -> bytes:
    try:
        need(zstandard.frame_content_size(data) == nbytes, "format", "content size")
        decoder = zstandard.ZstdDecompressor().decompressobj()
        raw = decoder.decompress(data)
    except zstandard.ZstdError as error:
        raise Refused("integrity", error) from error
    need(len(raw) == nbytes and decoder.eof and not decoder.unused_data, "integrity", "frame")
    return raw


def unplane(data: bytes, nbytes: int) -> bytes:
    """Items from planes: byte 0 of each, byte 1 of each, ... (§7.1.5)."""
    width = data[0] if data else 0
    fits = 1 <= width <= 16 and nbytes % width == 0 and len(data) >= 1 + 8 * width
    need(fits, "format", "planes")
    lengths, count = struct.unpack_from(f"<{width}Q", data, 1), nbytes // width
    at = [*itertools.accumulate(lengths, initial=1 + 8 * width)]
    need(max(lengths) <= count and at[-1] == len(data), "format", "lengths of planes")
    planes = [data[i:j] for i, j in itertools.pairwise(at)]
    raw = [plane if len(plane) == count else unzstd(plane, count) for plane in planes]
    return bytes(itertools.chain.from_iterable(zip(*raw, strict=True)))


DECODE = {"raw": lambda data, nbytes: data, "zstd": unzstd, "planes+zstd": unplane}


def value(node: Any, rows: list[Any]) -> Any:
    """What a node stands for (§6.4); `rows` are the arrays, or what stands for them."""
    match node:
        case [0, keys, nodes]:
            return {k: value(v, rows) for k, v in zip(keys, nodes, strict=True)}
        case [1 | 2 as tag, nodes]:
            return (list, tuple)[tag - 1](value(v, rows) for v in nodes)
        case [3, row]:
            return rows[row]
        case [4, name, data]:
            return np.frombuffer(data, dtype(name))[0]
        case [5, data]:
            return int.from_bytes(data, "big", signed=True)
        case [6, real, imaginary]:
            return complex(real, imaginary)
        case [7, text]:
            return datetime.datetime.fromisoformat(text)
    return node


def read(body: Any, areas: list[bytes]) -> dict[str, np.ndarray]:
    """All arrays by path, from the data areas of the files (§6.5, §6.6)."""
    digest = DIGESTS[body["digest"]]
    size, found = len(digest(b"")), {}

    def column(table: str, name: str, kind: str) -> Iterator[int]:
        return iter(np.frombuffer(body[table][name], kind).tolist())

    def box(kind: str, ndim: int) -> tuple[int, ...]:
        return tuple(itertools.islice(extents[kind], ndim))

    extents = {k: column("chunks", k, "<u8") for k in ("start", "shape")}
    extents["array"] = column("arrays", "shape", "<u8")
    codecs = (body["chunks"]["codecs"][i] for i in column("chunks", "codec", "u1"))
    offsets = (column("chunks", k, "<u8") for k in ("offset", "nbytes"))
    places = zip(column("chunks", "file", "<u4"), *offsets, codecs, itertools.count(0, size))
    kinds = (body["arrays"]["dtypes"][i] for i in column("arrays", "dtype", "<u2"))
    counts = column("arrays", "ndim", "u1"), column("arrays", "chunks", "<u4")
    for path, kind, ndim, count in zip(body["arrays"]["path"], kinds, *counts, strict=True):
        array = np.empty(box("array", ndim), dtype(kind))
        covered = 0
        for file, offset, nbytes, codec, at in itertools.islice(places, count):
            start = box("start", ndim) if count > 1 else (0,) * ndim
            shape = box("shape", ndim) if count > 1 else array.shape
            stored, length = (
                areas[file][offset : offset + nbytes],
                math.prod(shape) * array.itemsize,
            )
            need(digest(stored) == body["chunks"]["digest"][at : at + size], "integrity", path)
            raw = DECODE[codec](stored, length)
            inside = tuple(slice(s, s + e) for s, e in zip(start, shape, strict=True))
            array[inside] = np.frombuffer(raw, array.dtype).reshape(shape)
            covered += math.prod(shape)
        need(covered == array.size, "format", f"boxes of {path}")
        found[path] = array
    return found | {
        path: found[body["arrays"]["path"][row]] for row, path in body["arrays"]["aliases"]
    }


def contents(manifest: bytes, store: Mapping[str, bytes]) -> tuple[Any, dict[str, np.ndarray]]:
    """State tree and arrays of a checkpoint in a store, or in a bundle, key "" (§6.7)."""
    body = msgpack.unpackb(head(manifest)[2])
    digest, files = DIGESTS[body["digest"]], body["files"]
    size, areas = len(digest(b"")), []
    for i, key in enumerate(files["key"]):
        (n,) = struct.unpack_from("<Q", files["header_nbytes" if key else "nbytes"], 8 * i)
        data = store[key]
        begin = 8 + struct.unpack_from("<Q", data)[0]
        if key:
            found = digest(data[:begin]), begin
            need(found == (files["header_digest"][i * size :][:size], 8 + n), "integrity", key)
        need(key or len(data) == begin + n, "integrity", "length of the bundle")
        areas.append(data[begin:])
    arrays = read(body, areas)
    return value(body["tree"], [arrays[path] for path in body["arrays"]["path"]]), arrays


def usable(key: str, store: Mapping[str, bytes]) -> bool:
    """Whether this is a checkpoint; refuses what is damaged or misnamed (§8.1)."""
    kind, summary, raw = head(store[key])
    fields = msgpack.unpackb(summary)
    name = f"manifests/{fields['number']:010d}-{fields['revision']:03d}.ckpt"
    need(name == key, "integrity", f"{name} under the name {key}")
    need(set(fields["features"]["read"]) <= {"planes+zstd"}, "unsupported", fields["features"])
    files = msgpack.unpackb(raw)["files"] if kind == 1 else {"key": [], "nbytes": b""}
    for file, nbytes in zip(files["key"], np.frombuffer(files["nbytes"], "<u8"), strict=True):
        need(len(store.get(file, b"")) == nbytes, "integrity", file)
    return kind == 1


def latest(store: Mapping[str, bytes]) -> tuple[str, list[str]]:
    """Key of the newest valid manifest, and the damaged ones passed over (§8.2.6)."""
    names = [k for k in store if re.fullmatch(r"manifests/[0-9]{10}-[0-9]{3}\.ckpt", k)]
    damaged: list[str] = []
    for key in sorted(names, reverse=True):
        try:
            zero = store.get(f"{key[:20]}-000.ckpt")
            if zero is not None and not deleted(zero) and usable(key, store):
                return key, damaged
        except Refused as error:
            if error.code == "unsupported":
                raise
            damaged.append(key)
    raise Refused("not-found", damaged)


def deleted(zero: bytes) -> bool:
    """Whether a revision 000 is a tombstone; a damaged one is none (§8.1.1)."""
    try:
        return head(zero)[0] == 2
    except Refused:
        return False


def load(place: pathlib.Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Load the newest checkpoint of a store's folder, or a bundle file."""
    if place.is_file():
        data = place.read_bytes()
        (n,) = struct.unpack_from("<Q", data)
        need(n <= min(64 * 2**20, len(data) - 8), "format", "not a bundle")
        text = json.loads(data[8 : 8 + n])["__metadata__"]["ckptfmt"]
        return contents(base64.b64decode(text, validate=True), {"": data})
    files = (f for f in place.rglob("*") if f.is_file())
    store = {f.relative_to(place).as_posix(): f.read_bytes() for f in files}
    marker = json.loads(store.get("ckptfmt.json", b'{"format": "ckptfmt", "version": "1-dev"}'))
    need(marker["format"] == "ckptfmt", "format", marker)
    need(marker["version"] in (1, "1-dev"), "unsupported", marker)
    key, _ = latest(store)
    return contents(store[key], store)
