"""Two ways to write a large new file, behind one function (spec §3).

Through the page cache, in groups of blocks with early writeback: best for most files. Past the
page cache, through two aligned buffers that are used again and again: best for very large ones,
because filling fresh memory, the cache's pages included, can be slower than the disk.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

import numpy as np

from ckptfmt.backends import _syscalls

DIRECT_NBYTES: Final = 128 << 20  # from this length on a durable file goes past the page cache
RESERVE_NBYTES: Final = 8 << 20  # from this length on the space is reserved first
# One call. With more at once Linux takes pages of 2 MiB for the cache: measured on a machine
# that had been idle, writing then took twice as long; otherwise the size makes no difference.
GROUP_NBYTES: Final = 1 << 20
GROUP_BLOCKS: Final = 1024  # what POSIX systems take at once (IOV_MAX)
WRITEBACK_NBYTES: Final = 8 << 20  # handed to the disk together
# Larger ones were slower: their memory is fresh, and touching it costs as much as the disk.
BUFFER_NBYTES: Final = 4 << 20
BUFFERS: Final = 2
# From this length on a copy lets other threads run Python meanwhile: they digest what is next.
UNLOCKED_NBYTES: Final = 64 << 10
ALIGNMENT: Final = 4096  # of memory, offset and length; no disk in use asks for more

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Guard: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Makes the context in which storage is called; it turns an OSError into a BackendError."""


def write_file(
    path: str,
    blocks: Iterator[memoryview],
    nbytes: int,
    *,
    durable: bool,
    guard: Guard,
    direct_nbytes: int = DIRECT_NBYTES,
) -> None:
    """Create a file and fill it with the blocks; remove it again if anything fails.

    Holds at most `GROUP_NBYTES` of blocks, or `BUFFERS` * `BUFFER_NBYTES` of their bytes, at
    a time. Durable on return, the name in the folder excepted. A failed sync is not repeated:
    the kernel drops the pages it could not write, so that a second one would succeed falsely.

    Args:
        blocks: Not empty, `nbytes` bytes together. Its exceptions pass through unchanged: it
            is never advanced inside `guard`.

    Raises:
        FileExistsError: the name is taken (through `guard` like every other OSError).
    """
    with guard():
        fd = _syscalls.open_new(path)
    with _removed_unless_complete(path):
        try:
            with guard():
                if nbytes >= RESERVE_NBYTES:
                    _reserve(fd, nbytes)
                direct = _open_direct(path) if durable and nbytes >= direct_nbytes else None
            if direct is None:
                _write_grouped(fd, blocks, nbytes, durable, guard)
            else:
                _write_direct(direct, fd, blocks, guard)
            if durable:
                with guard():
                    _syscalls.sync(fd)
        finally:
            with guard():
                _syscalls.close(fd)


@contextlib.contextmanager
def _removed_unless_complete(path: str) -> Iterator[None]:
    complete = False
    try:
        yield
        complete = True
    finally:
        if not complete:
            with contextlib.suppress(OSError):  # the first error is the one to report
                _syscalls.unlink(path)


def _reserve(fd: int, nbytes: int) -> None:
    try:
        _syscalls.reserve(fd, nbytes)
    except OSError as error:
        if error.errno in NO_SPACE:  # better now than after filling the disk
            raise


def _open_direct(path: str) -> int | None:
    try:
        return _syscalls.open_direct(path)
    except OSError:
        return None  # whatever the reason, the page cache will do


def _write_grouped(
    fd: int, blocks: Iterator[memoryview], nbytes: int, durable: bool, guard: Guard
) -> None:
    written = started = 0
    for group in _groups(blocks):
        with guard():
            written += _write_all(fd, group)
            # The end of the file is about to be synced anyway.
            if durable and started + WRITEBACK_NBYTES <= written < nbytes:
                with contextlib.suppress(OSError):
                    _syscalls.start_writeback(fd, started, written - started)
                started = written


