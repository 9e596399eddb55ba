"""Paddle's parameters: LoD tensors in a row (`.pdiparams`, `__params__`, files of Fluid).

The file has no names. The program beside it (`.pdmodel`, `__model__`) has them: parameters are
saved in the order of their names. They are taken when number and shapes of all agree; of
several programs, that of the same name is the one.
"""

from __future__ import annotations

import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import CheckpointError, FormatError, UnsupportedError
from ckptfmt.migrate import wire
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Names, Place, Span
from ckptfmt.migrate.source import Contents, Lazy, Note, check_shape

MAX_LEVELS: Final = 16
MAX_DESCRIPTION: Final = 4096
_BEGINS: Final = bytes(4)
_TYPES: Final[dict[int, Any]] = {
    0: "?", 1: "<i2", 2: "<i4", 3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8", 20: "u1", 21: "i1",
    22: ml_dtypes.bfloat16, 23: "<c8", 24: "<c16", 32: ml_dtypes.float8_e4m3fn,
    33: ml_dtypes.float8_e5m2,
}  # fmt: skip
_PROGRAMS: Final = ("__model__",)


def read(place: Place) -> Contents | None:
    """Return the arrays of one file, by name where the program tells, or None."""
    span = place.span()
    if span is None or not _is_stream(span):
        return None
    at = Cursor(span)
    arrays: list[Lazy] = []
    notes: list[Note] = []
    while at.left:
        arrays.append(_tensor(at, len(arrays), notes))
    names, program = _names(place.folder, span.name, arrays)
    text = "none or several of the programs beside it fit: the arrays have no names"
    if program is not None:
        text = f"names are those of {program}, whose graph is left out"
    return Contents(
        format="paddle",
        root=arrays if names is None else dict(zip(names, arrays, strict=True)),
        files=(span.name,) if program is None else (span.name, program),
        producer="Paddle",
        notes=(*notes, Note(path=span.name, text=text)),
    )


def _is_stream(span: Span) -> bool:
    """Tell whether a file begins with a tensor: versions 0, few levels, a short description."""
    head = span.head(21)
    levels = int.from_bytes(head[4:12], "little")
    if len(head) < 21 or head[:4] != _BEGINS or levels > MAX_LEVELS:
        return False
    described = int.from_bytes(head[16:20], "little")
    return levels > 0 or (
        head[12:16] == _BEGINS and 2 <= described <= MAX_DESCRIPTION and head[20] == 8
    )


def _tensor(at: Cursor, number: int, notes: list[Note]) -> Lazy:
    """Return the next tensor.

    Raises:
        FormatError: malformed, or the file ends inside it.
    """
    file, start = at.span.name, at.at
    version = at.number("I", "a version")
    levels = at.count("Q", 8, "the levels of a tensor")
    if version or levels > MAX_LEVELS:
        raise FormatError("malformed tensor", file=file, offset=start)
    for _ in range(levels):
        at.take(at.count("Q", 1, "a level"), "a level")
    if levels:
        notes.append(Note(path=str(number), text=f"left out {levels} levels of detail"))
    if at.number("I", "a version") or (nbytes := at.count("I", 1, "a shape")) > MAX_DESCRIPTION:
        raise FormatError("malformed tensor", file=file, offset=start)
    described = wire.message(at.take(nbytes, "a shape"))
    kind = wire.integer(described, 1, -1)
    if kind not in _TYPES:
        raise UnsupportedError("an unknown type of array", file=file, offset=start, found=kind)
    dtype = np.dtype(_TYPES[kind])
    shape = check_shape(sizes(described), dtype.itemsize, file=file, offset=start)
    data = at.take(math.prod(shape) * dtype.itemsize, "an array")
    return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))


def sizes(described: dict[int, list[Any]]) -> list[int]:
    """Return the axes of a tensor's description, packed or one by one."""
    found: list[int] = []
    for value in described.get(2, ()):
        at = 0
        while isinstance(value, memoryview) and at < len(value):
            size, at = wire.varint(value, at)
            found.append(size)
        if isinstance(value, int):
            found.append(value)
    return found


def _names(folder: Names, file: str, arrays: list[Lazy]) -> tuple[list[str] | None, str | None]:
    """Return the parameters' names and the program that tells them, where one fits."""
    above = file.rpartition("/")[0]
    own = f"{file.rpartition('.')[0]}.pdmodel"
    beside = [
        name
        for name in folder.names()
        if name.rpartition("/")[0] == above
        and (name.endswith(".pdmodel") or name.rpartition("/")[2] in _PROGRAMS)
    ]
    fitting: dict[str, list[str]] = {}
    for program in [own] if own in beside else beside:
        try:
            found = sorted(_parameters(folder.span(program)))
        except CheckpointError:  # no program: the arrays are worth reading without it
            continue
        names = [name for name, _ in found]
        same = [shape for _, shape in found] == [list(array.shape) for array in arrays]
        if same and len(set(names)) == len(names):
            fitting[program] = names
    # Models of one kind have the same shapes: the program of another fits as well.
    if len({tuple(names) for names in fitting.values()}) != 1:
        return None, None
    program, names = next(iter(fitting.items()))
    return names, program


def _parameters(span: Span) -> list[tuple[str, list[int]]]:
    """Return (name, shape) of what a program keeps: blocks (1) → variables (3)."""
    found = []
    for block in map(wire.message, wire.message(span.data).get(1, ())):
        for variable in map(wire.message, block.get(3, ())):
            kind = wire.message(variable.get(2, [memoryview(b"")])[-1])
            if wire.integer(variable, 3) and 3 in kind:  # persistable; a dense tensor
                dense = wire.message(kind[3][-1])
                described = wire.message(dense.get(1, [memoryview(b"")])[-1])
                found.append((wire.text(variable, 1), sizes(described)))
    return found
