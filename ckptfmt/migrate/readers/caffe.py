"""Caffe's `.caffemodel`: the parts of each layer, `(layer, number)`.

Nothing tells Caffe but its shape as a protocol buffer. Fields:
https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate import wire
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Contents, Lazy, Note, check_shape

_NET: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 100})
# Fields of a layer, old and new: its own number, name, parts.
_LAYERS: Final = (2, 4, 6), (100, 1, 7)
_SIZES: Final = (1, 2, 3, 4)  # of a part before it had a shape
_DATA, _SHAPE, _DOUBLE = 5, 7, 8


def read(place: Place) -> Contents | None:
    """Return the parts of one net, or None when these bytes are none."""
    span = place.span()
    if span is None or span.head(1) not in (b"\x0a", b"\x12", b"\xa2"):
        return None
    net = _net(span)
    if net is None:
        return None
    root: dict[str, Any] = {}
    layers = 0
    for number, label, parts in _LAYERS:
        for layer in map(wire.message, net.get(number, ())):
            layers += 1
            arrays = [_array(span.name, wire.message(part)) for part in layer.get(parts, ())]
            name = wire.text(layer, label)
            if arrays and name in root:
                raise FormatError("two layers have one name", file=span.name, found=name)
            if arrays:
                root[name] = arrays
    if not root:
        return None
    text = f"left out: what its {layers} layers do, only their arrays are kept"
    return Contents(
        format="caffe",
        root=root,
        files=(span.name,),
        producer="Caffe",
        notes=(Note(path=wire.text(net, 1), text=text),),
    )


def _net(span: Span) -> dict[int, list[Any]] | None:
    """Return the fields of a net, or None when these bytes cannot be one."""
    found: dict[int, list[Any]] = {}
    try:
        for number, value in wire.fields(span.data):
            if number not in _NET or (number in (1, 2, 100) and type(value) is int):
                return None
            found.setdefault(number, []).append(value)
        for number, label, parts in _LAYERS:
            for layer in map(wire.message, found.get(number, ())):
                wire.text(layer, label)
                for part in layer.get(parts, ()):
                    wire.message(part)
        wire.text(found, 1)
    except FormatError:
        return None  # most files of other kinds
    return found if found.keys() & {2, 100} else None


def _array(file: str, message: dict[int, list[Any]]) -> Lazy:
    if _SHAPE in message:
        sizes = _integers(wire.message(message[_SHAPE][-1]).get(1, []))
    else:
        sizes = [wire.integer(message, number, 1) for number in _SIZES]
    field = _DOUBLE if _DOUBLE in message else _DATA
    dtype = np.dtype("<f8" if field == _DOUBLE else "<f4")
    shape = check_shape(sizes, dtype.itemsize, file=file)
    parts = message.get(field, [])
    if not all(isinstance(part, memoryview) for part in parts):
        raise FormatError("an array of no floats", file=file)
    if sum(map(len, parts)) != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            "an array is longer or shorter than its shape", file=file, found=shape
        )
    return Lazy(
        dtype,
        shape,
        lambda: np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype).reshape(
            shape
        ),
    )


def _integers(values: list[Any]) -> list[int]:
    found: list[int] = []
    for value in values:
        at = 0
        while isinstance(value, memoryview) and at < len(value):
            number, at = wire.varint(value, at)
            found.append(number)
        if isinstance(value, int):
            found.append(value)
    return found
