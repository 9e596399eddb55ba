"""Arrays that share memory without being tied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

MAX_PAIRS: Final = 100_000  # looked at per call; 0.2 s when all of them are strided views
EFFORT: Final = (
    1000  # candidate solutions per pair: whether views overlap is NP-hard in general
)


def overlaps(arrays: Sequence[Array], starts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs of arrays, lower row first, that share memory; O(n log n).

    A pair is reported when the two share a byte, or when that cannot be ruled out within a
    bounded effort; views that merely interleave (the columns of a matrix) are not. When more
    than `MAX_PAIRS` pairs have intersecting extents, only the first ones in memory order are
    looked at.

    Args:
        arrays: Any arrays of this process; those without elements share nothing.
        starts: `start_of` of each.
    """
    extents = [extent(array, start) for array, start in zip(arrays, starts, strict=True)]
    low, high = np.array(extents, dtype=np.int64).reshape(-1, 2).T
    order = np.lexsort((high, low))
    reach = np.maximum.accumulate(high[order])
    if not (low[order][1:] < reach[:-1]).any():
        return []
    return sorted(_sweep(arrays, low.tolist(), high.tolist(), order.tolist()))


def folds(array: Array) -> bool:
    """Tell whether elements of an array share memory with each other, as repeated rows do.

    Also true for layouts of which that cannot be ruled out by the strides alone.
    """
    if array.flags.c_contiguous:
        return False
    reach = array.itemsize
    steps = sorted(
        (abs(s), n) for n, s in zip(array.shape, array.strides, strict=True) if n > 1
    )
    for step, n in steps:
        if step < reach:
            return True
        reach += (n - 1) * step
    return False


def start_of(array: Array) -> int:
    """Return the address of the first element."""
    start: int = array.__array_interface__["data"][0]
    return start


def elements_of(array: Array) -> object:
    """Return what is equal for two arrays iff every element of one is the other's, in place."""
    # NumPy sets the stride of an axis of length one as it likes: it moves no element.
    strides = [s for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    return start_of(array), array.shape, tuple(strides), array.dtype


def extent(array: Array, start: int | None = None) -> tuple[int, int]:
    """Return the addresses of the first byte and of the byte after the last one."""
    start = start_of(array) if start is None else start
    if array.flags.c_contiguous:
        return start, start + array.nbytes
    reaches = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    low = start + sum(reach for reach in reaches if reach < 0)
    return low, start + sum(reach for reach in reaches if reach > 0) + array.itemsize


def _sweep(
    arrays: Sequence[Array], low: list[int], high: list[int], order: list[int]
) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    active: list[int] = []  # rows whose extent reaches the current one
    looked_at = 0
    for row in order:
        active = [other for other in active if high[other] > low[row]]
        looked_at += len(active)
        if looked_at > MAX_PAIRS:
            break
        pairs += [
            (min(row, other), max(row, other))
            for other in active
            if _share(arrays[row], arrays[other])
        ]
        active.append(row)
    return pairs


def _share(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=EFFORT)  # type: ignore[arg-type]  # any int
    except np.exceptions.TooHardError:
        return True
