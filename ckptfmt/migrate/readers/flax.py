"""Flax's msgpack: `flax.serialization.to_bytes`, T5X and the like.

Arrays are extension 1 `(shape, dtype name, bytes)`, complex numbers 2, NumPy scalars 3; arrays
above 1 GiB are dicts of chunks.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.msgpacks import Unpacker
from ckptfmt.migrate.source import Contents, Lazy, check_shape, walk

CHUNKED: Final = "__msgpack_chunked_array__"


def read(place: Place) -> Contents | None:
    """Return what one file holds, or None.

    Raises:
        FormatError: it begins as such a file does, and is truncated or malformed.
    """
    span = place.span()
    if span is None or not _begins_right(span.head(300)):
        return None
    root = parse(span)
    if not isinstance(root, dict) or not any(isinstance(leaf, Lazy) for _, leaf in walk(root)):
        return None
    return Contents(format="flax", root=root, files=(span.name,), producer="Flax")


def parse(span: Span) -> Any:
    """Return what a file of Flax holds; arrays are views of it.

    Raises:
        FormatError: malformed or truncated, or bytes follow.
    """
    unpacker = Unpacker(span, extended=_extension, joined=_whole)
    found = _plain(unpacker.value())
    if unpacker.at.left:
        raise FormatError("bytes behind the value", file=span.name, offset=unpacker.at.at)
    return found


def _plain(node: Any) -> Any:
    """Return a tree with copies of the bytes that are no array's."""
    if isinstance(node, memoryview):
        return bytes(node)
    if isinstance(node, dict):
        return {key: _plain(child) for key, child in node.items()}
    return [_plain(child) for child in node] if isinstance(node, list) else node


def _begins_right(head: bytes) -> bool:
    """Tell whether a file begins with a map whose first key is a short printable name."""
    first = head[0] if head else 0
    at = {0xDE: 3, 0xDF: 5}.get(first, 1 if 0x81 <= first <= 0x8F else 0)
    code, rest = head[at : at + 1], head[at + 1 :]
    if not at or not code or not rest:
        return False
    nbytes, key = (rest[0], rest[1:]) if code[0] == 0xD9 else (code[0] - 0xA0, rest)
    name = key[: max(nbytes, 0)]
    return (
        0 < nbytes < 32 + 224 * (code[0] == 0xD9)
        and name.isascii()
        and name.decode().isprintable()
    )


def _extension(code: int, data: memoryview) -> Any:
    if code not in (1, 2, 3):
        raise FormatError("unknown extension", found=code)
    inner = Unpacker(Span("an array", data), extended=_nothing, joined=lambda found: found)
    parts = inner.value()
    if inner.at.left:
        raise FormatError("bytes behind an array", found=inner.at.left)
    match parts:
        case [float() | int() as real, float() | int() as imaginary] if code == 2:
            return complex(real, imaginary)
        case [list(shape), str(name), memoryview() as raw] if code != 2:
            return _array(shape, name, raw, scalar=code == 3)
    raise FormatError("malformed extension", found=code)


def _nothing(code: int, data: memoryview) -> Any:
    raise FormatError("an extension inside an array", found=code)


def _array(shape: list[Any], name: str, raw: memoryview, *, scalar: bool) -> Any:
    try:
        # ml_dtypes gives NumPy the names of the small floats.
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise FormatError("unknown dtype", found=name) from error
    sizes = check_shape(shape, dtype.itemsize)
    if dtype.hasobject or math.prod(sizes) * dtype.itemsize != len(raw):
        raise FormatError("shape, dtype and bytes of an array disagree", found=(shape, name))
    array = np.frombuffer(raw, dtype).reshape(sizes)
    return array[()] if scalar else Lazy.of(array)


def _whole(found: dict[Any, Any]) -> Any:
    return _joined(found) if CHUNKED in found else found


def _joined(found: dict[Any, Any]) -> Lazy:
    """Return an array that was cut because of its size; its chunks are flat."""
    match found:
        case {"shape": dict(shape), "chunks": dict(chunks)}:
            sizes = tuple(shape.get(str(n)) for n in range(len(shape)))
            parts = [chunks.get(str(n)) for n in range(len(chunks))]
        case _:
            raise FormatError("malformed array in chunks")
    arrays = [part for part in parts if isinstance(part, Lazy)]
    whole = sum(math.prod(part.shape) for part in arrays)
    kinds = {part.dtype for part in arrays}
    plain = all(type(n) is int and n >= 0 for n in sizes)
    if len(arrays) != len(parts) or len(kinds) != 1 or not plain:
        raise FormatError("malformed array in chunks")
    if whole != math.prod(n for n in sizes if n is not None):
        raise FormatError("chunks and shape of an array disagree", found=sizes)
    shape_of = tuple(int(n or 0) for n in sizes)

    def load() -> Any:
        flat = np.concatenate([part.load().reshape(-1) for part in arrays])
        return flat.reshape(shape_of)

    return Lazy(arrays[0].dtype, shape_of, load)
