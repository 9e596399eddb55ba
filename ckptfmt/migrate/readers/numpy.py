"""NumPy's `.npy` and `.npz`; arrays of objects, which are pickles, never reach NumPy.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import math
import re
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate import archives
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.pickles import Machine
from ckptfmt.migrate.rebuild import plain_table
from ckptfmt.migrate.source import Array, Contents, Lazy, check_shape, walk

MAGIC: Final = b"\x93NUMPY"
MAX_HEADER_NBYTES: Final = 64 * 1024


def read(place: Place) -> Contents | None:
    """Return the arrays of one file, or None."""
    span = place.span()
    if span is None:
        return None
    if span.head(6) == MAGIC:
        root = array(span)
        if not any(isinstance(leaf, Lazy) for _, leaf in walk(root)):
            return None  # objects without an array: a pickle that is no checkpoint
        return Contents(format="npy", root=root, files=(span.name,), producer="NumPy")
    if span.head(4) != archives.ZIP_MAGIC:
        return None
    archive = archives.Zip(span)
    names = archive.names()
    if not names or not all(n.endswith(".npy") for n in names):
        return None
    root = {name.removesuffix(".npy"): _member(archive, name) for name in names}
    return Contents(format="npz", root=root, files=(span.name,), producer="NumPy")


def array(span: Span) -> Any:
    """Return the array of one `.npy`: lazy, or the tree inside an array of objects.

    Raises:
        FormatError: no valid header, or the data is shorter or longer than it says.
    """
    dtype, shape, fortran, start = header(span)
    if dtype.hasobject:
        return _objects(span, start)
    nbytes = math.prod(shape) * dtype.itemsize
    if span.nbytes - start != nbytes:
        raise FormatError(
            "data and header disagree",
            file=span.name,
            expected=nbytes,
            found=span.nbytes - start,
        )

    def load() -> Array:
        flat = np.frombuffer(span.cut(start, nbytes, "an array"), dtype)
        return flat.reshape(shape, order="F" if fortran else "C")

    return Lazy(dtype, shape, load)


def _member(archive: archives.Zip, name: str) -> Any:
    """Return a member; a compressed one is unpacked again whenever it is loaded."""
    if archive.is_stored(name):
        return array(archive.span(name))
    begin = Span(f"{archive.name}!/{name}", memoryview(archive.begin(name, MAX_HEADER_NBYTES)))
    dtype, shape, _, start = header(begin)
    if dtype.hasobject:
        return array(archive.span(name))
    expected = start + math.prod(shape) * dtype.itemsize
    if archive.nbytes(name) != expected:
        raise FormatError(
            "data and header disagree",
            file=begin.name,
            expected=expected,
            found=archive.nbytes(name),
        )
    return Lazy(dtype, shape, lambda: array(archive.span(name)).load())


def header(span: Span) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Return dtype, shape, whether the order is Fortran's, and where the data begins.

    Raises:
        FormatError: not a header that NumPy writes.
    """
    prefix = bytes(span.cut(0, 8, "the header"))
    width = {1: 2, 2: 4, 3: 4}.get(prefix[6])
    if prefix[:6] != MAGIC or width is None:
        raise FormatError("expected NumPy's format 1, 2 or 3", file=span.name, found=prefix)
    nbytes = int.from_bytes(span.cut(8, width, "the header"), "little")
    if nbytes > MAX_HEADER_NBYTES:
        raise FormatError("the header is too long", file=span.name, found=nbytes)
    start = 8 + width + nbytes
    raw = bytes(span.cut(8 + width, nbytes, "the header"))
    try:
        fields = ast.literal_eval(
            _python3(raw.decode("utf-8" if prefix[6] == 3 else "latin-1"))
        )
        match fields:
            case {"descr": descr, "fortran_order": bool(fortran), "shape": tuple(shape)}:
                dtype = np.dtype(descr)
            case _:
                raise FormatError("unexpected header", file=span.name, found=raw[:200])
    except (
        ValueError,
        SyntaxError,
        TypeError,
        LookupError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError("malformed header", file=span.name, found=raw[:200]) from error
    if not dtype.itemsize or dtype.subdtype is not None:
        raise FormatError("no array has such elements", file=span.name, found=raw[:200])
    return dtype, check_shape(shape, dtype.itemsize, file=span.name), fortran, start


def _objects(span: Span, start: int) -> Any:
    """Return the tree in an array of objects, which is a pickle."""
    machine = Machine(span.data, start, table=plain_table(), file=span.name)
    root = machine.load()
    if machine.at != span.nbytes:
        raise FormatError("bytes behind the pickle", file=span.name, offset=machine.at)
    return root


def _python3(text: str) -> str:
    """Return a header of Python 2 as one of Python 3: `(3L, 4L)` had long integers."""
    return re.sub(r"(?<=\d)L(?=[,)])", "", text)
