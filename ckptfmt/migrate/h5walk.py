"""Runs in a process of its own: finds out with h5py what an HDF5 file holds.

libhdf5 trusts lengths that it finds: over damaged files it has hung, crashed and asked for all
memory. Here that ends this process, which has a limit of time and of memory, and `apart.py`
says so. The file is not opened: the parent hands over the ranges that are asked for. Imports
nothing of ours, so that it starts quickly.

stdin     a request, one line of JSON each · the bytes that were asked for
stdout    frames: kind, length (u64), payload

kind      payload
r         this process is ready for requests
?         offset and length (u64 each) of a range; the parent answers with as many bytes as
          there are
d         a part of an array's bytes
.         the answer, JSON; no more frames of this request
"""

from __future__ import annotations

import base64
import contextlib
import faulthandler
import functools
import io
import json
import math
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import h5py
import numpy as np

MAX_OBJECTS: Final = 1_000_000
MAX_DEPTH: Final = 90
MAX_RATIO: Final = 1100  # what gzip can reach
MEMORY_NBYTES: Final = 2**30  # beside the interpreter, and the array that is loaded
IDLE_SECONDS: Final = 10.0  # without a request
FILTERS: Final = frozenset({1, 2, 3})  # gzip, shuffle, Fletcher-32
_BLOCK: Final = 2**16  # the least that is asked for; libhdf5 looks at a few bytes at a time
_SLAB: Final = 2**24  # of an array, at a time
_BAD: Final = (OSError, KeyError, ValueError, RuntimeError, TypeError, OverflowError)


class Refused(Exception):
    """This file is not read, and why."""

    def __init__(self, message: str, **where: object) -> None:
        super().__init__(message)
        self.where = where


def send(out: BinaryIO, kind: bytes, payload: bytes | memoryview = b"") -> None:
    """Write one frame."""
    out.write(kind + struct.pack("<Q", len(payload)))
    out.write(payload)
    out.flush()


