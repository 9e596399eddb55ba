"""THE dtype table: stored name ↔ NumPy dtype ↔ bytes per element (spec §5.4.2).

Names follow safetensors where it has one. Every element occupies whole bytes, exactly as
NumPy and ml_dtypes hold it in memory; 4- and 6-bit types therefore take one byte each, and
a packed variant would be a dtype of its own. Stored bytes are always little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import StateError, UnsupportedError


@dataclass(frozen=True, slots=True, kw_only=True)
class DType:
    """One row of the table."""

    name: str  # as stored in a manifest
    numpy: np.dtype[Any]  # little-endian in-memory type
    itemsize: int  # bytes per element
    natural: bool  # every safetensors reader of the v1 list knows it by this name (spec §5.3)


def _table() -> dict[str, DType]:
    natural: dict[str, Any] = {
        "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": "<u2", "I16": "<i2",
        "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "F16": "<f2",
        "BF16": ml_dtypes.bfloat16, "F32": "<f4", "F64": "<f8",
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    }  # fmt: skip
    others: dict[str, Any] = {"C64": "<c8", "C128": "<c16"}
    # A future or past ml_dtypes may lack some of these: the row is then absent, and a
    # checkpoint that uses it is refused by name instead of failing at import.
    small = {
        "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E4M3B11FNUZ": "float8_e4m3b11fnuz",
        "F8_E3M4": "float8_e3m4", "F8_E4M3IEEE": "float8_e4m3",
        "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn", "F4": "float4_e2m1fn",
        "I4": "int4", "U4": "uint4", "I2": "int2", "U2": "uint2",
    }  # fmt: skip
    others |= {n: getattr(ml_dtypes, t) for n, t in small.items() if hasattr(ml_dtypes, t)}
    rows: dict[str, DType] = {}
    for names, is_natural in ((natural, True), (others, False)):
        for name, kind in names.items():
            dtype: np.dtype[Any] = np.dtype(kind)
            rows[name] = DType(
                name=name, numpy=dtype, itemsize=dtype.itemsize, natural=is_natural
            )
    return rows


DTYPES: Final[dict[str, DType]] = _table()
_BY_NUMPY: Final[dict[np.dtype[Any], DType]] = {row.numpy: row for row in DTYPES.values()}


def by_name(name: str, **where: object) -> DType:
    """Return the row called `name`.

    Raises:
        UnsupportedError: this release, or the installed ml_dtypes, has no such dtype.
    """
    row = DTYPES.get(name)
    if row is None:
        raise UnsupportedError(
            f"unknown dtype {name!r}: upgrade ckptfmt or ml_dtypes, or select other arrays",
            **where,
        )
    return row


def by_numpy(dtype: np.dtype[Any], **where: object) -> DType:
    """Return the row for a NumPy dtype of any byte order.

    Raises:
        StateError: the dtype has no exact portable form (object, str, datetime64,
            longdouble, structured, ...).
    """
    row = _BY_NUMPY.get(dtype) or _BY_NUMPY.get(dtype.newbyteorder("<"))
    if row is None:
        raise StateError(
            f"dtype {str(dtype)!r} cannot be stored: {_way_out(dtype)}",
            **where,
        )
    return row


def _way_out(dtype: np.dtype[Any]) -> str:
    match dtype.kind:
        case "O":
            return "convert it to a numeric array or a list"
        case "U" | "S" | "T":
            return "store a list of str or bytes"
        case "M" | "m":
            return "store array.view('int64') and remember the unit beside it"
        case "V" if dtype.names is not None:
            return "store each field as an array of its own"
        case "V" if dtype.type is np.void:
            return "store array.view('uint8')"
        case "V":  # a type of ml_dtypes without a name in the format, such as int1
            return "convert it to int8 or to a wider float"
        case _:
            return "convert it to float64 or complex128; longer floats are not portable"
