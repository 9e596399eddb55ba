"""Leaves → flat little-endian buffers and their digests, without copying where memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ckptfmt._engine.plan import Piece
from ckptfmt.format.digest import Digest
from ckptfmt.tree import Leaf

BATCH_NBYTES: Final = 8 * 2**20  # work handed to a thread at once; several fit in its cache
BATCH_PIECES: Final = 1024

T = TypeVar("T")
U = TypeVar("U")


class Staged(NamedTuple):
    """The bytes of one piece, and their digest."""

    piece: Piece
    data: memoryview
    digest: bytes


def flat_bytes(array: npt.NDArray[np.generic]) -> memoryview:
    """Return the memory of a C-contiguous array as bytes; nothing is copied."""
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
        for begin, stride in zip(piece.start, array.strides, strict=True):
            offset += begin * stride
        return data[offset : offset + piece.nbytes]
    box = array[tuple(slice(b, b + n) for b, n in zip(piece.start, piece.shape, strict=True))]
    return flat_bytes(np.ascontiguousarray(box, dtype=dtype))


def stage(leaves: Sequence[Leaf], own: Sequence[Piece], algorithm: Digest) -> list[Staged]:
    """Return the bytes and digests of some pieces."""
    of = algorithm.of
    staged = []
    for piece in own:
        data = piece_bytes(leaves[piece.leaf], piece)
        staged.append(Staged(piece, data, of(data)))
    return staged


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


def ordered(
    pool: Executor, task: Callable[[T], U], work: Iterable[T], *, ahead: int
) -> Iterator[U]:
    """Run `task` over `work` in `pool`, yield results in order, at most `ahead` in flight.

    Unlike `Executor.map` it does not run through all the work at once: the bytes that wait to
    be written stay bounded.
    """
    waiting: deque[Future[U]] = deque()
    try:
        for item in work:
            waiting.append(pool.submit(task, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
