"""Arrays that are stored in parts: each part is a box of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.source import Array, Lazy

MAX_COMPARED: Final = 2_000_000  # pairs of boxes; a grid of 10,000 has less than 1,000,000


@dataclass(frozen=True, slots=True)
class Slice:
    """One part of an array."""

    start: tuple[int, ...]  # index of its first element in the whole
    array: Lazy


def joined(name: str, shape: tuple[int, ...], slices: list[Slice]) -> Lazy:
    """Return one array made of slices.

    Raises:
        FormatError: they do not cover it exactly once.
    """
    if not slices:
        raise FormatError("an array without slices", path=name)
    kinds = {one.array.dtype for one in slices}
    covered = 0
    for one in slices:
        if not len(one.start) == len(one.array.shape) == len(shape):
            raise FormatError("a slice has other axes than its array", path=name)
        ends = [s + n for s, n in zip(one.start, one.array.shape, strict=True)]
        if any(end > n for end, n in zip(ends, shape, strict=True)):
            raise FormatError("a slice lies outside its array", path=name)
        covered += math.prod(one.array.shape)
    if len(kinds) > 1 or covered != math.prod(shape) or _overlap(name, slices):
        raise FormatError("slices do not cover their array once", path=name)
    if len(slices) == 1:
        return slices[0].array
    dtype = slices[0].array.dtype

    def load() -> Array:
        whole = np.empty(shape, dtype)
        for one in slices:
            ends = zip(one.start, one.array.shape, strict=True)
            whole[tuple(slice(s, s + n) for s, n in ends)] = one.array.load()
        return whole

    return Lazy(dtype, shape, load)


def _overlap(name: str, slices: list[Slice]) -> bool:
    """Tell whether two boxes share an element; swept along the axis with most beginnings.

    Raises:
        FormatError: boxes so tangled that the sweep would not end.
    """
    axes = range(len(slices[0].start))
    along = max(axes, key=lambda axis: len({s.start[axis] for s in slices}), default=None)
    if along is None:
        return len(slices) > 1
    boxes = sorted(((s.start, s.array.shape) for s in slices), key=lambda box: box[0][along])
    open_boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    compared = 0
    for start, size in boxes:
        open_boxes = [b for b in open_boxes if b[0][along] + b[1][along] > start[along]]
        compared += len(open_boxes)
        if compared > MAX_COMPARED:
            raise FormatError("slices are too tangled to compare", path=name)
        for other, extent in open_boxes:
            pairs = zip(start, size, other, extent, strict=True)
            if all(a < b + m and b < a + n for a, n, b, m in pairs):
                return True
        open_boxes.append((start, size))
    return False
