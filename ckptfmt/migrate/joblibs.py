"""joblib's pickles: the bytes of an array stand in the stream, behind the object that names it.

Format: `NumpyArrayWrapper` of https://github.com/joblib/joblib/blob/main/joblib/numpy_pickle.py.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Span
from ckptfmt.migrate.pickles import Function, Machine
from ckptfmt.migrate.rebuild import NumpyType, plain_table
from ckptfmt.migrate.source import Array, Lazy, check_shape

_WRAPPER: Final = "joblib.numpy_pickle", "NumpyArrayWrapper"
MAX_NESTED: Final = 8  # pickles inside pickles: arrays of objects that hold arrays


def machine(span: Span, at: int = 0, *, depth: int = 0) -> Machine:
    """Return what reads a pickle that joblib may have written; others read the same."""
    table: dict[tuple[str, str], Function] = plain_table()
    made = Machine(span.data, at, table=table, file=span.name)
    table[_WRAPPER] = lambda args: _wrapper(made, span, depth)
    return made


def _wrapper(outer: Machine, span: Span, depth: int) -> Lazy:
    """Return the array whose bytes follow as soon as the pickle has described it."""
    lazy = Lazy.of(np.empty(0, np.uint8))

    def describe(state: Any) -> None:
        match state:
            case {
                "shape": tuple(shape),
                "dtype": NumpyType() as kind,
                "order": "C" | "F" as order,
            }:
                pass
            case _:
                raise FormatError("malformed array of joblib", file=span.name, offset=outer.at)
        lazy.describe = None  # once: its bytes are behind it
        dtype = kind.dtype()
        if dtype.hasobject:
            _objects(lazy, outer, span, depth)
            return
        if state.get("numpy_array_alignment_bytes") is not None:
            outer.take(outer.number(1))
        size = check_shape(shape, dtype.itemsize, file=span.name)
        nbytes = math.prod(size) * dtype.itemsize
        data = span.cut(outer.at, nbytes, "an array")
        outer.at += nbytes

        def load() -> Array:
            return np.frombuffer(data, dtype).reshape(size, order="F" if order == "F" else "C")

        lazy.fill(dtype, size, load)

    lazy.describe = describe
    return lazy


def _objects(lazy: Lazy, outer: Machine, span: Span, depth: int) -> None:
    """Take an array of objects: a pickle of its own."""
    if depth >= MAX_NESTED:
        raise FormatError("pickles inside pickles", file=span.name, offset=outer.at)
    inner = machine(span, outer.at, depth=depth + 1)
    found = inner.load()
    if not isinstance(found, Lazy):
        raise FormatError("expected an array of objects", file=span.name, offset=outer.at)
    outer.at = inner.at
    lazy.fill(found.dtype, found.shape, found.load)
    lazy.items = found.items
