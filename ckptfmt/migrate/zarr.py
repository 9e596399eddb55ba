"""Zarr arrays, versions 2 and 3, as TensorStore writes them: JSON, and a value for each chunk.

Chunks are raw or packed with zstd or gzip, and may lie in shards. Specification:
https://zarr-specs.readthedocs.io/en/latest/.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError
from ckptfmt.migrate import ocdbt, scratch, sstable, texts
from ckptfmt.migrate.files import Span
from ckptfmt.migrate.source import Array, Lazy, check_shape

Get: TypeAlias = Callable[[str], memoryview | None]
_Index: TypeAlias = tuple[int, ...]

MAX_CHUNKS: Final = 1_000_000
MAX_RATIO: Final = 64  # of an array to its chunks as they are stored, where it is large
_MAX_JSON: Final = 2**20
_ABSENT: Final = 2**64 - 1
_SMALL: Final = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz",
                 "float8_e5m2", "float8_e5m2fnuz")
}  # fmt: skip
_PLAIN: Final = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
     "float16", "float32", "float64", "complex64", "complex128"}
)  # fmt: skip
_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def array(name: str, get: Get, room: int) -> Lazy | None:
    """Return the array of a name, or None when there is none.

    Args:
        get: Returns the value of a key, or None.
        room: Bytes that may stand in chunks that are not stored.

    Raises:
        FormatError: malformed.
        UnsupportedError: packed in a way that is not known.
    """
    raw = get(f"{name}/.zarray")
    if raw is not None:
        return _version2(
            name, texts.parse(Span(f"{name}/.zarray", raw), limit=_MAX_JSON), get, room
        )
    raw = get(f"{name}/zarr.json")
    if raw is not None:
        return _version3(
            name, texts.parse(Span(f"{name}/zarr.json", raw), limit=_MAX_JSON), get, room
        )
    return None


def _version2(name: str, found: Any, get: Get, room: int) -> Lazy:
    match found:
        case {
            "zarr_format": 2,
            "shape": list(shape),
            "chunks": list(chunks),
            "dtype": str(kind),
            "order": "C" | "F" as order,
        } if not found.get("filters"):
            pass
        case _:
            raise UnsupportedError("an unknown kind of Zarr array", path=name)
    dtype = _SMALL[kind] if kind in _SMALL else np.dtype(kind)
    packing = found.get("compressor")
    packer = packing.get("id") if isinstance(packing, dict) else packing
    if packer not in (None, "zstd", "gzip", "zlib"):
        raise UnsupportedError("chunks packed in an unknown way", path=name, found=packer)
    separator = found.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise FormatError("an unknown separator", path=name, found=separator)
    steps = [] if packer is None else [{"name": packer}]
    decode = functools.partial(_unpacked, steps, name)

    def key(index: _Index) -> str:
        return f"{name}/{separator.join(map(str, index)) or '0'}"

    def decoded(raw: memoryview, shape: _Index) -> Array:
        data = decode(raw, math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")

    return _of_keys(
        name, shape, chunks, dtype, found.get("fill_value"), get, key, decoded, room
    )


def _version3(name: str, found: Any, get: Get, room: int) -> Lazy:
    match found:
        case {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": str(kind),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "chunk_key_encoding": {"name": "default" | "v2" as naming},
            "codecs": list(codecs),
        } if kind in _PLAIN or kind in _SMALL:
            pass
        case _:
            raise UnsupportedError("an unknown kind of Zarr array", path=name)
    dtype = _SMALL[kind] if kind in _SMALL else np.dtype(kind)
    default = "/" if naming == "default" else "."
    options = found["chunk_key_encoding"].get("configuration") or {}
    separator = options.get("separator", default)
    if separator not in (".", "/"):
        raise FormatError("an unknown separator", path=name, found=separator)
    decode = _pipeline(codecs, dtype, found.get("fill_value"), name, room)

    def key(index: _Index) -> str:
        text = separator.join(map(str, index))
        if naming == "default":
            text = f"c{separator}{text}" if index else "c"
        return f"{name}/{text or '0'}"

    return _of_keys(name, shape, chunks, dtype, found.get("fill_value"), get, key, decode, room)


def _of_keys(
    name: str,
    shape: list[Any],
    chunks: list[Any],
    dtype: np.dtype[Any],
    fill: Any,
    get: Get,
    key: Callable[[_Index], str],
    decode: Callable[[memoryview, _Index], Array],
    room: int,
) -> Lazy:
    """Return an array each chunk of which is the value of a key."""

    def chunk(index: _Index, size: _Index) -> Array | None:
        raw = get(key(index))
        return None if raw is None else decode(raw, size)

    def stored(index: _Index) -> int | None:
        raw = get(key(index))
        return None if raw is None else len(raw)

    return _joined(name, shape, chunks, dtype, fill, stored, chunk, room)


def _joined(
    name: str,
    shape: list[Any],
    chunks: list[Any],
    dtype: np.dtype[Any],
    fill: Any,
    stored: Callable[[_Index], int | None],
    chunk: Callable[[_Index, _Index], Array | None],
    room: int,
) -> Lazy:
    """Return an array of chunks on a regular grid; chunks at its end are whole, too.

    Args:
        stored: Returns how long the chunk of an index is as it is stored, or None.
        chunk: Returns it, of an index and its shape, or None.
        room: Bytes that may stand in chunks that are not stored.
    """
    if dtype.hasobject:
        raise FormatError("an array of references", path=name)
    size = check_shape(shape, dtype.itemsize, path=name)
    step = check_shape(chunks, dtype.itemsize, path=name)
    if len(size) != len(step) or 0 in step:
        raise FormatError("chunks and array have other axes", path=name, found=(size, step))
    grid = [-(-n // m) for n, m in zip(size, step, strict=True)]
    if math.prod(grid) > MAX_CHUNKS:
        raise FormatError("too many chunks", path=name, found=grid)

    def load() -> Array:
        lengths = [stored(index) for index in itertools.product(*map(range, grid))]
        absent = lengths.count(None)
        chunk_nbytes = math.prod(step) * dtype.itemsize
        if absent * chunk_nbytes > room:
            raise FormatError("most of an array is not stored", path=name, chunks=absent)
        packed = sum(length or 0 for length in lengths)
        if (len(lengths) - absent) * chunk_nbytes > max(room, MAX_RATIO * packed):
            raise FormatError("an array unpacks to too much", path=name, found=packed)
        if size == step and (only := chunk((0,) * len(size), step)) is not None:
            return only
        whole = np.full(size, _fill(fill, dtype, name), dtype)
        for index in itertools.product(*map(range, grid)):
            part = chunk(index, step)
            if part is not None:
                at = tuple(slice(i * m, (i + 1) * m) for i, m in zip(index, step, strict=True))
                target = whole[at]
                target[...] = part[tuple(slice(0, n) for n in target.shape)]
        return whole

    return Lazy(dtype, size, load)


def _fill(value: Any, dtype: np.dtype[Any], name: str) -> Any:
    """Return what stands where no chunk is stored."""
    if value is None:
        return np.zeros((), dtype)[()]
    if isinstance(value, str):
        value = _NUMBERS.get(value, value)
    try:
        return (
            np.asarray(value).astype(dtype)[()] if type(value) is not str else dtype.type(value)
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedError("an unknown fill value", path=name, found=value) from error


def _pipeline(
    codecs: list[Any], dtype: np.dtype[Any], fill: Any, name: str, room: int
) -> Callable[[memoryview, tuple[int, ...]], Array]:
    """Return what decodes a chunk by the codecs of version 3.

    Raises:
        UnsupportedError: a codec is not known, or stands at another place.
    """
    rows = [
        (c.get("name"), c.get("configuration") or {}) for c in codecs if isinstance(c, dict)
    ]
    orders = [_order(options, name) for kind, options in rows if kind == "transpose"]
    rest = [row for row in rows if row[0] != "transpose"]
    if (
        len(rows) != len(codecs)
        or not rest
        or rows[: len(orders)] != [row for row in rows if row[0] == "transpose"]
    ):
        raise UnsupportedError("unknown codecs", path=name)
    (kind, options), packers = rest[0], [{"name": k} for k, _ in rest[1:]]
    if kind == "sharding_indexed":
        inner = functools.partial(_shard, options, dtype, fill, name, room)
    elif kind == "bytes":
        order = ">" if options.get("endian") == "big" else "<"
        inner = functools.partial(_raw, dtype, order)
    else:
        raise UnsupportedError("an unknown codec", path=name, found=kind)
    known = {"zstd", "gzip", "crc32c"}
    if unknown := [row["name"] for row in packers if row["name"] not in known]:
        raise UnsupportedError("an unknown codec", path=name, found=unknown[0])

    def decode(data: memoryview, shape: tuple[int, ...]) -> Array:
        for order in orders:
            if sorted(order) != list(range(len(shape))):
                raise FormatError("malformed order of axes", path=name, found=order)
            shape = tuple(shape[axis] for axis in order)
        nbytes = None if kind == "sharding_indexed" else math.prod(shape) * dtype.itemsize
        array = inner(_unpacked(packers, name, data, nbytes), shape)
        for order in reversed(orders):
            array = array.transpose(np.argsort(order))
        return array

    return decode


def _order(options: dict[str, Any], name: str) -> list[int]:
    match options:
        case {"order": list(order)} if all(type(axis) is int for axis in order):
            return order
    raise UnsupportedError("an unknown order of axes", path=name)


def _raw(dtype: np.dtype[Any], order: str, data: memoryview, shape: tuple[int, ...]) -> Array:
    if order == ">" and dtype.itemsize > 1:
        part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        swapped: Array = np.frombuffer(data, f"u{part}").byteswap().view(dtype)
        return swapped.reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)


def _unpacked(
    steps: list[dict[str, Any]], name: str, data: memoryview, nbytes: int | None
) -> memoryview:
    """Undo what packs bytes, from the last to the first; without steps, a view."""
    limit = ocdbt.MAX_NODE_NBYTES * 16 if nbytes is None else nbytes + 4
    for step in reversed(steps):
        match step["name"]:
            case "zstd":
                data = ocdbt.unzstd(data, limit, name)
            case "gzip" | "zlib":
                machine = scratch.unpacker(bytes(data[:8]))
                if machine is None:
                    raise FormatError("malformed gzip", path=name)
                data = scratch.unpacked(data, machine, name)
            case "crc32c":
                if int.from_bytes(data[-4:], "little") != sstable.crc32c(data[:-4]):
                    raise IntegrityError("a chunk's CRC is wrong", path=name)
                data = data[:-4]
    if nbytes is not None and len(data) != nbytes:
        raise FormatError(
            "a chunk of another length", path=name, expected=nbytes, found=len(data)
        )
    return data


def _shard(
    options: dict[str, Any],
    dtype: np.dtype[Any],
    fill: Any,
    name: str,
    room: int,
    data: memoryview,
    shape: _Index,
) -> Array:
    """Return a shard: chunks, and an index of (offset, length) at its end or beginning."""
    match options:
        case {
            "chunk_shape": list(chunks),
            "codecs": list(codecs),
            "index_codecs": [{"name": "bytes"}, *rest],
        } if rest in ([], [{"name": "crc32c"}]):
            pass
        case _:
            raise UnsupportedError("an unknown kind of shard", path=name)
    step = check_shape(chunks, dtype.itemsize, path=name)
    if len(step) != len(shape) or any(not m or n % m for n, m in zip(shape, step, strict=True)):
        raise FormatError("a shard is not made of its chunks", path=name, found=(shape, step))
    grid = [n // m for n, m in zip(shape, step, strict=True)]
    nbytes = math.prod(grid) * 16 + (4 if rest else 0)
    if nbytes > len(data):
        raise FormatError("a shard is shorter than its index", path=name)
    at_end = options.get("index_location", "end") == "end"
    raw = data[-nbytes:] if at_end else data[:nbytes]
    index = np.frombuffer(_unpacked(rest, name, raw, math.prod(grid) * 16), "<u8")
    rows = index.reshape(*grid, 2)
    decode = _pipeline(codecs, dtype, fill, name, room)

    def has(at: _Index) -> bool:
        return not bool((rows[at] == _ABSENT).all())

    def stored(at: _Index) -> int | None:
        return int(rows[at][1]) if has(at) else None

    def chunk(at: _Index, size: _Index) -> Array | None:
        if not has(at):
            return None
        start, count = (int(n) for n in rows[at])
        return decode(Span(name, data).cut(start, count, "a chunk"), size)

    return _joined(name, list(shape), list(step), dtype, fill, stored, chunk, room).load()
