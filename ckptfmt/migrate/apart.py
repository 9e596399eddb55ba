"""HDF5 is looked at in a process of its own: one that hangs or crashes is an error here.

`h5walk.py` runs there, and tells what the two say to each other. It is given no file and no
name, only the ranges of bytes that it asks for; what it answers is data.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import struct
import subprocess
import sys
from typing import Any, Final

from ckptfmt.errors import BackendError, FormatError
from ckptfmt.migrate import files

LIMIT_SECONDS: float = 20.0  # for one group, dataset or part of an array
# The child finds the same packages, however this process was told of them.
_START: Final = """
import runpy, sys
program, *sys.path[:] = sys.argv[1:]
runpy.run_path(program, run_name="__main__")
"""
_PROGRAM: Final = os.path.join(os.path.dirname(__file__), "h5walk.py")

_idle: dict[int, _Child] = {}  # process → its child that waits; a fork must not use ours


class _Ended(Exception):
    """The child is gone, with this status."""


class _Idled(_Ended):
    """It was gone before it was asked: one that has waited for long ends by itself."""


def ask(span: files.Span, path: str | None = None, into: memoryview | None = None) -> list[Any]:
    """Return all that a file holds, or fill `into` with the bytes of the dataset at `path`.

    Raises:
        FormatError: malformed or refused, or libhdf5 hung or crashed over it.
        BackendError: the process cannot be started.
    """
    child = _idle.pop(os.getpid(), None)
    try:
        if child is not None:
            with contextlib.suppress(_Idled):
                return _asked(child, span, path, into)
        return _asked(_Child(), span, path, into)
    except _Ended as error:
        raise FormatError(
            "the HDF5 library hangs, crashes or takes all memory over this file",
            file=span.name, path=path, status=error.args[0], limit_seconds=LIMIT_SECONDS,
        ) from error  # fmt: skip


def _asked(
    child: _Child, span: files.Span, path: str | None, into: memoryview | None
) -> list[Any]:
    with contextlib.ExitStack() as on_error:
        on_error.callback(child.end)  # it may be in the middle of something
        answer = child.ask(span, path, into)
        on_error.pop_all()
    other = _idle.pop(os.getpid(), None)  # of another thread
    if other is not None:
        other.end()
    _idle[os.getpid()] = child
    if answer[0] == "refused":
        raise FormatError(answer[1], file=span.name, **answer[2])
    return answer


class _Child:
    def __init__(self) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, _PROGRAM, *paths],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise BackendError(
                "cannot start Python to read HDF5", program=sys.executable
            ) from error
        try:
            self._frame()
        except _Ended as error:
            self.end()
            raise BackendError(
                "the process that reads HDF5 does not start: does `import h5py` work?",
                program=sys.executable, status=error.args[0],
            ) from error  # fmt: skip

    def ask(self, span: files.Span, path: str | None, into: memoryview | None) -> list[Any]:
        """Return the answer to one request, serving the bytes it needs."""
        filled, memory = 0, 0 if into is None else len(into)
        request = {"path": path, "nbytes": span.nbytes, "memory": memory}
        try:
            self._write(json.dumps({**request, "seconds": LIMIT_SECONDS}).encode() + b"\n")
            kind, payload = self._frame()  # it cannot do anything before it asks for bytes
        except _Ended as error:
            raise _Idled(*error.args) from error
        while True:
            if kind == b"?":
                offset, nbytes = struct.unpack("<QQ", payload)
                self._write(span.data[offset : offset + nbytes])
            elif kind == b"d" and into is not None and filled + len(payload) <= memory:
                into[filled : filled + len(payload)] = payload
                filled += len(payload)
            elif kind == b".":
                answer: list[Any] = json.loads(payload)
                if answer[0] != "refused" and filled != memory:
                    raise FormatError(
                        "an array is shorter than it says", file=span.name, path=path
                    )
                return answer
            else:
                raise _Ended("an answer that makes no sense")
            kind, payload = self._frame()

    def _frame(self) -> tuple[bytes, bytes]:
        assert self._process.stdout is not None
        head = self._process.stdout.read(9)
        if len(head) < 9:
            raise _Ended(self._process.wait())
        nbytes = int.from_bytes(head[1:], "little")
        payload = self._process.stdout.read(nbytes)
        if len(payload) < nbytes:
            raise _Ended(self._process.wait())
        return head[:1], payload

    def _write(self, data: bytes | memoryview) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:  # a broken pipe
            raise _Ended(self._process.wait()) from error

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        with contextlib.suppress(OSError):  # what is still in the pipe's buffer
            self._process.communicate()


@atexit.register
def _end() -> None:
    child = _idle.pop(os.getpid(), None)
    if child is not None:
        child.end()
