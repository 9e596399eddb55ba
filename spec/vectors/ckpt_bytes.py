"""Bytes of the format from first principles: struct, json, msgpack, hashlib and xxhash.

Nothing here imports the library, and nothing depends on a compressor's version: zstd frames
are written by hand from raw and run-length blocks (RFC 8878 §3.1.1). Every function takes what
a test wants to be wrong, so that an invalid vector is a valid one with exactly one change.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgpack
import xxhash

MAGIC: Final = bytes.fromhex("89434b50540d0a1a")
MIB: Final = 2**20
TIME: Final = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in microseconds

NATURAL: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8,
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
OTHERS: Final = {
    "C64": 8, "C128": 16, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "F8_E4M3B11FNUZ": 1, "F8_E3M4": 1, "F8_E4M3IEEE": 1, "F6_E2M3": 1, "F6_E3M2": 1, "F4": 1,
    "I4": 1, "U4": 1, "I2": 1, "U2": 1,
}  # fmt: skip
ITEMSIZE: Final = {**NATURAL, **OTHERS}

DIGESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "xxh3-128": lambda data: xxhash.xxh3_128_digest(data),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


def save_id(n: int) -> str:
    """Return the n-th save id of the vectors."""
    return hashlib.sha256(f"save {n}".encode()).hexdigest()[:24]


def pack(value: object) -> bytes:
    """Return the msgpack form."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def column(kind: str, values: Iterable[int]) -> bytes:
    """Return a packed column; `kind` is a struct letter: B, H, I or Q."""
    values = list(values)
    return struct.pack(f"<{len(values)}{kind}", *values)


def zstd(data: bytes, *, declared: int | None = None, size: bool = True) -> bytes:
    """Return one zstd frame that holds `data`, with a content size that may lie or lack."""
    if size:
        frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack(
            "<I", len(data) if declared is None else declared
        )
    else:
        frame = b"\x28\xb5\x2f\xfd\x00\x58"  # a window of 2 MiB, no content size
    blocks = [data[i : i + 2**17] for i in range(0, len(data), 2**17)] or [b""]
    for i, block in enumerate(blocks):
        run = len(block) > 1 and block == block[:1] * len(block)
        head = (i == len(blocks) - 1) | (1 << 1 if run else 0) | (len(block) << 3)
        frame += struct.pack("<I", head)[:3] + (block[:1] if run else block)
    return frame


def dict_node(items: Mapping[Any, Any]) -> list[Any]:
    """Return the node of a dict of nodes."""
    return [0, list(items), list(items.values())]


# --- manifest frame -----------------------------------------------------------


def header(
    summary: bytes,
    body: bytes,
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    kind: int = 1,
    encoding: int = 0,
    zero12: bytes = bytes(4),
    summary_nbytes: int | None = None,
    body_nbytes: int | None = None,
    raw_nbytes: int | None = None,
    zero48: bytes = bytes(16),
    check: bytes | None = None,
) -> bytes:
    """Return the 128 bytes of spec §6.1."""
    head = struct.pack(
        "<8sHBB4sQQQ8s16s32s32s",
        magic,
        version,
        kind,
        encoding,
        zero12,
        len(summary) if summary_nbytes is None else summary_nbytes,
        len(body) if body_nbytes is None else body_nbytes,
        len(body) if raw_nbytes is None else raw_nbytes,
        bytes(8),
        zero48,
        hashlib.sha256(summary).digest(),
        hashlib.sha256(body).digest(),
    )
    check = hashlib.sha256(head).digest()[:8] if check is None else check
    return head[:40] + check + head[48:]


def manifest(summary: object, body: object, **wrong: Any) -> bytes:
    """Return a manifest file; `bytes` are taken as they are, other values are packed."""
    first = summary if isinstance(summary, bytes) else pack(summary)
    second = body if isinstance(body, bytes) else pack(body)
    return header(first, second, **wrong) + first + second


def compressed(summary: object, body: object, **wrong: Any) -> bytes:
    """Return a manifest file whose body is a zstd frame."""
    raw = pack(body)
    return manifest(summary, zstd(raw), encoding=1, raw_nbytes=len(raw), **wrong)


def identity(data: bytes) -> str:
    """Return the identity of a manifest file."""
    return hashlib.sha256(data[:128]).hexdigest()


