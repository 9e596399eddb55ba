"""Do the boxes of an array cover it exactly once? (spec §6.6)"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import FormatError


def check_tiling(
    start: npt.NDArray[np.int64],
    extent: npt.NDArray[np.int64],
    shape: tuple[int, ...],
    *,
    path: str,
) -> None:
    """Refuse boxes that are empty, leave the array, overlap or leave a hole.

    Inside, pairwise disjoint and of equal total volume means: covers exactly.

    Args:
        start: First element of each box, [boxes, ndim].
        extent: Extent of each box, [boxes, ndim].

    Raises:
        FormatError: with the path and the offending box.
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
    volume = sum(math.prod(box) for box in extent.tolist())
    if volume != math.prod(shape):
        raise FormatError(
            "boxes do not cover the array exactly once",
            path=path,
            expected=math.prod(shape),
            found=volume,
        )
    _check_disjoint(start, start + extent, path)


def _check_disjoint(
    start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], path: str
) -> None:
    """Sweep along the first axis: only boxes that overlap there are compared further."""
    order = np.argsort(start[:, 0], kind="stable")
    start, end = start[order], end[order]
    if np.all(end[:-1, 0] <= start[1:, 0]):
        return  # split along the leading axis: the usual case
    last = np.searchsorted(start[:, 0], end[:, 0], side="left")
    for i in range(len(start) - 1):
        others = slice(i + 1, int(last[i]))
        hit = np.all((start[others] < end[i]) & (start[i] < end[others]), axis=1)
        if hit.any():
            other = i + 1 + int(np.flatnonzero(hit)[0])
            raise FormatError(
                "two boxes overlap",
                path=path,
                first=start[i].tolist(),
                second=start[other].tolist(),
            )
