"""The same bytes through the page cache: no format, digest, checks or commit. A lower bound.

Its file: a head, an index, zeros up to a page, the arrays one after the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import xxhash

from tests.bench.contract import FIRST, Listing, Saver, plain, sync
from tests.bench.workloads import Arrays

NAME = "limit: page cache"
READS = "limit_page_cache"
DISTRIBUTIONS = ("numpy", "xxhash")

HEAD: Final = struct.Struct("<QQd")  # length of the index, examples seen, loss
PAGE: Final = 4096
CALL_NBYTES: Final = 1 << 20  # one write; larger ones were not faster, and slower after idling
CALL_VIEWS: Final = 1024  # IOV_MAX
EARLY_NBYTES: Final = 8 << 20  # handed to the disk while the next ones are written
PREALLOCATE_NBYTES: Final = 8 << 20
THREADS: Final = 2
SYNC_FILE_RANGE_WRITE: Final = 2


def file(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}.bin"


def prepare(arrays: Arrays) -> Arrays:
    return {path: plain(array) for path, array in arrays.items()}


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        write(file(folder, seen), state, seen, loss, durable=durable)

    return save


def second_saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    """Digest everything with two threads, write what differs from the save before."""
    known: dict[str, bytes] = {}

    def save(state: Any, seen: int, loss: float) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            digests = dict(zip(state, pool.map(_digest, state.values()), strict=True))
        new = {path: a for path, a in state.items() if known.get(path) != digests[path]}
        known.update(digests)
        write(file(folder, seen), new, seen, loss, durable=durable)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    with _opened(folder) as (fd, index):
        data = np.empty(sum(_nbytes(index)), np.uint8)
        view, start = flat(data), index["start"]
        steps = range(0, data.nbytes, EARLY_NBYTES)
        _read(fd, [(start + at, [view[at : at + EARLY_NBYTES]]) for at in steps])
    return _arrays(index, data)


def load_into(folder: pathlib.Path, state: Any) -> None:
    with _opened(folder) as (fd, index):
        at = index["start"]
        work: list[tuple[int, list[memoryview]]] = []
        for group in _groups([flat(state[path]) for path in _names(index)], EARLY_NBYTES):
            work.append((at, group))
            at += sum(view.nbytes for view in group)
        _read(fd, work)


def load_mmap(folder: pathlib.Path) -> Mapping[str, Any]:
    with _opened(folder) as (fd, index):
        data = np.frombuffer(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), np.uint8)
    return _arrays(index, data[index["start"] :])


def listing(folder: pathlib.Path) -> Listing:
    with _opened(folder) as (_, index):
        return [(path, tuple(shape), index["dtype"]) for path, shape in _shapes(index)]


def one(folder: pathlib.Path, path: str) -> Any:
    with _opened(folder) as (fd, index):
        at = index["start"]
        for (name, shape), nbytes in zip(_shapes(index), _nbytes(index), strict=True):
            if name == path:
                array = np.empty(shape, index["dtype"])
                os.preadv(fd, [flat(array)], at)
                return array
            at += nbytes
    raise KeyError(path)


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for name in sorted(os.listdir(folder)):
        fd = os.open(f"{folder}/{name}", os.O_RDONLY)
        _, seen, loss = HEAD.unpack(os.read(fd, HEAD.size))
        os.close(fd)
        found.append((seen, loss))
    return found


def head(state: Arrays, seen: int, loss: float) -> bytes:
    """Return what stands before the arrays, whole pages long."""
    shapes = [array.shape for array in state.values()]
    dtype = next(iter(state.values())).dtype.name
    index = json.dumps({"paths": "\n".join(state), "shapes": shapes, "dtype": dtype}).encode()
    data = HEAD.pack(len(index), seen, loss) + index
    return data + bytes(-len(data) % PAGE)


def write(path: pathlib.Path, state: Arrays, seen: int, loss: float, *, durable: bool) -> None:
    """Write all arrays straight from their memory; start the disk early if it has to wait."""
    first = head(state, seen, loss)
    total = len(first) + sum(array.nbytes for array in state.values())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if total >= PREALLOCATE_NBYTES:
            os.posix_fallocate(fd, 0, total)
        written = started = 0
        views = [memoryview(first), *(flat(array) for array in state.values())]
        for group in _groups(views, CALL_NBYTES):
            written += _write_all(fd, group)
            if durable and written - started >= EARLY_NBYTES:
                _start_writeback(fd, started, written - started)
                started = written
    finally:
        os.close(fd)
    if durable:
        sync(path)


def _write_all(fd: int, views: list[memoryview]) -> int:
    total = sum(view.nbytes for view in views)
    written = os.writev(fd, views)
    if written < total:  # a full disk, or a signal: no measurement
        raise OSError(f"wrote {written} of {total} bytes")
    return total


def _start_writeback(fd: int, offset: int, nbytes: int) -> None:
    libc = ctypes.CDLL(None)
    call = getattr(libc, "sync_file_range", None)
    if call is not None:
        call(fd, ctypes.c_int64(offset), ctypes.c_int64(nbytes), SYNC_FILE_RANGE_WRITE)


def _groups(views: list[memoryview], nbytes: int) -> Iterator[list[memoryview]]:
    """Yield the views in lists of at most `nbytes`; split those that are longer."""
    group: list[memoryview] = []
    size = 0
    for view in views:
        rest = view
        while rest.nbytes:
            part = rest[: nbytes - size]
            rest = rest[part.nbytes :]
            group.append(part)
            size += part.nbytes
            if size == nbytes or len(group) == CALL_VIEWS:
                yield group
                group, size = [], 0
    if group:
        yield group


def flat(array: Any) -> memoryview:
    return memoryview(array).cast("B") if array.ndim else memoryview(array.reshape(1)).cast("B")


def _read(fd: int, work: list[tuple[int, list[memoryview]]]) -> None:
    def fill(item: tuple[int, list[memoryview]]) -> None:
        at, views = item
        expected = sum(view.nbytes for view in views)
        found = os.preadv(fd, views, at)
        if found != expected:
            raise OSError(f"read {found} of {expected} bytes")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, work))


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the descriptor and the index, which also says where the arrays start."""
    fd = os.open(file(folder), os.O_RDONLY)
    try:
        data = os.read(fd, PAGE)
        end = HEAD.size + HEAD.unpack_from(data)[0]
        data += os.read(fd, max(0, end - PAGE))
        index = json.loads(data[HEAD.size : end])
        index["start"] = end + -end % PAGE
        yield fd, index
    finally:
        os.close(fd)


def _names(index: dict[str, Any]) -> list[str]:
    return index["paths"].split("\n")  # type: ignore[no-any-return]


def _shapes(index: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    return zip(_names(index), index["shapes"], strict=True)


def _nbytes(index: dict[str, Any]) -> list[int]:
    itemsize = np.dtype(index["dtype"]).itemsize
    return [itemsize * math.prod(shape) for shape in index["shapes"]]


def _arrays(index: dict[str, Any], data: Any) -> dict[str, Any]:
    found = {}
    at = 0
    for path, shape in _shapes(index):
        found[path] = np.ndarray(shape, index["dtype"], buffer=data, offset=at)
        at += found[path].nbytes
    return found


def _digest(array: Any) -> bytes:
    return xxhash.xxh3_128_digest(flat(array))
