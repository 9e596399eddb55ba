"""Arrays that read themselves when asked: shape and dtype now, bytes later."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt._engine.read import Reader
from ckptfmt.errors import UsageError

Array: TypeAlias = npt.NDArray[Any]
Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class LazyArray:
    """One stored array. Nothing is read before it is sliced or converted.

    Reads go to storage each time; keep what you read. By default a slice reads and verifies
    every chunk it touches, whole; with `verify=False` only the byte range it needs, unverified.
    With `mmap=True` the first access verifies all chunks of the array, each once per opened
    store; later ones only hand out views. Safe to use from several threads.
    """

    __slots__ = ("_mapped", "_mmap", "_reader", "_row", "_verify", "dtype", "path", "shape")

    def __init__(
        self, reader: Callable[[], Reader], path: str, row: int, *, verify: bool, mmap: bool
    ) -> None:
        self._reader = reader
        self._row = row
        self._verify = verify
        self._mmap = mmap
        self._mapped: Array | None = None
        array = reader().tables.array(row)
        self.path = path
        self.shape = array.shape
        self.dtype: np.dtype[Any] = array.dtype.numpy

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.nbytes // self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self._reader().tables.array(self._row).nbytes

    def __len__(self) -> int:
        if not self.shape:
            raise UsageError("a 0-d array has no length", path=self.path)
        return self.shape[0]

    def __repr__(self) -> str:
        return f"LazyArray({self.path!r}, shape={self.shape}, dtype={self.dtype})"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return the whole array as NumPy's; called by `np.asarray(lazy)`."""
        whole = self._whole()
        if dtype is not None and np.dtype(dtype) != whole.dtype:
            if copy is False:
                raise UsageError(
                    "a conversion needs a copy", path=self.path, stored=str(whole.dtype)
                )
            return whole.astype(dtype)
        return whole.copy() if copy and self._mmap else whole

    def __getitem__(self, index: Any) -> Any:
        """Return a part, as NumPy indexing of the whole array would.

        Integers, slices and `...` read only the chunks they touch; other indexes (arrays,
        masks, `None`) read the whole array first.

        Raises:
            IndexError: outside the array.
            IntegrityError: a chunk that was read is damaged.
            BackendError: storage failed.
        """
        parts = _basic(index, self.ndim)
        if parts is None or self._mmap or not self.shape:
            return self._whole()[index]
        box, rest = _box(parts, self.shape, self.path)
        if any(part is ... for part in (index if isinstance(index, tuple) else (index,))):
            rest = (*rest, ...)  # then NumPy answers with an array, be it 0-d
        return self._reader().box(self._row, box, verify=self._verify)[rest]

    def _whole(self) -> Array:
        reader = self._reader()
        if self._mmap:
            if self._mapped is None:
                self._mapped = reader.views([self._row], verify=self._verify).get(self._row)
            if self._mapped is not None:
                return self._mapped
        return reader.load([self._row], verify=self._verify)[self._row]


def _basic(index: Any, ndim: int) -> Sequence[SupportsIndex | slice] | None:
    """Return one integer or slice per axis, or None when it is no basic index."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [n for n, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or len(parts) - len(dots) > ndim:
        return None  # let NumPy say what is wrong
    fill = [slice(None)] * (ndim - len(parts) + len(dots))
    at = dots[0] if dots else len(parts)
    parts[at : at + len(dots)] = fill
    plain = (int, np.integer, slice)
    if not all(isinstance(p, plain) and not isinstance(p, bool) for p in parts):
        return None
    return parts


def _box(
    parts: Sequence[SupportsIndex | slice], shape: tuple[int, ...], path: str
) -> tuple[Box, tuple[Any, ...]]:
    """Return the smallest box that holds an index, and the index relative to that box."""
    start: list[int] = []
    extent: list[int] = []
    rest: list[Any] = []
    for axis, (part, n) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            picked = range(n)[part]
            low = min(picked[0], picked[-1]) if picked else 0
            high = max(picked[0], picked[-1]) + 1 if picked else 0
            start.append(low)
            extent.append(high - low)
            # A step down to the first element needs "to the very end" in the other direction.
            rest.append(slice(None, None, picked.step) if picked else slice(0, 0))
            continue
        at = operator.index(part)
        if not -n <= at < n:
            raise IndexError(
                f"index {at} is out of bounds for axis {axis} of {path!r} with {n}"
            )
        start.append(at % n)
        extent.append(1)
        rest.append(0)
    return (tuple(start), tuple(extent)), tuple(rest)
