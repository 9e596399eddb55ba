"""Do the boxes of an array cover it exactly once? (spec §6.6)

Almost always they are slices along the first axis, in order. Any other tiling is decided by an
identity instead of comparing boxes in pairs, of which a hostile manifest could hold 10^13. The
indicator of a box is a product over its axes of step(start) - step(end), and products of steps
at different corners are linearly independent. So boxes cover an array exactly once if, and
only if, the sum of their products is the product of the whole array, with a variable in the
place of each step. The variables get values below a prime, drawn from a digest of the boxes:
who chooses the boxes cannot foresee them, and boxes that do not tile are found out, but for a
chance of 2^-50 at most (Schwartz and Zippel).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import FormatError

PRIME: Final = np.uint64(2**31 - 1)  # the product of two residues fits 64 bits
ROUNDS: Final = 2

U64 = npt.NDArray[np.uint64]


def check_tiling(
    start: npt.NDArray[np.int64],
    extent: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    *,
    path: str,
) -> None:
    """Refuse boxes that are empty, leave the array, overlap or leave a hole.

    Args:
        start: First element of each box, [boxes, ndim].
        extent: Extent of each box, [boxes, ndim].

    Raises:
        FormatError: with the path and, if there is one, the offending box.
    """
    limit = np.asarray(shape, dtype=np.int64)
    bad = np.any((extent <= 0) | (extent > limit) | (start > limit - extent), axis=1)
    if bad.any():
        box = int(np.flatnonzero(bad)[0])
        raise FormatError(
            "a box is empty or leaves its array",
            path=path,
            start=start[box].tolist(),
            extent=extent[box].tolist(),
            shape=shape,
        )
    if not _is_sliced(start, extent, limit) and not _covers_once(start, extent, limit):
        raise FormatError("boxes do not cover the array exactly once", path=path, shape=shape)


def _is_sliced(
    start: npt.NDArray[np.int64], extent: npt.NDArray[np.int64], limit: npt.NDArray[np.int64]
) -> bool:
    """Tell whether the boxes are slices along the first axis, in order and without a gap."""
    end = start[:, 0] + extent[:, 0]
    return bool(
        start[0, 0] == 0
        and end[-1] == limit[0]
        and np.array_equal(start[1:, 0], end[:-1])
        and np.all(extent[:, 1:] == limit[1:])
    )


def _covers_once(
    start: npt.NDArray[np.int64], extent: npt.NDArray[np.int64], limit: npt.NDArray[np.int64]
) -> bool:
    cut = np.flatnonzero(np.any(extent != limit, axis=0))  # the others are the same in all
    first = np.ascontiguousarray(start.T[cut]).astype(np.uint64)
    end = first + extent.T[cut].astype(np.uint64)
    whole = np.zeros((len(cut), 1), np.uint64), limit[cut, None].astype(np.uint64)
    seed = hashlib.sha256(first.tobytes() + end.tobytes() + limit.tobytes()).digest()
    return all(_sum(first, end, k) == _sum(*whole, k) for k in _keys(seed, len(cut)))


def _keys(seed: bytes, ndim: int) -> Iterator[U64]:
    """Yield one key per axis, for each round."""
    for n in range(ROUNDS):
        drawn = hashlib.shake_256(seed + bytes([n])).digest(8 * ndim)
        yield np.frombuffer(drawn, np.uint64)


def _sum(first: U64, end: U64, keys: U64) -> int:
    """Return the sum over boxes of the product over axes of f(first) - f(end), modulo PRIME."""
    product = np.ones(first.shape[1], np.uint64)
    for begins, ends, key in zip(first, end, keys, strict=True):
        step = (_value(begins, key) + PRIME - _value(ends, key)) % PRIME
        product = product * step % PRIME
    return int(product.sum(dtype=np.uint64)) % int(PRIME)


def _value(coordinate: U64, key: np.uint64) -> U64:
    """Return f of each coordinate, below PRIME, by a mixing function (splitmix64)."""
    x = coordinate ^ key
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = (x ^ (x >> np.uint64(31))) % PRIME
    return mixed
