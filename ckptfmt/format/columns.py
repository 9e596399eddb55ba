"""Packed columns: the building stones of the tables (spec §6.5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import FormatError

Column: TypeAlias = npt.NDArray[np.int64]

MAX_NBYTES = 2**56  # of one array: products below it are exact in float64 and int64


def int64(values: Sequence[int] | Sequence[bool]) -> Column:
    """Return `values` as a column."""
    return np.asarray(values, dtype=np.int64)


def numbered(names: Sequence[str]) -> tuple[Column, list[str]]:
    """Return the distinct names, and which of them each is."""
    distinct = list(dict.fromkeys(names))
    at = {name: n for n, name in enumerate(distinct)}
    return int64([*map(at.__getitem__, names)]), distinct


def starts(counts: Column) -> Column:
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
) -> Column:
    """Return a column of `count` unsigned integers, each smaller than `below`.

    Raises:
        FormatError: missing, of another length, or a value out of range.
    """
    dtype = _KINDS[kind]
    data = binary(columns, name, at, nbytes=count * dtype.itemsize)
    if not count:
        return _NONE
    values = np.frombuffer(data, dtype)
    if below < 256**dtype.itemsize and (highest := int(np.maximum.reduce(values))) >= below:
        raise FormatError(
            "value out of range", at=f"{at}.{name}", expected=below - 1, found=highest
        )
    return values.astype(np.int64)


def uints(
    columns: dict[str, Any], name: str, at: str, *, count: int, below: int
) -> tuple[int, ...]:
    """Return a column of u64 as numbers: quicker than `unpack` for few of them.

    Raises:
        FormatError: as in `unpack`.
    """
    values = struct.unpack(f"<{count}Q", binary(columns, name, at, nbytes=count * 8))
    if (highest := max(values, default=0)) >= below:
        raise FormatError(
            "value out of range", at=f"{at}.{name}", expected=below - 1, found=highest
        )
    return values


def products(extents: Column, at_start: Column, at: str) -> Column:
    """Return the number of elements of each shape; the product of no extents is 1.

    Args:
        extents: Of all shapes, end to end.
        at_start: Where each shape begins in `extents`, plus the end.

    Raises:
        FormatError: a product no memory could hold.
    """
    begin = at_start[:-1]
    if not len(begin):
        return _NONE
    padded = np.ones(len(extents) + 1, dtype=np.int64)  # the last shape may have no extent
    padded[:-1] = extents
    # Without the zeros: a shape like (0, 2**62) has no elements, but no array can have it.
    rough = np.multiply.reduceat(np.maximum(padded, 1.0), begin)
    empty = begin == at_start[1:]  # of no extents, of which reduceat knows nothing
    rough[empty] = 1.0
    if (highest := float(np.maximum.reduce(rough))) >= MAX_NBYTES:
        raise FormatError("absurd shape", at=at, expected=MAX_NBYTES, found=highest)
    found: Column = np.multiply.reduceat(padded, begin)
    found[empty] = 1
    return found


_KINDS: Final[dict[str, np.dtype[Any]]] = {
    kind: np.dtype(kind) for kind in ("u1", "<u2", "<u4", "<u8")
}
_NONE: Final[Column] = np.zeros(0, dtype=np.int64)
