"""safetensors: a JSON header, then the arrays. The header is untrusted: all is checked first.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ckptfmt import dtypes
from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate import texts
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Array, Contents, Lazy, Note, check_shape

# Below a byte elements are packed here, and one a byte in NumPy: the packed bytes are kept.
_PACKED_BITS: Final = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def read(place: Place) -> Contents | None:
    """Return the arrays of one file, or None."""
    span = place.span()
    if span is None or not _looks_right(span):
        return None
    start = 8 + int.from_bytes(span.head(8), "little")
    header = texts.parse(Span(span.name, span.cut(8, start - 8, "the header")))
    if not isinstance(header, dict):
        raise FormatError("expected a JSON object as header", file=span.name)
    metadata = header.pop("__metadata__", None) or {}
    notes: list[Note] = []
    rows = {name: _row(name, entry, span) for name, entry in header.items()}
    _refuse_holes(rows, span, start)
    root = {name: _array(name, row, span, start, notes) for name, row in rows.items()}
    producer = None
    if isinstance(metadata, dict):
        if "ckptfmt" in metadata:
            raise UnsupportedError(
                "this is a bundle of ckptfmt's own: use `ckptfmt unpack`", file=span.name
            )
        notes += [Note(path="__metadata__", text=f"{k}: {v}") for k, v in metadata.items()]
        producer = _producer(metadata.get("format"))
    return Contents(
        format="safetensors",
        root=root,
        files=(span.name,),
        producer=producer,
        notes=tuple(notes),
    )


def _looks_right(span: Span) -> bool:
    begin = span.head(9)
    return len(begin) == 9 and begin[8:] == b"{" and int.from_bytes(begin[:8], "little") < 2**40


_Row = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin, end


def _row(name: str, entry: Any, span: Span) -> _Row:
    """Return one entry of the header after checking its types and its length."""
    match entry:
        case {
            "dtype": str(dtype),
            "shape": [*shape],
            "data_offsets": [int(begin), int(end)],
        } if 0 <= begin <= end:
            sizes = check_shape(shape, 1, file=span.name, path=name)
        case _:
            raise FormatError("malformed entry", file=span.name, path=name, found=entry)
    bits = _PACKED_BITS.get(dtype) or 8 * dtypes.by_name(dtype, path=name).itemsize
    total = math.prod(sizes) * bits
    if total % 8 or total // 8 != end - begin:
        raise FormatError(
            "dtype and shape disagree with the offsets",
            file=span.name,
            path=name,
            expected=total / 8 if total < 2**60 else "more than fits",
            found=end - begin,
        )
    return dtype, sizes, begin, end


def _refuse_holes(rows: dict[str, _Row], span: Span, start: int) -> None:
    """Raise unless the arrays fill the data area exactly, each byte once."""
    at = 0
    for name, (_, _, begin, end) in sorted(rows.items(), key=lambda row: row[1][2:]):
        if begin != at:
            raise FormatError(
                "arrays overlap, or leave a hole",
                file=span.name,
                path=name,
                expected=at,
                found=begin,
            )
        at = end
    if start + at != span.nbytes:
        raise FormatError(
            "the file is longer or shorter than its arrays",
            file=span.name,
            expected=start + at,
            found=span.nbytes,
        )


def _array(name: str, row: _Row, span: Span, start: int, notes: list[Note]) -> Lazy:
    kind, shape, begin, end = row
    if kind in _PACKED_BITS:
        notes.append(Note(path=name, text=f"{kind} {list(shape)} kept as its packed bytes"))
        shape, dtype = (end - begin,), np.dtype(np.uint8)
    else:
        dtype = dtypes.by_name(kind).numpy

    def load() -> Array:
        data = span.cut(start + begin, end - begin, name)
        return np.frombuffer(data, dtype).reshape(shape)

    return Lazy(dtype, shape, load)


def _producer(kind: object) -> str | None:
    return {"pt": "PyTorch", "tf": "TensorFlow", "np": "NumPy", "flax": "Flax"}.get(str(kind))
