"""LevelDB's table, which holds TensorFlow's checkpoints: sorted keys in blocks.

Blocks are packed with Snappy or not, and have a CRC-32C.
Format: https://github.com/google/leveldb/blob/main/doc/table_format.md; Snappy:
https://github.com/google/snappy/blob/main/format_description.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError, IntegrityError
from ckptfmt.migrate.files import Span
from ckptfmt.migrate.wire import varint

FOOTER_NBYTES: Final = 48
MAGIC: Final = bytes.fromhex("57fb808b247547db")
MAX_BLOCK_NBYTES: Final = 2**30
_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, bits reversed
_LANE_NBYTES: Final = 1024


def is_table(span: Span) -> bool:
    """Tell whether a file ends as a table does."""
    return span.nbytes >= FOOTER_NBYTES and span.tail(8) == MAGIC


def rows(span: Span) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (key, value), sorted by key.

    Raises:
        FormatError: malformed.
        IntegrityError: a block's CRC is wrong.
    """
    footer = span.data[span.nbytes - FOOTER_NBYTES :]
    _, _, at = _handle(footer, 0)
    offset, nbytes, _ = _handle(footer, at)
    last: bytes | None = None
    for _, handle in _entries(_block(span, offset, nbytes)):
        for key, value in _entries(_block(span, *_handle(handle, 0)[:2])):
            if last is not None and key <= last:
                raise FormatError("keys are out of order", file=span.name)
            last = key
            yield key, value


def _handle(data: memoryview, at: int) -> tuple[int, int, int]:
    offset, at = varint(data, at)
    nbytes, at = varint(data, at)
    return offset, nbytes, at


def _block(span: Span, offset: int, nbytes: int) -> memoryview:
    data = span.cut(offset, nbytes + 5, "a block")
    stored = int.from_bytes(data[nbytes + 1 :], "little")
    if stored != masked(crc32c(data[: nbytes + 1])):
        raise IntegrityError("a block's CRC is wrong", file=span.name, offset=offset)
    if data[nbytes] == 0:
        return data[:nbytes]
    if data[nbytes] != 1:
        raise FormatError("unknown compression", file=span.name, found=data[nbytes])
    return memoryview(unsnap(data[:nbytes]))


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    if len(block) < 4:
        raise FormatError("a block without its end")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = varint(block, at)
        own, at = varint(block, at)
        nbytes, at = varint(block, at)
        if shared > len(key) or own > 2**16 or at + own + nbytes > end:
            raise FormatError("malformed entry of a block", offset=at)
        key = key[:shared] + bytes(block[at : at + own])
        at += own
        yield key, block[at : at + nbytes]
        at += nbytes
    if at != end:
        raise FormatError("malformed block")


def unsnap(data: memoryview) -> bytes:
    """Return what Snappy packed.

    Raises:
        FormatError: malformed, or longer than it says.
    """
    nbytes, at = varint(data, 0)
    if nbytes > MAX_BLOCK_NBYTES or nbytes > 64 * len(data) + 64:
        raise FormatError("a block cannot unpack to so much", found=nbytes)
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            length, width = (tag >> 2) + 1, (tag >> 2) - 59
            if width > 0:
                length = int.from_bytes(data[at : at + width], "little") + 1
                at += width
            if length > len(data) - at:
                raise FormatError("malformed Snappy literal", offset=at)
            out += data[at : at + length]
            at += length
            continue
        width = (0, 1, 2, 4)[tag & 3]
        length = (tag >> 2 & 7) + 4 if width == 1 else (tag >> 2) + 1
        back = int.from_bytes(data[at : at + width], "little")
        back |= (tag >> 5) << 8 if width == 1 else 0
        at += width
        if not 0 < back <= len(out) or len(out) + length > nbytes:
            raise FormatError("malformed Snappy copy", offset=at)
        for _ in range(length):
            out.append(out[-back])
    if len(out) != nbytes:
        raise FormatError("a block unpacks to another length", expected=nbytes, found=len(out))
    return bytes(out)


def masked(crc: int) -> int:
    """Return a CRC as tables store it: a CRC of bytes that hold CRCs is a poor one."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> Any:
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, row >> 1 ^ np.uint32(_POLYNOMIAL), row >> 1)
    return row


_TABLE: Final = _table()
_BYTES: Final = [int(value) for value in _TABLE]


def crc32c(data: memoryview) -> int:
    """Return the CRC-32C of some bytes.

    Long ones are cut into lanes that NumPy takes a byte at a time side by side; the lanes'
    results are joined by the linear map "so many zero bytes later".
    """
    whole = len(data) // _LANE_NBYTES if len(data) >= 16 * _LANE_NBYTES else 0
    crc = 0xFFFFFFFF
    if whole:
        lanes = np.frombuffer(data, np.uint8, whole * _LANE_NBYTES).reshape(whole, -1)
        state: Any = np.zeros(whole, np.uint32)
        for column in np.ascontiguousarray(lanes.T):
            state = _TABLE[(state ^ column) & 0xFF] ^ (state >> 8)
        later = _later(_LANE_NBYTES)
        for lane in state.tolist():
            crc = (
                later[0][crc & 255] ^ later[1][crc >> 8 & 255] ^ later[2][crc >> 16 & 255]
                ^ later[3][crc >> 24] ^ lane
            )  # fmt: skip
    for byte in data[whole * _LANE_NBYTES :]:
        crc = _BYTES[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _later(nbytes: int) -> list[list[int]]:
    """Return the map "so many zero bytes later" as a table for each byte of the state."""
    values: Any = (np.arange(4)[:, None] * 8, np.arange(256)[None, :])
    state = (values[1] << values[0]).astype(np.uint32)
    for _ in range(nbytes):
        state = _TABLE[state & 0xFF] ^ (state >> 8)
    found: list[list[int]] = state.tolist()
    return found
