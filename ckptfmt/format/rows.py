"""Single rows of the array, chunk and file tables, where objects are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ckptfmt import dtypes


class Chunk(NamedTuple):
    """One box of an array in one byte range (a tuple: made by the hundred thousand)."""

    file: int  # row of the file table
    offset: int  # relative to the data area of the file
    nbytes: int  # as stored
    codec: str
    digest: bytes  # of the stored bytes
    raw_digest: bytes  # of the decoded bytes; equal to `digest` for raw chunks
    start: tuple[int, ...]  # first element of the box
    shape: tuple[int, ...]  # extent of the box


def chunks_of(rows: Iterable[tuple[object, ...]]) -> Iterator[Chunk]:
    """Make many chunks: what `Chunk._make` does, without a call of Python for each."""
    return map(tuple.__new__, itertools.repeat(Chunk), rows)


class FileRow(NamedTuple):
    """One data file."""

    key: str
    nbytes: int  # whole file
    header_nbytes: int  # N of the safetensors header; the data area starts at 8 + N
    header_digest: bytes  # over the first 8 + N bytes
    number: int  # checkpoint that wrote it

    @property
    def area_nbytes(self) -> int:
        """Length of the data area; a bundle's row (key "") tells just that."""
        return self.nbytes - 8 - self.header_nbytes if self.key else self.nbytes


class ArrayRow(NamedTuple):
    """One stored array, without its chunks (a tuple: made by the hundred thousand)."""

    path: str
    dtype: dtypes.DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded array."""
        n = self.dtype.itemsize
        for extent in self.shape:
            n *= extent
        return n
