"""MXNet's `.params`: arrays in a row, then their names.

Format: `NDArray::Save` of https://github.com/apache/mxnet/blob/master/src/ndarray/ndarray.cc.
"""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.source import Contents, Lazy, Note, Record, check_shape

MAGIC: Final = (0x112).to_bytes(8, "little") + bytes(8)
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
MAX_AXES: Final = 32
_TYPES: Final[dict[int, Any]] = {
    0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?", 8: "<i2",
    9: "<u2", 10: "<u4", 11: "<u8", 12: ml_dtypes.bfloat16,
}  # fmt: skip
_AUXILIARY: Final = {-1: 0, 0: 0, 1: 1, 2: 2}  # arrays of indices, by kind of storage
_SPARSE: Final = {1: "row_sparse", 2: "csr"}


def read(place: Place) -> Contents | None:
    """Return the arrays of one file, or None."""
    span = place.span()
    if span is None or span.head(16) != MAGIC:
        return None
    at = Cursor(span, 16)
    arrays = [_array(at) for _ in range(at.count("Q", 8, "the number of arrays"))]
    names = [at.text("Q", "a name") for _ in range(at.count("Q", 8, "the number of names"))]
    if at.left or (names and len(names) != len(arrays)) or len(set(names)) != len(names):
        raise FormatError("names and arrays disagree", file=span.name, offset=at.at)
    devices = sum(1 for array in arrays if isinstance(array, Lazy) and array.note)
    text = f"{devices} arrays were on a device: kept without it"
    return Contents(
        format="mxnet",
        root=dict(zip(names, arrays, strict=True)) if names else arrays,
        files=(span.name,),
        producer="MXNet",
        notes=(Note(path=span.name, text=text),) if devices else (),
    )


def _array(at: Cursor) -> Any:
    """Return the next array; one that is sparse as a record of its parts.

    Raises:
        FormatError: malformed.
        UnsupportedError: of a type or storage that is not known.
    """
    start = at.at
    first = at.number("I", "an array")
    storage, packed = 0, None
    if first in (_V2, _V3):
        storage = at.number("i", "a kind of storage")
        if storage not in _AUXILIARY:
            raise UnsupportedError("unknown storage", file=at.span.name, offset=start)
        if _AUXILIARY[storage]:
            packed = _shape(at, at.number("i", "axes"), "q")
    if first in (_V1, _V2, _V3):
        axes = at.number("i", "axes")
        if axes < 0 or (axes == 0 and first != _V3):
            return None  # an array that was never given a shape
        shape = _shape(at, axes, "q")
    elif first == 0:
        return None
    else:
        shape = _shape(at, first, "I")
    device, _ = at.number("i", "a device"), at.number("i", "a device")
    dtype = _dtype(at)
    parts = [(_dtype(at), _shape(at, at.number("i", "axes"), "q"))
             for _ in range(_AUXILIARY[storage])]  # fmt: skip
    data = _data(at, dtype, shape if packed is None else packed)
    if device not in (0, 1):
        data.note = f"was on device {device}"
    if packed is None:
        return data
    indices = [_data(at, kind, size) for kind, size in parts]
    state = {"shape": list(shape), "data": data, "indices": indices}
    return Record(f"mxnet.{_SPARSE[storage]}", state=state)


def _shape(at: Cursor, axes: int, code: str) -> tuple[int, ...]:
    if not 0 <= axes <= MAX_AXES:
        raise FormatError("malformed shape", file=at.span.name, offset=at.at, found=axes)
    return check_shape([at.number(code, "a shape") for _ in range(axes)], 8)


def _dtype(at: Cursor) -> np.dtype[Any]:
    kind = at.number("i", "a type")
    if kind not in _TYPES:
        raise UnsupportedError("unknown type", file=at.span.name, offset=at.at, found=kind)
    found: np.dtype[Any] = np.dtype(_TYPES[kind])
    return found


def _data(at: Cursor, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Lazy:
    data = at.take(math.prod(shape) * dtype.itemsize, "an array")
    return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))
