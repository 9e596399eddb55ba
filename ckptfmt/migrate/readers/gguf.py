"""GGUF, the files of llama.cpp: arrays as they are, quantised ones as the blocks they are.

A quantised array keeps its name: `{"__class__": "gguf.Q4_K", "shape": …, "blocks": …}`, where
`blocks` are the file's bytes, one row of them for a row of the array.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Array, Contents, Lazy, Note, Record, check_shape

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_AXES: Final = 8  # GGML itself has 4
MAX_VALUES: Final = 1_000_000  # text and numbers of the header
_ALIGNMENT: Final = 32

# Number → name, dtype.
_PLAIN: Final[dict[int, tuple[str, Any]]] = {
    0: ("F32", "f4"), 1: ("F16", "f2"), 24: ("I8", "i1"), 25: ("I16", "i2"), 26: ("I32", "i4"),
    27: ("I64", "i8"), 28: ("F64", "f8"), 30: ("BF16", ml_dtypes.bfloat16),
}  # fmt: skip

# Number → name, elements of a block, bytes of a block.
BLOCKS: Final[dict[int, tuple[str, int, int]]] = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip

# Kinds of values in the header, as `struct` and NumPy call them.
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q",
                   11: "q", 12: "d"}  # fmt: skip
_DTYPES: Final = {"B": "u1", "b": "i1", "H": "u2", "h": "i2", "I": "u4", "i": "i4", "f": "f4",
                  "Q": "u8", "q": "i8", "d": "f8"}  # fmt: skip
_BOOL, _TEXT, _LIST = 7, 8, 9


def read(place: Place) -> Contents | None:
    """Return arrays, settings and lists of one file, or None."""
    span = place.span()
    if span is None or span.head(4) != MAGIC:
        return None
    return _File(span).contents()


class _File:
    def __init__(self, span: Span) -> None:
        version = span.cut(4, 4, "the version")
        order = "<" if version[1] == version[2] == version[3] == 0 else ">"
        self._span = span
        self._at = Cursor(span, 4, order=order)
        self._values = 0
        self._nbytes = 0  # of all arrays
        found = self._at.number("I", "the version")
        if found not in VERSIONS:
            raise UnsupportedError(
                "an unknown version of GGUF", file=span.name, expected=VERSIONS, found=found
            )

    def contents(self) -> Contents:
        """Return everything: what is a list goes beside the settings, an array where it can."""
        tensors = self._at.count("Q", 24, "the number of arrays")
        pairs = self._at.count("Q", 13, "the number of settings")
        config: dict[str, Any] = {}
        lists: dict[str, Any] = {}
        for _ in range(pairs):
            name = self._at.text("Q", "the name of a setting")
            kind = self._at.number("I", "the kind of a setting")
            if name in config or name in lists:
                raise FormatError("a setting stands twice", file=self._span.name, found=name)
            (lists if kind == _LIST else config)[name] = self._value(kind, name)
        model = dict(self._arrays(tensors, _alignment(config, self._span.name)))
        if len(model) != tensors:
            raise FormatError("two arrays have one name", file=self._span.name)
        root = {"model": model, "config": config, "lists": lists}
        quantised = [name for name, array in model.items() if isinstance(array, Record)]
        text = f"{len(quantised)} quantised arrays are kept as blocks, not decoded"
        return Contents(
            format="gguf",
            root={name: part for name, part in root.items() if part or name == "model"},
            files=(self._span.name,),
            producer="GGML",
            notes=(Note(path="model", text=text),) if quantised else (),
            roles={"model": "model", "config": "hyperparameters"},
        )

    def _value(self, kind: int, name: str) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise FormatError("too many values in the header", file=self._span.name)
        if kind in _NUMBERS:
            number = self._at.number(_NUMBERS[kind], name)
            return bool(number) if kind == _BOOL else number
        if kind == _TEXT:
            return self._at.text("Q", name)
        if kind == _LIST:
            return self._list(name)
        raise FormatError("unknown kind of a setting", file=self._span.name, found=kind)

    def _list(self, name: str) -> Any:
        kind = self._at.number("I", name)
        if kind not in _NUMBERS:
            least = 8 if kind == _TEXT else 12
            return [self._value(kind, name) for _ in range(self._at.count("Q", least, name))]
        dtype = np.dtype(_DTYPES[_NUMBERS[kind]]).newbyteorder(self._at.order)  # type: ignore[arg-type]  # < or >
        count = self._at.count("Q", dtype.itemsize, name)
        data = np.frombuffer(self._at.take(count * dtype.itemsize, name), dtype)
        return Lazy.of(data.astype(bool) if kind == _BOOL else data)

    def _arrays(self, count: int, alignment: int) -> Iterator[tuple[str, Any]]:
        rows: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = self._at.text("Q", "the name of an array")
            axes = self._at.number("I", name)
            if axes > MAX_AXES:
                raise FormatError("too many axes", file=self._span.name, path=name, found=axes)
            sizes: list[int] = [self._at.number("Q", name) for _ in range(axes)]
            rows.append(
                (
                    name,
                    tuple(sizes[::-1]),
                    self._at.number("I", name),
                    self._at.number("Q", name),
                )
            )
        start = -(-self._at.at // alignment) * alignment
        for name, shape, kind, offset in rows:
            if offset % alignment:
                raise FormatError("an array is not aligned", file=self._span.name, path=name)
            yield name, self._array(name, shape, kind, start + offset)

    def _array(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Any:
        if kind in _PLAIN:
            dtype = np.dtype(_PLAIN[kind][1])
            return self._view(name, dtype, check_shape(shape, dtype.itemsize), offset)
        if kind not in BLOCKS:
            raise UnsupportedError(
                "an unknown type of array", file=self._span.name, path=name, found=kind
            )
        title, elements, nbytes = BLOCKS[kind]
        check_shape(shape, nbytes)
        if not shape or shape[-1] % elements:
            raise FormatError(
                "rows are no whole blocks", file=self._span.name, path=name, found=shape
            )
        rows = (*shape[:-1], shape[-1] // elements * nbytes)
        blocks = self._view(name, np.dtype("u1"), rows, offset)
        return Record(f"gguf.{title}", state={"shape": list(shape), "blocks": blocks})

    def _view(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int
    ) -> Lazy:
        data = self._span.cut(offset, math.prod(shape) * dtype.itemsize, name)
        self._nbytes += len(data)
        if self._nbytes > self._span.nbytes:
            raise FormatError("arrays share bytes of the file", file=self._span.name, path=name)
        if self._at.order == ">" and dtype.itemsize > 1:
            return Lazy(dtype, shape, lambda: _swapped(data, dtype, shape))
        return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))


def _swapped(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    words = np.frombuffer(data, f"u{dtype.itemsize}").byteswap()
    array: Array = words.view(dtype).reshape(shape)
    return array


def _alignment(config: dict[str, Any], file: str) -> int:
    found = config.get("general.alignment", _ALIGNMENT)
    if type(found) is not int or not 8 <= found <= 2**20 or found % 8:
        raise FormatError("no alignment", file=file, found=found)
    return found