def _groups(
    blocks: Iterable[memoryview], limit: int = GROUP_BLOCKS
) -> Iterator[list[memoryview]]:
    """Yield the blocks in lists of at most `GROUP_NBYTES` and `limit` blocks.

    A block that exceeds a list is split. A list that ends for its length has all of it.
    """
    group: list[memoryview] = []
    size = 0
    for block in blocks:
        rest = block
        while size + rest.nbytes >= GROUP_NBYTES:
            part = rest[: GROUP_NBYTES - size]
            rest = rest[part.nbytes :]
            yield [*group, part]
            group, size = [], 0
        if rest.nbytes:
            group.append(rest)
            size += rest.nbytes
            if len(group) == limit:
                yield group
                group, size = [], 0
    if group:
        yield group


def _write_all(fd: int, views: list[memoryview]) -> int:
    """Append all views, in as many calls as it takes; return their length."""
    total: int = sum(map(operator.attrgetter("nbytes"), views))
    missing = total
    while missing:
        written = _syscalls.write(fd, views)
        missing -= written
        if missing:
            views = _after(views, written)
    return total


def _after(views: list[memoryview], written: int) -> list[memoryview]:
    for index, view in enumerate(views):
        if written < view.nbytes:
            return [view[written:], *views[index + 1 :]]
        written -= view.nbytes
    return []


def _write_direct(direct: int, plain: int, blocks: Iterator[memoryview], guard: Guard) -> None:
    """Copy the blocks through the buffers; each is written by a thread while the next fills."""
    pending: list[_Piece | None] = [None] * BUFFERS
    turn = filled = offset = 0
    try:
        buffers = [memoryview(mmap.mmap(-1, BUFFER_NBYTES)) for _ in range(BUFFERS)]
        for group in _groups(blocks, BUFFER_NBYTES):  # a buffer is a whole number of groups
            if not filled:
                _wait(pending[turn], guard)
            filled = _copy_all(group, buffers[turn], filled)
            if filled == BUFFER_NBYTES:
                pending[turn] = _Piece(direct, plain, buffers[turn], offset)
                offset += filled
                turn, filled = (turn + 1) % BUFFERS, 0
        for piece in pending:
            _wait(piece, guard)
        with guard():
            _write_piece(direct, plain, buffers[turn][:filled], offset)
    finally:
        for piece in pending:
            if piece is not None:
                piece.join()
        with guard():
            _syscalls.close(direct)


def _copy_all(views: list[memoryview], target: memoryview, at: int) -> int:
    """Copy the views into `target` from `at` on, one behind the other; return the end."""
    for view in views:
        end = at + view.nbytes
        if view.nbytes < UNLOCKED_NBYTES:
            target[at:end] = view
        else:
            np.copyto(np.frombuffer(target[at:end], np.uint8), np.frombuffer(view, np.uint8))
        at = end
    return at


class _Piece:
    """A piece that a thread of its own is writing.

    Not a task of an executor: those refuse work once the interpreter has begun to exit, which
    is just when a pending save must be allowed to finish.
    """

    def __init__(self, direct: int, plain: int, view: memoryview, offset: int) -> None:
        self._work = direct, plain, view, offset
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ckptfmt-write", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            _write_piece(*self._work)
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        """Wait until it is written, or has failed."""
        self._thread.join()

    def result(self) -> None:
        """Wait until it is written; raise what went wrong."""
        self.join()
        if self._error is not None:
            raise self._error


def _wait(piece: _Piece | None, guard: Guard) -> None:
    if piece is not None:
        with guard():
            piece.result()


def _write_piece(direct: int, plain: int, view: memoryview, offset: int) -> None:
    """Write the aligned part past the page cache, and what is refused there, or left, plainly.

    A real failure (no space, a broken disk) shows again in the plain write.
    """
    written = 0
    aligned = view.nbytes - view.nbytes % ALIGNMENT
    with contextlib.suppress(OSError):
        while written < aligned:
            written += _syscalls.write_at(direct, view[written:aligned], offset + written)
    while written < view.nbytes:
        written += _syscalls.write_at(plain, view[written:], offset + written)
