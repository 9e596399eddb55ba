"""Chunk codecs by name (spec §7.1): `raw`, `zstd` and `planes+zstd`.

A codec maps the little-endian bytes of one box to stored bytes and back. The decoded length is
known from shape × dtype before anything is decoded, so a decompression bomb is refused by its
frame header, before memory is spent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ckptfmt.errors import FormatError, UnsupportedError, UsageError
from ckptfmt.format import planes, zstd
from ckptfmt.format.zstd import Buffer

RAW: Final = "raw"
ZSTD: Final = "zstd"
PLANES: Final = "planes+zstd"
CODECS: Final = (RAW, ZSTD, PLANES)
OPTIONAL: Final = (PLANES,)  # names of features, too: not every version-1 program knows them
AUTO: Final = "auto"  # a writer's choice, for each chunk; never stored

SAMPLE_NBYTES: Final = 256 << 10  # what `suited` tries
WORTH: Final = 0.95  # a chunk that keeps more of its length stays raw: it loads faster, mapped


def encode(name: str, data: Buffer, *, width: int) -> Buffer:
    """Return the stored form of `data` under codec `name`.

    Args:
        width: Bytes of one item.
    """
    if name == RAW:
        return data
    return planes.encode(data, width) if name == PLANES else zstd.compress(data)


def suited(data: Buffer, *, width: int) -> str:
    """Return the codec that makes a sample smallest, or raw where none is worth it."""
    view = memoryview(data)
    middle = (view.nbytes - SAMPLE_NBYTES) // 2 // width * width
    sample = view if middle <= 0 else view[middle : middle + SAMPLE_NBYTES // width * width]
    names = (ZSTD,) if width == 1 else (PLANES, ZSTD)
    nbytes, best = min((len(encode(name, sample, width=width)), name) for name in names)
    return best if nbytes < WORTH * sample.nbytes else RAW


def decode_into(name: str, stored: Buffer, target: memoryview, **where: object) -> None:
    """Decode `stored` into `target`, filling it exactly.

    Raises:
        FormatError: it declares another length than `target` has.
        IntegrityError: it does not decode.
        UnsupportedError: unknown codec.
    """
    if name == PLANES:
        planes.decode_into(stored, target, **where)
        return
    if name == RAW:
        raw: Buffer = stored
    elif name == ZSTD:
        raw = zstd.decompress(stored, nbytes=target.nbytes, **where)
    else:
        raise UnsupportedError(f"unknown codec {name!r}: upgrade ckptfmt", **where)
    if len(raw) != target.nbytes:
        raise FormatError(
            "decoded length differs", expected=target.nbytes, found=len(raw), **where
        )
    target[:] = raw


def features(names: Iterable[str]) -> tuple[str, ...]:
    """Return the read features that chunks under these codecs need (spec §9.2.1)."""
    return tuple(name for name in OPTIONAL if name in set(names))


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
    if name not in (*CODECS, AUTO):
        raise UsageError("no such codec", expected=[*CODECS, AUTO], found=name)
    return name
