"""Headers of data files and bundles: plain safetensors (spec §5).

8 bytes   N, unsigned little-endian
N bytes   JSON: {"__metadata__": {...}, name: {"dtype", "shape", "data_offsets"}}, padded
          with spaces so that the data area starts at a multiple of 8
rest      the data area, no holes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ckptfmt.errors import FormatError, IntegrityError, UsageError

MAX_HEADER_NBYTES: Final = 64 * 2**20
METADATA: Final = "__metadata__"
STRICT_METADATA: Final = {"format": "pt"}  # common loaders refuse a file without it

# Bytes per element times two, so that 4- and 6-bit types of other writers can be read too.
_HALF_BYTES: Final = {
    "BOOL": 2, "U8": 2, "I8": 2, "F8_E5M2": 2, "F8_E4M3": 2, "F8_E8M0": 2,
    "F8_E4M3FNUZ": 2, "F8_E5M2FNUZ": 2, "U16": 4, "I16": 4, "F16": 4, "BF16": 4,
    "U32": 8, "I32": 8, "F32": 8, "U64": 16, "I64": 16, "F64": 16, "C64": 16, "F4": 1,
}  # fmt: skip


class Entry(NamedTuple):
    """One named tensor of a file (a tuple: made by the hundred thousand)."""

    name: str
    dtype: str  # safetensors name
    shape: tuple[int, ...]
    offset: int  # first byte, relative to the data area
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A parsed header."""

    entries: dict[str, Entry]  # in order of offset
    metadata: dict[str, str]
    nbytes: int  # N: the data area starts at byte 8 + N


def build(entries: Iterable[Entry], metadata: Mapping[str, str] = STRICT_METADATA) -> bytes:
    """Return length prefix and padded JSON header.

    Raises:
        UsageError: the header would exceed `MAX_HEADER_NBYTES`.
    """
    # By hand but for the strings: `json.dumps` of a dict per tensor takes five times as long.
    quoted = json.encoder.encode_basestring
    rows = [f'"{METADATA}":{json.dumps(dict(metadata), separators=(",", ":"))}']
    listed = list(entries)
    shown = {shape: ",".join(map(str, shape)) for shape in {entry.shape for entry in listed}}
    rows += [
        f'{quoted(name)}:{{"dtype":"{dtype}","shape":[{shown[shape]}],'
        f'"data_offsets":[{offset},{offset + nbytes}]}}'
        for name, dtype, shape, offset, nbytes in listed
    ]
    text = f"{{{','.join(rows)}}}".encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_NBYTES:
        raise UsageError(
            "safetensors header too large: store fewer arrays in one file",
            expected=MAX_HEADER_NBYTES,
            found=len(text),
        )
    return struct.pack("<Q", len(text)) + text


def header_nbytes(prefix: bytes, file_nbytes: int, **where: object) -> int:
    """Return N from the first 8 bytes of a file of `file_nbytes`.

    Raises:
        IntegrityError: the file is shorter than its header.
        FormatError: the header length is absurd.
    """
    if len(prefix) < 8:
        raise IntegrityError(
            "file too short for a safetensors header", expected=8, found=file_nbytes, **where
        )
    (n,) = struct.unpack_from("<Q", prefix)
    if n > MAX_HEADER_NBYTES:
        raise FormatError(
            "safetensors header too large", expected=MAX_HEADER_NBYTES, found=n, **where
        )
    if 8 + n > file_nbytes:
        raise IntegrityError(
            "file ends inside its header", expected=8 + n, found=file_nbytes, **where
        )
    return int(n)


def parse(text: bytes, data_nbytes: int, **where: object) -> Header:
    """Parse the JSON of a header whose data area has `data_nbytes` bytes.

    Raises:
        FormatError: not the JSON of a safetensors header; duplicate names; offsets that
            overlap, leave holes or disagree with dtype and shape.
        IntegrityError: the tensors end beyond the data area, or before its end.
    """
    try:
        if not text.startswith(b"{"):
            raise FormatError("a safetensors header begins with '{'", found=text[:1], **where)
        rows = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"not a safetensors header: {error}", **where) from error
    if not isinstance(rows, dict):
        raise FormatError("expected a JSON object", found=type(rows).__name__, **where)
    metadata = rows.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("expected str → str", at=METADATA, **where)
    entries = sorted(
        (_entry(name, row, where) for name, row in rows.items()),
        key=lambda e: (e.offset, e.nbytes),
    )
    end = 0
    for e in entries:
        if e.offset != end:
            raise FormatError(
                "tensors overlap or leave a hole",
                tensor=e.name,
                expected=end,
                found=e.offset,
                **where,
            )
        end += e.nbytes
    if end != data_nbytes:
        raise IntegrityError("data area differs", expected=end, found=data_nbytes, **where)
    return Header(entries={e.name: e for e in entries}, metadata=metadata, nbytes=len(text))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    rows = dict(pairs)
    if len(rows) != len(pairs):
        raise FormatError("duplicate name in a safetensors header")
    return rows


def _entry(name: str, row: object, where: Mapping[str, object]) -> Entry:
    match row:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise FormatError(
                "expected dtype, shape, data_offsets", tensor=name, found=row, **where
            )
    numbers = [*shape, begin, end]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or begin > end:
        raise FormatError("expected unsigned integers", tensor=name, found=numbers, **where)
    if dtype not in _HALF_BYTES:
        raise FormatError("unknown safetensors dtype", tensor=name, found=dtype, **where)
    halves = _HALF_BYTES[dtype]
    for n in shape:
        halves *= n
        if halves.bit_length() > 128 and 0 not in shape:
            raise FormatError("absurd shape", tensor=name, found=tuple(shape), **where)
    if halves != 2 * (end - begin):
        raise FormatError(
            "length differs from shape × dtype",
            tensor=name,
            expected=halves / 2,
            found=end - begin,
            **where,
        )
    return Entry(name=name, dtype=dtype, shape=tuple(shape), offset=begin, nbytes=end - begin)
