"""Protocol buffers by their wire format: numbers of fields and their values, no schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import FormatError

MAX_FIELDS: Final = 5_000_000
_BLOCK: Final = 2**16  # bytes of packed integers that are decoded at a time


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return an unsigned integer and where the next byte is.

    Raises:
        FormatError: it does not end, or is longer than 64 bits.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise FormatError("the bytes end inside an integer", offset=at)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 and value < 2**64:
            return value, at
    raise FormatError("an integer of more than 64 bits", offset=at)


def count_packed(data: memoryview) -> int:
    """Return how many integers a packed field has: as many as bytes that end one."""
    blocks = (data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK))
    return sum(int((np.frombuffer(block, np.uint8) < 0x80).sum()) for block in blocks)


def packed(data: memoryview) -> Iterator[npt.NDArray[np.uint64]]:
    """Yield the integers of a packed field, some at a time: memory for them is the caller's.

    Raises:
        FormatError: the last one does not end, or one is longer than 64 bits.
    """
    at = 0
    while at < len(data):
        block = np.frombuffer(data[at : at + _BLOCK], np.uint8)
        ends = np.flatnonzero(block < 0x80)
        if not len(ends):
            raise FormatError("the bytes end inside an integer", offset=at)
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts + 1
        most = int(lengths.max())
        # The tenth byte has the highest bit alone.
        if most > 10 or (most == 10 and (block[ends[lengths == 10]] > 1).any()):
            raise FormatError("an integer of more than 64 bits", offset=at)
        values = np.zeros(len(ends), np.uint64)
        for n in range(most):
            has = lengths > n
            part = (block[starts[has] + n] & 0x7F).astype(np.uint64)
            values[has] |= part << np.uint64(7 * n)
        yield values
        at += int(ends[-1]) + 1


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a message; nested messages and text are memoryviews.

    Raises:
        FormatError: malformed or truncated.
    """
    at = 0
    for _ in range(MAX_FIELDS):
        if at >= len(data):
            return
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                value, at = varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                nbytes = 8
            case 5:
                nbytes = 4
            case 2:
                nbytes, at = varint(data, at)
            case kind:
                raise FormatError("unknown type of a field", offset=at, found=kind)
        if nbytes > len(data) - at:
            raise FormatError("the bytes end inside a field", offset=at, expected=nbytes)
        yield tag >> 3, data[at : at + nbytes]
        at += nbytes
    raise FormatError(f"a message of more than {MAX_FIELDS} fields")


def message(data: Any) -> dict[int, list[Any]]:
    """Return all fields of a message by number.

    Raises:
        FormatError: malformed, or no message where one was expected.
    """
    if not isinstance(data, memoryview):
        raise FormatError("expected a message, got a number")
    found: dict[int, list[Any]] = {}
    for number, value in fields(data):
        found.setdefault(number, []).append(value)
    return found


def integer(found: dict[int, list[Any]], number: int, default: int = 0) -> int:
    """Return the last value of an integer field.

    Raises:
        FormatError: it is no integer.
    """
    value = found.get(number, [default])[-1]
    if isinstance(value, memoryview):
        if len(value) != 4:
            raise FormatError("expected an integer field", found=number)
        return int.from_bytes(value, "little")
    return int(value)


def text(found: dict[int, list[Any]], number: int) -> str:
    """Return a text field; "" when it is absent.

    Raises:
        FormatError: it is no UTF-8.
    """
    value = found.get(number, [memoryview(b"")])[-1]
    try:
        return str(value, "utf-8") if isinstance(value, memoryview) else ""
    except UnicodeDecodeError as error:
        raise FormatError("expected UTF-8", found=bytes(value[:100])) from error