class _Range(io.RawIOBase):
    """The parent's file; what was read of it is kept, as far as it is small."""

    def __init__(self, nbytes: int, out: BinaryIO, answers: BinaryIO) -> None:
        super().__init__()
        self._nbytes, self._at = nbytes, 0
        self._out, self._answers = out, answers
        self._block = functools.lru_cache(256)(lambda n: self._asked(n * _BLOCK, _BLOCK))

    def _asked(self, offset: int, nbytes: int) -> bytes:
        nbytes = max(0, min(nbytes, self._nbytes - offset))
        if not nbytes:
            return b""
        send(self._out, b"?", struct.pack("<QQ", offset, nbytes))
        return self._answers.read(nbytes)

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        offset, nbytes = self._at, len(target)
        first, last = offset // _BLOCK, (offset + max(nbytes, 1) - 1) // _BLOCK
        if last - first > 1:
            data = self._asked(offset, nbytes)
        else:
            data = b"".join(self._block(n) for n in range(first, last + 1))
            data = data[offset - first * _BLOCK :][:nbytes]
        target[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._nbytes)[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Clock:
    """Ends this process when nothing is finished for so long, also within libhdf5."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._set = seconds, 0.0
        self.progress()

    def progress(self) -> None:
        """Begin to count anew."""
        now = time.monotonic()
        if now - self._set > min(1, self._seconds / 8):  # setting it starts a thread
            faulthandler.dump_traceback_later(self._seconds, exit=True)
            self._set = now


class Walk:
    """One pass over the objects of a file, component by component."""

    def __init__(self, nbytes: int, clock: _Clock) -> None:
        self._nbytes, self._clock = nbytes, clock
        self._seen: set[int] = set()  # addresses: a hard link can lead back

    def file(self, file: Any) -> list[Any]:
        """Return all of a file: nodes as `apart.py` knows them."""
        if file.userblock_size:
            raise Refused("a user block before the HDF5 data", path="")
        return self.group(file, "", 0)

    def group(self, group: Any, path: str, depth: int) -> list[Any]:
        """Return a group: its attributes as `@name`, then its members."""
        self._visit(group, path, depth)
        found = self._attributes(group, path)
        for name in group:
            below = f"{path}/{name}"
            link = group.get(name, getlink=True)  # looks at the link, does not follow it
            if type(link) is not h5py.HardLink:
                raise Refused("a link that is not a hard one", path=below)
            member = group[name]
            if isinstance(member, h5py.Group):
                _put(found, name, self.group(member, below, depth + 1), below)
            elif isinstance(member, h5py.Dataset):
                self._visit(member, below, depth)
                _put(found, name, self._dataset(member, below), below)
                for key, value in self._attributes(member, below).items():
                    _put(found, f"{name}{key}", value, below)
            else:
                raise Refused("an object that is no dataset and no group", path=below)
        return ["group", list(found.items())]

    def _visit(self, node: Any, path: str, depth: int) -> None:
        self._clock.progress()
        address = h5py.h5o.get_info(node.id).addr
        if address in self._seen or depth > MAX_DEPTH or len(self._seen) > MAX_OBJECTS:
            raise Refused(
                "an object that is reached twice, or too deep, or too many", path=path
            )
        self._seen.add(address)

    def _attributes(self, node: Any, path: str) -> dict[str, list[Any]]:
        found = {}
        for name in node.attrs:
            kind = node.attrs.get_id(name).dtype
            if kind.hasobject and h5py.check_string_dtype(kind) is None:
                raise Refused("an attribute that refers to something", path=f"{path}@{name}")
            found[f"@{name}"] = _plain(node.attrs[name])
        return found

    def _dataset(self, node: Any, path: str) -> list[Any]:
        """Return one dataset after checking where its bytes are and how many."""
        plist = node.id.get_create_plist()
        filters = {plist.get_filter(n)[0] for n in range(plist.get_nfilters())}
        if node.is_virtual or plist.get_external_count() or not filters <= FILTERS:
            raise Refused("bytes outside the file, or an unknown filter", path=path)
        if h5py.check_string_dtype(node.dtype) is not None:
            if node.size is not None and node.size > self._nbytes:
                raise Refused("more texts than bytes", path=path)
            return _plain(node[()])
        if node.dtype.hasobject:
            raise Refused("a dataset of references", path=path)
        if node.shape is None:
            return ["value", None]  # of no space at all: HDF5's null
        nbytes = math.prod(node.shape) * node.dtype.itemsize
        stored = node.id.get_storage_size()
        if nbytes > stored * (MAX_RATIO if 1 in filters else 1) or stored > self._nbytes:
            raise Refused("more elements than bytes", path=path, expected=nbytes, found=stored)
        offset = None if filters else node.id.get_offset()
        return ["array", _descr(node.dtype), node.shape, path, offset]


def _put(found: dict[str, list[Any]], name: str, value: list[Any], path: str) -> None:
    if name in found:
        raise Refused("an attribute and an object would have one name", path=path, found=name)
    found[name] = value


def _descr(dtype: np.dtype[Any]) -> str:
    return repr(np.lib.format.dtype_to_descr(dtype))


def _plain(value: Any) -> list[Any]:
    """Return an attribute as plain data: text as str, arrays of text as lists."""
    if isinstance(value, bytes):
        try:
            return ["value", value.decode()]
        except UnicodeDecodeError:
            return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, np.bytes_ | np.str_):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "SOU" or not value.size:
            return _plain(value.tolist())
        return ["data", _descr(value.dtype), value.shape, _text(value), False]
    if isinstance(value, np.generic):
        return ["data", _descr(value.dtype), (), _text(np.asarray(value)), True]
    if isinstance(value, list):
        return ["list", [_plain(item) for item in value]]
    return ["value", value if value is None or isinstance(value, str) else str(value)]


def _text(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _slabs(node: Any, clock: _Clock) -> Iterator[bytes]:
    """Yield the bytes of a dataset, some rows at a time."""
    if not node.shape:
        yield np.asarray(node[()], node.dtype).tobytes()
        return
    row = math.prod(node.shape[1:]) * node.dtype.itemsize
    step = max(1, _SLAB // max(row, 1))
    if node.chunks:  # else each chunk would be unpacked twice
        step = -(-step // node.chunks[0]) * node.chunks[0]
    for at in range(0, node.shape[0], step):
        clock.progress()
        yield node[at : at + step].tobytes()


def _limit(nbytes: int) -> None:
    """Let this process have so much more memory, and no more; on Linux."""
    with contextlib.suppress(ImportError, FileNotFoundError):
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = used + nbytes
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def _answer(request: dict[str, Any], source: BinaryIO, out: BinaryIO) -> list[Any]:
    clock = _Clock(request["seconds"])
    nbytes, path = request["nbytes"], request["path"]
    _limit(MEMORY_NBYTES + 2 * request["memory"])
    try:
        with h5py.File(_Range(nbytes, out, source), "r") as file:
            if path is None:
                return Walk(nbytes, clock).file(file)
            for slab in _slabs(file[path], clock):
                send(out, b"d", slab)
            return ["value", None]
    except Refused as error:
        return ["refused", str(error), error.where]
    except MemoryError:
        return ["refused", "it needs too much memory", {"path": path or ""}]
    except _BAD as error:
        return ["refused", "malformed HDF5", {"problem": f"{type(error).__name__}: {error}"}]


def main() -> None:
    """Answer requests until there are no more."""
    source, out = sys.stdin.buffer, sys.stdout.buffer
    send(out, b"r")
    while True:
        faulthandler.dump_traceback_later(IDLE_SECONDS, exit=True)
        line = source.readline()
        if not line:
            return
        answer = _answer(json.loads(line), source, out)
        send(out, b".", json.dumps(answer).encode())


if __name__ == "__main__":
    main()
