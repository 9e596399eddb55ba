"""HDF5 looked at in this process instead of one of its own, so that coverage guides the fuzzer.

`h5walk.py` runs as it does there, with the same limit of memory; the time is limited from
outside. What hangs or crashes libhdf5 ends the fuzzer: `__main__.py` then asks the process
that is there for it, whose answer must be an error of ours.
"""

from __future__ import annotations

import faulthandler
import json
import struct
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import apart, h5walk
from ckptfmt.migrate.files import Span

_NEVER: Final = 10**6  # seconds


def install() -> None:
    """Let the reader of HDF5 ask this process."""
    apart.ask = ask


def ask(span: Span, path: str | None = None, into: memoryview | None = None) -> list[Any]:
    """Do what `apart.ask` does."""
    memory = 0 if into is None else len(into)
    request = {"path": path, "nbytes": span.nbytes, "memory": memory, "seconds": _NEVER}
    parent = _Parent(span, into)
    try:
        said = h5walk._answer(json.loads(json.dumps(request)), parent, parent)  # type: ignore[arg-type]
    finally:
        faulthandler.cancel_dump_traceback_later()
    answer: list[Any] = json.loads(json.dumps(said))
    if answer[0] == "refused":
        raise FormatError(answer[1], file=span.name, **answer[2])
    if parent.filled != memory:
        raise FormatError("an array is shorter than it says", file=span.name, path=path)
    return answer


class _Parent:
    """Both pipes, as the child sees them."""

    def __init__(self, span: Span, into: memoryview | None) -> None:
        self.filled = 0
        self._span, self._into = span, into
        self._said, self._answer = b"", b""

    def write(self, data: bytes) -> int:
        self._said += data
        return len(data)

    def flush(self) -> None:
        """Take the frame that is complete now."""
        kind, payload = self._said[:1], self._said[9:]
        assert int.from_bytes(self._said[1:9], "little") == len(payload)
        self._said = b""
        if kind == b"?":
            offset, nbytes = struct.unpack("<QQ", payload)
            self._answer = bytes(self._span.data[offset : offset + nbytes])
        elif kind == b"d":
            assert self._into is not None
            if self.filled + len(payload) > len(self._into):
                raise FormatError("an array is longer than it says", file=self._span.name)
            self._into[self.filled : self.filled + len(payload)] = payload
            self.filled += len(payload)
        else:
            raise AssertionError(f"an unknown frame: {kind!r}")

    def read(self, nbytes: int) -> bytes:
        """Return what was asked for."""
        assert nbytes == len(self._answer)
        return self._answer
