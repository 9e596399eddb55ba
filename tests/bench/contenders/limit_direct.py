"""The same bytes past the page cache (O_DIRECT): a lower bound for durable saves."""

from __future__ import annotations

import mmap
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from tests.bench.contenders import limit_page_cache
from tests.bench.contenders.limit_page_cache import file, head
from tests.bench.contenders.limit_page_cache import prepare as prepare
from tests.bench.contract import Saver, sync
from tests.bench.workloads import Arrays

NAME = "limit: O_DIRECT"
READS = "limit_page_cache"
DISTRIBUTIONS = ("numpy",)
ONLY = ("save-durable", "save-idle")  # bytes that pass the page cache by are no cached save

BUFFER_NBYTES: Final = 4 << 20
BUFFERS: Final = 2  # one fills while the other is on its way; each has its thread


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        write(file(folder, seen), state, seen, loss)

    return save


def write(path: pathlib.Path, state: Arrays, seen: int, loss: float) -> None:
    """Copy all arrays through two aligned buffers that are used again and again."""
    first = head(state, seen, loss)
    total = len(first) + sum(array.nbytes for array in state.values())
    padded = total + -total % limit_page_cache.PAGE
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT
    fd = os.open(path, flags, 0o644)
    try:
        os.posix_fallocate(fd, 0, padded)
        views = [memoryview(first), *(limit_page_cache.flat(a) for a in state.values())]
        _write(fd, views)
        os.ftruncate(fd, total)
    finally:
        os.close(fd)
    sync(path)


def _write(fd: int, views: list[memoryview]) -> None:
    buffers = [memoryview(mmap.mmap(-1, BUFFER_NBYTES)) for _ in range(BUFFERS)]
    pending: list[Future[None] | None] = [None] * BUFFERS
    turn = filled = offset = 0
    with ThreadPoolExecutor(BUFFERS) as pool:
        for part in _parts(views):
            if not filled and (future := pending[turn]) is not None:
                future.result()
            buffers[turn][filled : filled + part.nbytes] = part
            filled += part.nbytes
            if filled == BUFFER_NBYTES:
                pending[turn] = pool.submit(_write_piece, fd, buffers[turn], offset)
                offset += filled
                turn, filled = (turn + 1) % BUFFERS, 0
        for future in pending:
            if future is not None:
                future.result()
        rest = filled + -filled % limit_page_cache.PAGE
        _write_piece(fd, buffers[turn][:rest], offset)


def _parts(views: list[memoryview]) -> Iterator[memoryview]:
    """Yield the views cut where a buffer ends."""
    filled = 0
    for view in views:
        rest = view
        while rest.nbytes:
            part = rest[: BUFFER_NBYTES - filled]
            rest = rest[part.nbytes :]
            filled = (filled + part.nbytes) % BUFFER_NBYTES
            yield part


def _write_piece(fd: int, view: memoryview, offset: int) -> None:
    if view.nbytes and os.pwrite(fd, view, offset) != view.nbytes:
        raise OSError(f"short write at {offset}")
