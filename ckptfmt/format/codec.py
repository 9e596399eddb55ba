"""Chunk codecs by name (spec §7.1): `raw` and `zstd`.

A codec maps the little-endian bytes of one box to stored bytes and back. The decoded length is
known from shape × dtype before anything is decoded, so a decompression bomb is refused by its
frame header, before memory is spent.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import zstandard

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError, UsageError

Buffer: TypeAlias = bytes | bytearray | memoryview

RAW: Final = "raw"
ZSTD: Final = "zstd"
CODECS: Final = (RAW, ZSTD)

_LEVEL: Final = 1  # higher levels cost far more time than they save on weights


def encode(name: str, data: Buffer) -> Buffer:
    """Return the stored form of `data` under codec `name`."""
    return data if name == RAW else zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decode_into(name: str, stored: Buffer, target: memoryview, **where: object) -> None:
    """Decode `stored` into `target`, filling it exactly.

    Raises:
        FormatError: the frame declares another length than `target` has.
        IntegrityError: the frame does not decode.
        UnsupportedError: unknown codec.
    """
    if name == RAW:
        raw: Buffer = stored
    elif name == ZSTD:
        raw = decompress(stored, nbytes=target.nbytes, **where)
    else:
        raise UnsupportedError(f"unknown codec {name!r}: upgrade ckptfmt", **where)
    if len(raw) != target.nbytes:
        raise FormatError(
            "decoded length differs", expected=target.nbytes, found=len(raw), **where
        )
    target[:] = raw


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


def stored(name: object, at: str) -> str:
    """Return the codec name a manifest uses.

    Raises:
        UnsupportedError: this release does not know it.
    """
    if not isinstance(name, str) or name not in CODECS:
        raise UnsupportedError(
            f"unknown codec: upgrade ckptfmt, it knows {list(CODECS)}", at=at, found=name
        )
    return name


def chosen(name: str) -> str:
    """Return `name` when a caller may ask for it.

    Raises:
        UsageError: there is no such codec.
    """
    if name not in CODECS:
        raise UsageError("no such codec", expected=list(CODECS), found=name)
    return name
