"""Zstandard frames that say how long their content is (spec §7.1.3, RFC 8878)."""

from __future__ import annotations

from typing import Final, TypeAlias

import zstandard

from ckptfmt.errors import FormatError, IntegrityError

Buffer: TypeAlias = bytes | bytearray | memoryview

_LEVEL: Final = 1  # higher levels cost far more time than they save on weights


def compress(data: Buffer) -> bytes:
    """Return `data` as one frame."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decompress(stored: Buffer, *, nbytes: int, **where: object) -> bytes:
    """Return the content of one zstd frame that must declare exactly `nbytes`.

    Raises:
        FormatError: the declared length differs or is missing.
        IntegrityError: damaged frame, or bytes after it.
    """
    try:
        declared = zstandard.frame_content_size(stored)
    except zstandard.ZstdError as error:
        raise IntegrityError("not a zstd frame", **where) from error
    if declared != nbytes:
        raise FormatError(
            "zstd frame declares another length", expected=nbytes, found=declared, **where
        )
    try:
        # One call into `nbytes` of memory. A streaming decoder finds out only at the end of the
        # frame that the declared length was a lie: 32 KB can fill a gigabyte until then.
        raw = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise IntegrityError(f"damaged zstd frame: {error}", **where) from error
    if len(raw) != nbytes:
        raise IntegrityError("truncated zstd frame", expected=nbytes, found=len(raw), **where)
    return raw
