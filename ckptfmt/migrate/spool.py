"""Memory for arrays that is not held: views of mapped files, or a scratch file on disk."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any, Final, final

import numpy as np

from ckptfmt.errors import BackendError
from ckptfmt.migrate.source import Array, Lazy

_ALIGNMENT: Final = 64


@final
class Spool:
    """Loads arrays one at a time and keeps none of them in memory.

    An array that is a view of a mapped file stays one. Any other is written to a scratch file
    without a name, which goes with the process, and mapped from there.

    Args:
        scratch: Folder of the scratch file; by default the system's for temporary files.
    """

    def __init__(self, scratch: str | None = None) -> None:
        self._scratch = scratch
        self._file: Any = None
        self._end = 0
        self._map: memoryview = memoryview(b"")
        self._rows: dict[int, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self._views: dict[int, Array] = {}

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take(self, lazy: Lazy) -> None:
        """Load one array.

        Raises:
            FormatError: and its kinds, when the source's bytes are wrong.
            BackendError: the scratch file cannot be written.
        """
        array = lazy.load()
        straight = array.dtype.kind in "biufc" or array.flags.c_contiguous
        if (is_mapped(array) and straight) or not array.nbytes:  # of others, bytes are stored
            self._views[id(lazy)] = array
            return
        data = np.ascontiguousarray(array)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 (closed in exit)
            self._file.seek(self._end)
            self._file.write(data.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise BackendError("cannot write the scratch file", folder=self._scratch) from error
        self._rows[id(lazy)] = (self._end, array.dtype, array.shape)
        self._end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT

    def array(self, lazy: Lazy) -> Array:
        """Return an array that was taken, the same object each time: ties stay ties."""
        if id(lazy) in self._views:
            return self._views[id(lazy)]
        if len(self._map) < self._end:
            self._file.flush()
            os.ftruncate(self._file.fileno(), self._end)
            self._map = memoryview(
                mmap.mmap(self._file.fileno(), self._end, access=mmap.ACCESS_READ)
            )
        start, dtype, shape = self._rows[id(lazy)]
        array: Array = np.ndarray(shape, dtype, buffer=self._map, offset=start)
        self._views[id(lazy)] = array
        return array


def is_mapped(array: Array) -> bool:
    """Tell whether an array is a view of a mapped file."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    while isinstance(base, memoryview):
        base = base.obj
    return isinstance(base, mmap.mmap)