def tombstone(number: int, revision: int = 0, *, id_: str | None, **wrong: Any) -> bytes:
    """Return a tombstone."""
    fields = {
        "number": number, "revision": revision, "id": id_, "save": save_id(900 + number),
        "time": TIME, "writer": WRITER, "features": FEATURES,
    }  # fmt: skip
    return manifest({**fields, **wrong}, b"", kind=2)


def sealed(payload: object) -> bytes:
    """Return a sealed record (spec §8.3.1)."""
    data = payload if isinstance(payload, bytes) else pack(payload)
    return pack([hashlib.sha256(data).digest(), data])


# --- data files ---------------------------------------------------------------

WRITER: Final = {"name": "vectors", "version": "1"}
FEATURES: Final[dict[str, list[str]]] = {"read": [], "write": [], "delete": []}


def safetensors(
    entries: Iterable[tuple[str, str, Sequence[int], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return the first 8 + N bytes and the data area of a safetensors file."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    area = b""
    for name, dtype, shape, data in entries:
        offsets = [len(area), len(area) + len(data)]
        rows[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        area += data
    return frame(json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode(), area)


def frame(text: bytes, area: bytes, *, declared: int | None = None) -> bytes:
    """Return a safetensors file with this header text, padded."""
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text) if declared is None else declared) + text + area


def planes(data: bytes, width: int, packed: Collection[int] = ()) -> bytes:
    """Return items of `width` bytes by planes, of which those in `packed` are frames."""
    rows = [data[k::width] for k in range(width)]
    stored = [zstd(row) if k in packed else row for k, row in enumerate(rows)]
    return struct.pack(f"<B{width}Q", width, *map(len, stored)) + b"".join(stored)


def header_nbytes(file: bytes) -> int:
    """Return N of a safetensors file."""
    return int(struct.unpack_from("<Q", file)[0])


# --- arrays, chunks, files -----------------------------------------------------


@dataclasses.dataclass
class Box:
    """One chunk to be: where it lies in the array, and how it is stored."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    codec: str = "raw"
    file: int = 0  # which data file of the save and section


@dataclasses.dataclass
class Array:
    """One array to be stored; `data` is its content in C order."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes
    boxes: list[Box] | None = None  # None: one raw chunk, or none for an empty array
    aliases: tuple[str, ...] = ()
    save: int = 1  # whose data files hold it

    def cut(self, box: Box) -> bytes:
        """Return the bytes of one box, by its definition: element after element."""
        size, strides = ITEMSIZE[self.dtype], [1] * len(self.shape)
        for axis in range(len(self.shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * self.shape[axis + 1]
        cut = b""
        for i in range(math.prod(box.shape)):
            at, rest = 0, i
            for axis in range(len(box.shape) - 1, -1, -1):
                at += (box.start[axis] + rest % box.shape[axis]) * strides[axis]
                rest //= box.shape[axis]
            cut += self.data[at * size : (at + 1) * size]
        return cut

    def chunks(self) -> list[Box]:
        """Return the boxes, with the default filled in."""
        if self.boxes is not None:
            return self.boxes
        return [Box((0,) * len(self.shape), self.shape)] if math.prod(self.shape) else []


def natural(path: str, *, section: bool = False) -> str:
    """Return the natural name of a path that has no escapes (spec §5.3)."""
    parts = path.split("/")
    return ".".join(parts if section or len(parts) == 1 else parts[1:])


@dataclasses.dataclass
class Saved:
    """A checkpoint as dictionaries, to be changed and encoded, with its data files."""

    summary: dict[str, Any]
    body: dict[str, Any]
    arrays: list[Array]
    files: dict[str, bytes]

    @property
    def key(self) -> str:
        """Return the manifest key."""
        return f"manifests/{self.summary['number']:010d}-{self.summary['revision']:03d}.ckpt"

    def copy(self) -> Saved:
        """Return a copy that may be changed."""
        return copy.deepcopy(self)

    def encode(self) -> bytes:
        """Return the manifest file."""
        return manifest(self.summary, self.body)

    def store(self) -> dict[str, bytes]:
        """Return data files and manifest by key."""
        return {**self.files, self.key: self.encode()}


def save(
    tree: Sequence[Any],
    arrays: Sequence[Array] = (),
    *,
    number: int = 1,
    n: int | None = None,
    digest: str = "xxh3-128",
    bundle: bool = False,
    wrote: Mapping[int, int] | None = None,
    names: Mapping[str, str] | None = None,
    **fields: Any,
) -> Saved:
    """Return a checkpoint with correct tables.

    Args:
        n: Number of its save id; the checkpoint's number unless given.
        wrote: Number of the checkpoint that each save made, where it is not this one.
        names: Entry names that differ from the rule of spec §5.3 for unescaped paths.
        fields: Summary or body fields to set.
    """
    n = number if n is None else n
    of, files = DIGESTS[digest], {}
    places: dict[tuple[str, int], tuple[int, int, bytes]] = {}  # file row, offset, stored
    table: dict[str, list[Any]] = {k: [] for k in ("key", "nbytes", "head", "digest", "number")}
    for row, (group, rows) in enumerate(_layout(arrays, names or {}, bundle).items()):
        area = b""
        for entry in rows:
            for path, c, stored in entry.pieces:
                places[path, c] = (row, len(area), stored)
                area += stored
        content = safetensors(entry.row() for entry in rows)
        size = header_nbytes(content)
        key = "" if bundle else f"data/{save_id(group.save)}-{group.text}-{group.n}.safetensors"
        files[key] = content
        table["key"].append(key)
        table["nbytes"].append(len(area) if bundle else len(content))
        table["head"].append(0 if bundle else size)
        table["digest"].append(bytes(len(of(b""))) if bundle else of(content[: 8 + size]))
        table["number"].append((wrote or {}).get(group.save, number))
    summary, body = _fields(tree, arrays, number, n, digest)
    body |= {
        "arrays": _array_columns(arrays),
        "chunks": _chunk_columns(arrays, places, of),
        "files": {
            "key": table["key"],
            "nbytes": column("Q", table["nbytes"]),
            "header_nbytes": column("Q", table["head"]),
            "header_digest": b"".join(table["digest"]),
            "number": column("Q", table["number"]),
        },
    }
    for name, value in fields.items():
        (summary if name in summary else body)[name] = value
    return Saved(summary, body, list(arrays), files)


def bundle_file(saved: Saved, *, text: str | None = None) -> bytes:
    """Return the bundle of a checkpoint that was saved with `bundle=True`."""
    text = base64.b64encode(saved.encode()).decode() if text is None else text
    groups = _layout(saved.arrays, {}, True).values()
    rows = [entry.row() for rows in groups for entry in rows]
    return safetensors(rows, {"format": "pt", "ckptfmt": text})


class Group(NamedTuple):
    """What goes into one data file."""

    save: int
    n: int
    text: str


@dataclasses.dataclass
class Entry:
    """One safetensors entry: consecutive raw chunks, or one encoded chunk."""

    name: str
    dtype: str
    shape: Sequence[int]
    order: int  # raw by descending item size, encoded last
    pieces: list[tuple[str, int, bytes]]  # path, chunk index, stored bytes

    def row(self) -> tuple[str, str, Sequence[int], bytes]:
        """Return what `safetensors` takes."""
        return self.name, self.dtype, self.shape, b"".join(p[2] for p in self.pieces)


def _layout(
    arrays: Sequence[Array], names: Mapping[str, str], bundle: bool
) -> dict[Group, list[Entry]]:
    """Return the entries of each file in the order of spec §5.2."""
    plan: dict[Group, list[Entry]] = {}
    for a in arrays:
        section = a.path.split("/")[0] if "/" in a.path else ""
        name = names.get(a.path, natural(a.path))
        if bundle and section not in ("", "model"):
            name = f"{section}/{name}"
        text = section.replace("~", "_") or "root"
        for file, entry in _entries(a, name):
            group = Group(0, 0, "") if bundle else Group(a.save, file, text)
            plan.setdefault(group, []).append(entry)
    return {group: sorted(rows, key=lambda e: e.order) for group, rows in plan.items()}


def _encoded(a: Array, box: Box) -> bytes:
    if box.codec == "zstd":
        return zstd(a.cut(box))
    # The last plane alone is a frame: in samples it is a run of one byte.
    return planes(a.cut(box), ITEMSIZE[a.dtype], {ITEMSIZE[a.dtype] - 1})


def _entries(a: Array, name: str) -> Iterator[tuple[int, Entry]]:
    """Yield each entry of an array with the index of its file."""
    runs: list[tuple[Box, list[tuple[str, int, bytes]]]] = []
    for c, box in enumerate(a.chunks()):
        raw = box.codec == "raw"
        piece = (a.path, c, a.cut(box) if raw else _encoded(a, box))
        if raw and runs and (runs[-1][0].codec, runs[-1][0].file) == ("raw", box.file):
            runs[-1][1].append(piece)
        else:
            runs.append((box, [piece]))
    for first, pieces in runs:
        nbytes = sum(len(p[2]) for p in pieces)
        order = -ITEMSIZE[a.dtype] if first.codec == "raw" else 1
        if first.codec == "raw" and nbytes == len(a.data) and a.dtype in NATURAL:
            yield first.file, Entry(name, a.dtype, a.shape, order, pieces)
        else:
            yield first.file, Entry(f"{name}#{pieces[0][1]}", "U8", [nbytes], order, pieces)


def _array_columns(arrays: Sequence[Array]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(a.dtype for a in arrays))
    return {
        "path": [a.path for a in arrays],
        "dtypes": kinds,
        "dtype": column("H", (kinds.index(a.dtype) for a in arrays)),
        "ndim": column("B", (len(a.shape) for a in arrays)),
        "shape": column("Q", (n for a in arrays for n in a.shape)),
        "chunks": column("I", (len(a.chunks()) for a in arrays)),
        "aliases": [[row, path] for row, a in enumerate(arrays) for path in a.aliases],
    }


def _chunk_columns(
    arrays: Sequence[Array],
    places: Mapping[tuple[str, int], tuple[int, int, bytes]],
    of: Callable[[bytes], bytes],
    *,
    all_boxes: bool = False,
) -> dict[str, Any]:
    rows = [(a, c, box) for a in arrays for c, box in enumerate(a.chunks())]
    codecs = list(dict.fromkeys(box.codec for *_, box in rows))
    put = [places[a.path, c] for a, c, _ in rows]
    boxes = [box for a, _, box in rows if all_boxes or len(a.chunks()) > 1]
    encoded = [of(a.cut(box)) for a, _, box in rows if box.codec != "raw"]
    return {
        "file": column("I", (p[0] for p in put)),
        "offset": column("Q", (p[1] for p in put)),
        "nbytes": column("Q", (len(p[2]) for p in put)),
        "codecs": codecs,
        "codec": column("B", (codecs.index(box.codec) for *_, box in rows)),
        "digest": b"".join(of(p[2]) for p in put),
        "raw_digest": b"".join(encoded),
        "start": column("Q", (n for box in boxes for n in box.start)),
        "shape": column("Q", (n for box in boxes for n in box.shape)),
    }


def _fields(
    tree: Sequence[Any], arrays: Sequence[Array], number: int, n: int, digest: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    sections: dict[str, list[Any]] = {}
    for key, value in zip(tree[1], tree[2], strict=True):
        inner = isinstance(value, list) and value[0] in (0, 1, 2)
        sections.setdefault(key if inner else "", [key if inner else "", 0, 0])
    for a in arrays:
        name = a.path.split("/")[0] if "/" in a.path else ""
        row = sections.setdefault(name, [name, 0, 0])
        row[1], row[2] = row[1] + len(a.data), row[2] + 1
    summary = {
        "number": number, "revision": 0, "id": save_id(n), "save": save_id(n), "parent": None,
        "time": TIME + number, "counters": {"seen": 100 * number}, "metrics": {}, "tags": [],
        "sections": list(sections.values()), "dropped": [], "writer": WRITER,
        "features": FEATURES, "moved": [],
    }  # fmt: skip
    body = {
        "tree": tree, "arrays": {}, "chunks": {}, "files": {}, "digest": digest,
        "chunk_nbytes": 16 * MIB, "hyperparameters": None, "environment": None,
        "architecture": None, "preprocessing": None, "artifacts": [], "probe": None,
        "segments": None,
        "history": {"number": [], "id": [], "seen": [], "time": [], "metrics": []},
    }  # fmt: skip
    return copy.deepcopy(summary), copy.deepcopy(body)
