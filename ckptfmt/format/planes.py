"""Bytes of items, sorted by significance, and compressed where that helps (spec §7.1.5).

    u8  width w: bytes of one item
    u64 × w  stored length of each plane; the number of items: the plane is raw
    plane 0 .. plane w-1: byte 0 of each item, byte 1 of each item, ...

Floating-point numbers of a model are noise but for sign and exponent: those share a byte or
two, and only that plane gets smaller. The others stay raw, so that nobody decompresses noise.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.format import zstd
from ckptfmt.format.zstd import Buffer

MAX_WIDTH: Final = 16  # bytes of the largest dtype, C128
BLOCK_ITEMS: Final = 64 << 10  # so many items at a time: all their bytes stay in a core's cache
SAMPLE_NBYTES: Final = 64 << 10
HOPELESS: Final = 0.98  # a plane whose sample keeps more of its length is not compressed


def encode(data: Buffer, width: int) -> bytes:
    """Return the planes of `data`, whole items of `width` bytes."""
    items = np.frombuffer(data, np.uint8).reshape(-1, width)
    sorted_ = np.empty((width, len(items)), np.uint8)
    for begin in range(0, len(items), BLOCK_ITEMS):
        sorted_[:, begin : begin + BLOCK_ITEMS] = items[begin : begin + BLOCK_ITEMS].T
    stored = [_compressed(plane.data) for plane in sorted_]
    head = struct.pack(f"<B{width}Q", width, *map(len, stored))
    return b"".join([head, *stored])


def _compressed(plane: memoryview) -> Buffer:
    middle = (len(plane) - SAMPLE_NBYTES) // 2
    if middle > SAMPLE_NBYTES:  # else trying all of it costs no more
        sample = plane[middle : middle + SAMPLE_NBYTES]
        if len(zstd.compress(sample)) > HOPELESS * SAMPLE_NBYTES:
            return plane
    packed = zstd.compress(plane)
    return packed if len(packed) < len(plane) else plane


def decode_into(stored: Buffer, target: memoryview, **where: object) -> None:
    """Put the items back together, filling `target` exactly.

    Raises:
        FormatError: width or lengths cannot be those of planes that fill `target`.
        IntegrityError: a plane does not decode.
    """
    view = memoryview(stored)
    width = view[0] if len(view) else 0
    head = struct.Struct(f"<B{width}Q")
    if not 1 <= width <= MAX_WIDTH or target.nbytes % width or len(view) < head.size:
        raise FormatError(
            "not byte planes of these items", expected=target.nbytes, found=width, **where
        )
    count = target.nbytes // width
    _, *lengths = head.unpack(view[: head.size])
    if max(lengths) > count or head.size + sum(lengths) != len(view):
        raise FormatError(
            "byte planes have other lengths", expected=count, found=lengths, **where
        )
    at = head.size
    planes = []
    for nbytes in lengths:
        part = view[at : at + nbytes]
        raw = part if nbytes == count else zstd.decompress(part, nbytes=count, **where)
        planes.append(np.frombuffer(raw, np.uint8))
        at += nbytes
    items = np.frombuffer(target, np.uint8).reshape(count, width)
    for begin in range(0, count, BLOCK_ITEMS):
        block = slice(begin, begin + BLOCK_ITEMS)
        for byte, plane in enumerate(planes):
            items[block, byte] = plane[block]
