"""Boxes of arrays: what they have in common, and where they lie in memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from ckptfmt._engine.stage import flat_bytes
from ckptfmt.format.tables import Chunk

Array: TypeAlias = npt.NDArray[Any]
Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # start, extent


def leading(chunk: Chunk, shape: tuple[int, ...]) -> bool:
    """Tell whether a box is one contiguous range of a C-ordered array of `shape`."""
    partial = False  # an axis further in was not taken whole
    for begin, n, whole in zip(
        reversed(chunk.start), reversed(chunk.shape), reversed(shape), strict=True
    ):
        if partial and n != 1:
            return False
        if n != whole or begin:
            partial = True
    return True


def contiguous(array: Array, chunk: Chunk) -> memoryview | None:
    """Return the memory of a chunk's box in `array`, when it is one range in the stored order.

    None also where the box reaches out of the array, which may be a part of the whole.
    """
    if not array.flags.c_contiguous or array.dtype.newbyteorder("<") != array.dtype:
        return None
    if not within(chunk, array.shape) or not leading(chunk, array.shape):
        return None
    offset = sum(b * s for b, s in zip(chunk.start, array.strides, strict=True))
    nbytes = array.itemsize * math.prod(chunk.shape)
    return flat_bytes(array)[offset : offset + nbytes]


def region(start: Sequence[int], extent: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a box."""
    return tuple(slice(b, b + n) for b, n in zip(start, extent, strict=True))


def inside(box: Box, origin: tuple[int, ...]) -> Box:
    """Return a box relative to `origin`."""
    return tuple(b - o for b, o in zip(box[0], origin, strict=True)), box[1]


def intersection(a: Box, b: Box) -> Box | None:
    """Return what two boxes have in common; None if nothing."""
    start = tuple(max(x, y) for x, y in zip(a[0], b[0], strict=True))
    end = tuple(min(x + m, y + n) for x, m, y, n in zip(a[0], a[1], b[0], b[1], strict=True))
    if any(s >= e for s, e in zip(start, end, strict=True)):
        return None
    return start, tuple(e - s for s, e in zip(start, end, strict=True))


def within(chunk: Chunk, shape: tuple[int, ...]) -> bool:
    """Tell whether a chunk's box lies inside an array of `shape`."""
    boxes = zip(chunk.start, chunk.shape, shape, strict=True)
    return all(begin >= 0 and begin + n <= whole for begin, n, whole in boxes)


def touching(chunks: Iterable[Chunk], box: Box) -> Iterator[Chunk]:
    """Yield the chunks that a box has something of, with starts relative to the box."""
    for chunk in chunks:
        own = chunk.start, chunk.shape
        if intersection(box, own) is not None:
            yield chunk._replace(start=inside(own, box[0])[0])
