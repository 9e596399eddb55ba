"""How far apart two arrays are, block by block and with NaN in mind. Pure but for the reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

BLOCK_NBYTES: Final = 64 * 2**20  # of one array, in memory at once

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = tuple[slice, ...]


class Sliceable(Protocol):
    """An array, stored or in memory."""

    def __getitem__(self, index: Any) -> Any:
        """Return a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two arrays of one shape differ.

    Elements that are NaN on both sides are equal, whatever their bits; so are 0.0 and -0.0.
    """

    same_bits: bool
    differing: int = 0  # elements with another value
    max_abs: int | float = 0  # exact for integers of one dtype; inf if one side is infinite
    max_rel: float = 0.0  # |a - b| / max(|a|, |b|): 0 to 2, or inf
    nan_in_a: int = 0  # elements that are NaN in a only
    nan_in_b: int = 0

    def merged(self, other: Difference) -> Difference:
        """Return the difference over both parts."""
        return Difference(
            same_bits=self.same_bits and other.same_bits,
            differing=self.differing + other.differing,
            max_abs=max(self.max_abs, other.max_abs),
            max_rel=max(self.max_rel, other.max_rel),
            nan_in_a=self.nan_in_a + other.nan_in_a,
            nan_in_b=self.nan_in_b + other.nan_in_b,
        )


def blocks(shape: tuple[int, ...], itemsize: int, limit: int = BLOCK_NBYTES) -> Iterator[Index]:
    """Yield indexes that together cover an array once, each of at most `limit` bytes."""
    row = itemsize * math.prod(shape[1:])
    if not shape or row * shape[0] <= limit:
        yield (slice(None),) * len(shape)
    elif row <= limit:
        step = limit // row
        for start in range(0, shape[0], step):
            yield (slice(start, start + step), *(slice(None),) * (len(shape) - 1))
    else:
        for start in range(shape[0]):
            for rest in blocks(shape[1:], itemsize, limit):
                yield (slice(start, start + 1), *rest)


def compare(a: Sliceable, b: Sliceable, index: Index) -> Difference:
    """Compare one block of two arrays of the same shape."""
    one, other = np.asarray(a[index]), np.asarray(b[index])
    if one.dtype == other.dtype and one.tobytes() == other.tobytes():
        return Difference(same_bits=True)
    left, right = _numbers(one), _numbers(other)
    common = np.result_type(left, right)
    left, right = left.astype(common, copy=False), right.astype(common, copy=False)
    nan_left, nan_right = np.isnan(left), np.isnan(right)
    differing = (left != right) & ~(nan_left & nan_right)
    largest = differing & ~nan_left & ~nan_right
    distance = _distance(left[largest], right[largest])
    return Difference(
        same_bits=False,
        differing=int(differing.sum()),
        max_abs=distance.max(initial=0).item(),
        max_rel=_relative(left[largest], right[largest], distance),
        nan_in_a=int((nan_left & ~nan_right).sum()),
        nan_in_b=int((nan_right & ~nan_left).sum()),
    )


def _numbers(array: Array) -> Array:
    """Return the elements as numbers that NumPy calculates with, without rounding."""
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    small_int = array.dtype.kind != "f" and "int" in array.dtype.name  # of ml_dtypes
    return array.astype(np.int8 if small_int else np.float64)


def _distance(left: Array, right: Array) -> Array:
    if left.dtype.kind in "iu":
        # Modulo 2**n the smaller number is subtracted from the larger one: no overflow.
        distance = np.where(left > right, left - right, right - left)
        return distance.astype(f"u{left.itemsize}", copy=False)
    with np.errstate(all="ignore"):
        return np.asarray(np.abs(left - right))


def _relative(left: Array, right: Array, distance: Array) -> float:
    with np.errstate(all="ignore"):
        largest = np.maximum(
            np.abs(left.astype(_wide(left))), np.abs(right.astype(_wide(right)))
        )
        ratio = distance / largest
    ratio[~np.isfinite(distance)] = np.inf
    return float(ratio.max(initial=0.0))


def _wide(array: Array) -> np.dtype[Any]:
    return np.dtype(np.complex128 if array.dtype.kind == "c" else np.float64)
