"""Packed bytes → a scratch file without a name, mapped: unpacked, and not held in memory."""

from __future__ import annotations

import bz2
import lzma
import mmap
import tempfile
import zlib
from collections.abc import Callable
from typing import Any, Final

from ckptfmt.errors import BackendError, FormatError

MAX_UNPACKED_NBYTES: Final = 64 * 2**30
MAX_RATIO: Final = 1100  # deflate cannot do better than 1032; others could unfold without end
FREE_NBYTES: Final = 2**28  # so much may be unpacked whatever the ratio
_BLOCK: Final = 2**20
_LZMA_NBYTES: Final = 2**28  # memory for its dictionary; `xz -9` needs 65 MB

# First bytes → what unpacks them.
_UNPACKERS: Final[tuple[tuple[bytes, Callable[[], Any]], ...]] = (
    (b"\x1f\x8b\x08", lambda: zlib.decompressobj(31)),
    (b"\x78\x01", zlib.decompressobj),
    (b"\x78\x5e", zlib.decompressobj),
    (b"\x78\x9c", zlib.decompressobj),
    (b"\x78\xda", zlib.decompressobj),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(memlimit=_LZMA_NBYTES)),
)
_LZMA: Final = b"\x5d\0\0"  # of the old kind, which tells no length: eight bytes of ones


def unpacker(head: bytes) -> Any:
    """Return what unpacks a stream that begins so, or None when it is not packed."""
    if head[:3] == _LZMA and head[5:13] == b"\xff" * 8:
        return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_LZMA_NBYTES)
    return next((make() for magic, make in _UNPACKERS if head.startswith(magic)), None)


def unpacked(
    data: memoryview, machine: Any, file: str, *, nbytes: int | None = None
) -> memoryview:
    """Return what a packed stream holds, mapped from a scratch file.

    Args:
        machine: One of zlib's, bz2's or lzma's, at its beginning.
        nbytes: Length that it must have.

    Raises:
        FormatError: malformed, truncated, of another length, or it unpacks to too much.
        BackendError: the scratch file cannot be written.
    """
    limit = min(MAX_UNPACKED_NBYTES, max(FREE_NBYTES, len(data) * MAX_RATIO))
    limit = limit if nbytes is None else min(limit, nbytes)
    try:
        with tempfile.TemporaryFile() as scratch:
            written = _fill(scratch, data, machine, file, limit)
            scratch.flush()
            if not written:
                return memoryview(b"")
            found = memoryview(mmap.mmap(scratch.fileno(), written, access=mmap.ACCESS_READ))
    except FormatError:
        raise
    except OSError as error:
        raise BackendError("cannot write the scratch file", file=file) from error
    if nbytes not in (None, written):
        raise FormatError(
            "unpacks to another length", file=file, expected=nbytes, found=written
        )
    return found


def _fill(scratch: Any, data: memoryview, machine: Any, file: str, limit: int) -> int:
    written = at = 0
    feed: Any = b""
    while not machine.eof:
        if not feed and getattr(machine, "needs_input", True):
            feed = data[at : at + _BLOCK]
            at += len(feed)
            if not feed:
                break
        try:
            out = machine.decompress(feed, _BLOCK)
        except (zlib.error, OSError, lzma.LZMAError, EOFError, ValueError) as error:
            raise FormatError("a packed stream is malformed", file=file) from error
        feed = getattr(machine, "unconsumed_tail", b"")
        written += len(out)
        if written > limit:
            raise FormatError("unpacks to too much", file=file, expected=f"at most {limit}")
        scratch.write(out)
    if not machine.eof or machine.unused_data or at < len(data):
        raise FormatError("a packed stream is truncated, or bytes follow it", file=file)
    return written
