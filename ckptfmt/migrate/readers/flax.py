"""Flax's msgpack: `flax.serialization.to_bytes`, T5X and the like.

Arrays are extension 1 `(shape, dtype name, bytes)`, complex numbers 2, NumPy scalars 3; arrays
above 1 GiB are dicts of chunks.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgpack
import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.source import Contents, Lazy, check_shape, walk

CHUNKED: Final = "__msgpack_chunked_array__"
_BAD: Final = (ValueError, TypeError, msgpack.UnpackException, RecursionError, KeyError)


def read(place: Place) -> Contents | None:
    """Return what one file holds, or None."""
    span = place.span()
    if span is None or not _begins_right(span.head(2)):
        return None
    try:
        root = msgpack.unpackb(
            span.data, ext_hook=_extension, strict_map_key=False, object_pairs_hook=_dict
        )
    except FormatError:
        raise
    except _BAD:
        return None  # two bytes are no proof that it was msgpack
    if not isinstance(root, dict) or not any(isinstance(leaf, Lazy) for _, leaf in walk(root)):
        return None
    return Contents(format="flax", root=root, files=(span.name,), producer="Flax")


def _begins_right(head: bytes) -> bool:
    """Tell whether a file may be a map with text as its first key."""
    return len(head) == 2 and (
        (0x81 <= head[0] <= 0x8F and (0xA0 <= head[1] <= 0xBF or head[1] in (0xD9, 0xDA)))
        or head[0] in (0xDE, 0xDF)
    )


def _extension(code: int, data: bytes) -> Any:
    if code not in (1, 2, 3):
        raise FormatError("unknown extension", found=code)
    match msgpack.unpackb(data):
        case [float() | int() as real, float() | int() as imaginary] if code == 2:
            return complex(real, imaginary)
        case [list(shape), str(name), bytes(raw)] if code != 2:
            return _array(shape, name, raw, scalar=code == 3)
    raise FormatError("malformed extension", found=code)


def _array(shape: list[Any], name: str, raw: bytes, *, scalar: bool) -> Any:
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


def _dict(pairs: list[tuple[Any, Any]]) -> Any:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("a key stands twice")
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
