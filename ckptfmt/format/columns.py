"""Packed columns: the building stones of the tables (spec §6.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import FormatError

MAX_NBYTES = 2**56  # of one array: products below it are exact in float64 and int64


def int64(values: Sequence[int] | Sequence[bool]) -> npt.NDArray[np.int64]:
    """Return `values` as a column."""
    return np.asarray(values, dtype=np.int64)


def starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each group begins when groups of `counts` lie end to end, plus the end."""
    at = np.zeros(len(counts) + 1, dtype=np.int64)
    counts.cumsum(out=at[1:])
    return at


def pack(values: npt.ArrayLike, kind: str) -> bytes:
    """Return the stored form of a column."""
    return np.asarray(values, dtype=np.int64).astype(kind).tobytes()


def table(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the map `name` of a body.

    Raises:
        FormatError: it is missing or no map.
    """
    found = body.get(name)
    if not isinstance(found, dict):
        raise FormatError("expected a map", at=f"$.{name}", found=type(found).__name__)
    return found


def strings(columns: dict[str, Any], name: str, at: str, *, limit: int = 10**6) -> list[str]:
    """Return a column of str.

    Raises:
        FormatError: missing, not a list of str, or longer than `limit`.
    """
    found = columns.get(name)
    if (
        not isinstance(found, list)
        or len(found) > limit
        or not {str}.issuperset(map(type, found))
    ):
        raise FormatError(f"expected a list of at most {limit} str", at=f"{at}.{name}")
    return found


def distinct(names: list[str], at: str) -> list[str]:
    """Return `names`, or refuse a list with one name twice.

    Raises:
        FormatError: there is one.
    """
    if len(set(names)) != len(names):
        raise FormatError("a name is listed twice", at=at)
    return names


def binary(columns: dict[str, Any], name: str, at: str, *, nbytes: int) -> bytes:
    """Return a column of fixed-size byte strings.

    Raises:
        FormatError: missing or of another length.
    """
    found = columns.get(name)
    if not isinstance(found, bytes) or len(found) != nbytes:
        raise FormatError(
            "column has another length",
            at=f"{at}.{name}",
            expected=nbytes,
            found=len(found) if isinstance(found, bytes) else type(found).__name__,
        )
    return found


def unpack(
    columns: dict[str, Any], name: str, kind: str, at: str, *, count: int, below: int = 2**62
) -> npt.NDArray[np.int64]:
    """Return a column of `count` unsigned integers, each smaller than `below`.

    Raises:
        FormatError: missing, of another length, or a value out of range.
    """
    dtype: np.dtype[Any] = np.dtype(kind)
    values = np.frombuffer(
        binary(columns, name, at, nbytes=count * dtype.itemsize), dtype=dtype
    )
    can_exceed = count and below < 256**dtype.itemsize
    if can_exceed and int(values.max()) >= below:
        raise FormatError(
            "value out of range", at=f"{at}.{name}", expected=below - 1, found=int(values.max())
        )
    return values.astype(np.int64)


def products(
    extents: npt.NDArray[np.int64], ndim: npt.NDArray[np.int64], at: str
) -> npt.NDArray[np.int64]:
    """Return the number of elements of each shape; the product of no extents is 1.

    Raises:
        FormatError: a product no memory could hold.
    """
    at_start = starts(ndim + 1)[:-1]  # one leading 1 per shape: reduceat knows no empty group
    padded = np.ones(len(extents) + len(ndim), dtype=np.int64)
    mask = np.ones(len(padded), dtype=bool)
    mask[at_start] = False
    padded[mask] = extents
    if not len(ndim):
        return padded[:0]
    # Without the zeros: a shape like (0, 2**62) has no elements, but no array can have it.
    rough = np.multiply.reduceat(np.maximum(padded, 1).astype(np.float64), at_start)
    if (rough >= MAX_NBYTES).any():
        raise FormatError("absurd shape", at=at, expected=MAX_NBYTES, found=float(rough.max()))
    return np.multiply.reduceat(padded, at_start)
