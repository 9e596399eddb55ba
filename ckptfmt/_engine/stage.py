"""Leaves → flat little-endian buffers and digests; copies only where layout demands it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt._engine import pages
from ckptfmt._engine.plan import Piece
from ckptfmt._engine.threads import Threads
from ckptfmt.format.digest import Digest
from ckptfmt.tree import Leaf

BATCH_NBYTES: Final = 8 * 2**20  # work handed to a thread at once; several fit in its cache
BATCH_PIECES: Final = 1024
# Copied by one call. C libraries take the instruction that writes memory without reading it
# first up to the size of a core's cache, no further: whole arrays took twice as long.
COPY_NBYTES: Final = 2**20
# Types that a memoryview knows by the code that NumPy has for them, and can cast to bytes.
_PLAIN: Final = frozenset(np.dtype(code).num for code in "?bBhHiIlLqQefd")

Array: TypeAlias = npt.NDArray[Any]


class Staged(NamedTuple):
    """Some pieces, their bytes and the digests of these, side by side."""

    pieces: Sequence[Piece]
    data: list[memoryview]
    digests: list[bytes]


def flat_bytes(array: npt.NDArray[np.generic]) -> memoryview:
    """Return the memory of a C-contiguous array as bytes; nothing is copied."""
    dtype = array.dtype
    if array.size and dtype.num in _PLAIN and dtype.isnative:  # three times as quick
        return array.data.cast("B")
    return array.reshape(-1).view(np.uint8).data


def piece_bytes(leaf: Leaf, piece: Piece) -> memoryview:
    """Return the bytes of one box in C order, little-endian.

    A view of the caller's memory where that is laid out so already, else a private copy of at
    most one chunk.
    """
    array, dtype = leaf.array, leaf.dtype.numpy
    if array.flags.c_contiguous and array.dtype == dtype:
        data = flat_bytes(array)
        if piece.nbytes == len(data):
            return data
        offset = 0
        for begin, own, stride in zip(piece.start, leaf.start, array.strides, strict=True):
            offset += (begin - own) * stride
        return data[offset : offset + piece.nbytes]
    inside = zip(piece.start, leaf.start, piece.shape, strict=True)
    box = array[tuple(slice(begin - own, begin - own + n) for begin, own, n in inside)]
    return flat_bytes(np.ascontiguousarray(box, dtype=dtype))


def stage(
    leaves: Sequence[Leaf],
    own: Sequence[Piece],
    algorithm: Digest,
    known: Mapping[tuple[int, int], bytes],
) -> Staged:
    """Return the bytes and digests of some pieces.

    Args:
        known: Digests by (leaf, chunk index) of this save, taken when it looked for unchanged
            pieces. Whoever changes an array during its save gets a chunk that fails
            verification, not a torn one that passes.
    """
    of, data = algorithm.of, [piece_bytes(leaves[piece.leaf], piece) for piece in own]
    if not known:
        return Staged(own, data, list(map(of, data)))
    taken = (known.get((piece.leaf, piece.nth)) for piece in own)
    return Staged(own, data, [d or of(view) for d, view in zip(taken, data, strict=True)])


def batches(own: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces so that one task is worth the price of handing it to a thread."""
    batch: list[Piece] = []
    nbytes = 0
    for piece in own:
        batch.append(piece)
        nbytes += piece.nbytes
        if nbytes >= BATCH_NBYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


class Arena:
    """Memory for private copies, kept between saves: fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self._memory: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def copy(self, leaves: Sequence[Leaf], threads: Threads) -> list[Leaf]:
        """Return the leaves with arrays copied into this arena, contiguous and little-endian.

        The copies live until the next call.
        """
        starts = []
        end = 0
        for leaf in leaves:
            starts.append(end)
            end += -(-leaf.array.nbytes // pages.ALIGNMENT) * pages.ALIGNMENT
        if end > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8)  # give the old memory back first
            self._memory = pages.aligned(end)
        copies = [
            self._memory[at : at + leaf.array.nbytes]
            .view(leaf.dtype.numpy)
            .reshape(leaf.array.shape)
            for at, leaf in zip(starts, leaves, strict=True)
        ]
        work = [
            pair for n, leaf in enumerate(leaves) for pair in _slices(leaf.array, copies[n])
        ]
        for _ in threads.ordered(_copy_all, _copy_batches(work), ahead=8):
            pass
        return [leaf._replace(array=copy) for leaf, copy in zip(leaves, copies, strict=True)]


def _slices(source: Array, target: Array) -> Iterator[tuple[Array, Array]]:
    """Cut a large copy into parts, which several threads can share."""
    limit = BATCH_NBYTES
    if source.flags.c_contiguous:
        source, target, limit = source.reshape(-1), target.reshape(-1), COPY_NBYTES
    rows = source.shape[0] if source.ndim else 1
    if source.nbytes <= limit or rows < 2:
        yield source, target
        return
    step = max(1, rows * limit // source.nbytes)
    for begin in range(0, rows, step):
        yield source[begin : begin + step], target[begin : begin + step]


def _copy_batches(work: Iterable[tuple[Array, Array]]) -> Iterator[list[tuple[Array, Array]]]:
    batch: list[tuple[Array, Array]] = []
    nbytes = 0
    for pair in work:
        batch.append(pair)
        nbytes += pair[0].nbytes
        if nbytes >= BATCH_NBYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _copy_all(batch: Sequence[tuple[Array, Array]]) -> None:
    for source, target in batch:
        np.copyto(target, source)
