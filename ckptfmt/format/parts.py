"""What one rank of a save has written: its rows of the manifest's tables (spec §8.7).

Every chunk says its box, since a rank seldom has the whole array; else the columns are those
of `tables`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptfmt import dtypes
from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.format import _msgpack, codec, columns, digest, filetable, tables
from ckptfmt.format.records import save_id, seal, uint, unseal
from ckptfmt.format.tables import MAX_ARRAYS, MAX_NDIM, ArrayRow, Chunk, FileRow

ROWS: Final = "rows"
FAILED: Final = "failed"
MAX_RANK: Final = 10**6 - 1


def message(value: object) -> bytes:
    """Return the bytes of plain values that ranks of one save tell each other; not stored."""
    return _msgpack.pack(value)


def read_message(data: bytes) -> Any:
    """Return what `message` packed.

    Raises:
        FormatError: it was not packed so.
    """
    return _msgpack.unpack(data, "$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one rank, or why there are none."""

    save: str  # save id
    rank: int
    world: int  # number of ranks
    digest: digest.Digest | None = None  # of the rows; None when the rank failed
    arrays: Sequence[tuple[ArrayRow, Sequence[Chunk]]] = ()  # each with this rank's boxes
    files: Sequence[FileRow] = ()
    reason: str | None = None  # why the rank failed

    def encode(self) -> bytes:
        """Return the stored form."""
        head = {"save": self.save, "rank": self.rank, "world": self.world}
        if self.digest is None:
            return seal({"kind": FAILED, **head, "reason": self.reason or ""})
        body = tables.build(
            ((array, (), own) for array, own in self.arrays),
            files=self.files,
            algorithm=self.digest,
        ).encode()
        del body["arrays"]["aliases"]
        boxed = [chunk for _, own in self.arrays for chunk in own]
        body["chunks"]["start"] = columns.pack([n for c in boxed for n in c.start], "<u8")
        body["chunks"]["shape"] = columns.pack([n for c in boxed for n in c.shape], "<u8")
        return seal({"kind": ROWS, **head, "digest": self.digest.name, **body})

    @classmethod
    def decode(cls, data: bytes) -> Part:
        """Parse the stored form.

        Whether boxes of several parts fit together is for the caller to check.

        Raises:
            FormatError: a column is missing, of the wrong length, or a value out of range.
            IntegrityError: the record is damaged.
            UnsupportedError: a kind, digest, dtype or codec this release does not know.
        """
        fields = unseal(data)
        kind = fields.get("kind")
        if not isinstance(kind, str):
            raise FormatError("expected the kind of a part", at="$.kind", found=kind)
        of, rank, world = (
            save_id(fields, "save"),
            uint(fields, "rank", MAX_RANK),
            uint(fields, "world"),
        )
        if rank >= world:
            raise FormatError("rank is not below the world", at="$.rank", found=rank)
        if kind == FAILED:
            reason = fields.get("reason")
            if not isinstance(reason, str):
                raise FormatError("expected a reason", at="$.reason", found=reason)
            return cls(save=of, rank=rank, world=world, reason=reason)
        if kind != ROWS:
            raise UnsupportedError("part of an unknown kind: upgrade ckptfmt", found=kind)
        algorithm = digest.stored(fields.get("digest"), "$.digest")
        arrays, chunks, files = (
            columns.table(fields, name) for name in ("arrays", "chunks", "files")
        )
        rows = filetable.decode(files, algorithm, bundle=False)
        return cls(
            save=of,
            rank=rank,
            world=world,
            digest=algorithm,
            arrays=_arrays(arrays, chunks, rows, algorithm),
            files=rows,
        )


def _arrays(
    a: dict[str, Any], c: dict[str, Any], files: list[FileRow], algorithm: digest.Digest
) -> list[tuple[ArrayRow, list[Chunk]]]:
    paths = columns.distinct(
        columns.strings(a, "path", "$.arrays", limit=MAX_ARRAYS), "$.arrays.path"
    )
    kinds = [
        dtypes.by_name(n, at="$.arrays.dtypes")
        for n in columns.distinct(columns.strings(a, "dtypes", "$.arrays"), "$.arrays.dtypes")
    ]
    column = functools.partial(columns.unpack, a, at="$.arrays", count=len(paths))
    kind_of = column("dtype", "<u2", below=len(kinds))
    ndim = column("ndim", "u1", below=MAX_NDIM + 1)
    counts = column("chunks", "<u4")
    extents = columns.unpack(a, "shape", "<u8", "$.arrays", count=int(ndim.sum()), below=2**62)
    columns.products(extents, columns.starts(ndim), "$.arrays.shape")  # refuses absurd ones
    boxes = _chunks(c, int(counts.sum()), np.repeat(ndim, counts).tolist(), algorithm)
    at = iter(extents.tolist())
    arrays = []
    for path, kind, n, count in zip(
        paths, kind_of, ndim.tolist(), counts.tolist(), strict=True
    ):
        array = ArrayRow(path, kinds[kind], tuple(itertools.islice(at, n)))
        arrays.append((array, list(itertools.islice(boxes, count))))
        for chunk in arrays[-1][1]:
            _check(array, chunk, files)
    _check_apart([chunk for _, own in arrays for chunk in own])
    return arrays


def _chunks(
    c: dict[str, Any], total: int, ndim: list[int], algorithm: digest.Digest
) -> Iterator[Chunk]:
    """Yield the rows of the chunk table."""
    names = [
        codec.stored(n, "$.chunks.codecs")
        for n in columns.distinct(columns.strings(c, "codecs", "$.chunks"), "$.chunks.codecs")
    ]
    column = functools.partial(columns.unpack, c, at="$.chunks", count=total)
    file, offset, nbytes = (
        column("file", "<u4"),
        column("offset", "<u8"),
        column("nbytes", "<u8"),
    )
    which = [names[k] for k in column("codec", "u1", below=len(names)).tolist()]
    box = functools.partial(columns.unpack, c, at="$.chunks", count=sum(ndim))
    start, shape = iter(box("start", "<u8").tolist()), iter(box("shape", "<u8").tolist())
    size = algorithm.nbytes
    stored = columns.binary(c, "digest", "$.chunks", nbytes=total * size)
    encoded = sum(name != codec.RAW for name in which)
    raw = columns.binary(c, "raw_digest", "$.chunks", nbytes=encoded * size)
    at = 0
    for n in range(total):
        own = stored[n * size : (n + 1) * size]
        decoded = own
        if which[n] != codec.RAW:
            decoded, at = raw[at : at + size], at + size
        yield Chunk(
            int(file[n]), int(offset[n]), int(nbytes[n]), which[n], own, decoded,
            tuple(itertools.islice(start, ndim[n])), tuple(itertools.islice(shape, ndim[n])),
        )  # fmt: skip


def _check(array: ArrayRow, chunk: Chunk, files: list[FileRow]) -> None:
    inside = all(
        n > 0 and begin + n <= whole
        for begin, n, whole in zip(chunk.start, chunk.shape, array.shape, strict=True)
    )
    length = array.dtype.itemsize * math.prod(chunk.shape)
    fits = length == chunk.nbytes
    if chunk.codec != codec.RAW:
        fits = length <= tables.MAX_ENCODED_NBYTES and chunk.nbytes > 0
    if chunk.file >= len(files) or not inside or not fits:
        raise FormatError("a chunk's box, length or file is wrong", path=array.path)
    if chunk.offset + chunk.nbytes > files[chunk.file].area_nbytes:
        raise FormatError("a chunk ends beyond its file", path=array.path)


def _check_apart(chunks: list[Chunk]) -> None:
    ranges = sorted((c.file, c.offset, c.offset + c.nbytes) for c in chunks)
    for before, after in itertools.pairwise(ranges):
        if before[0] == after[0] and after[1] < before[2]:
            raise FormatError("two chunks share bytes of a file", at="$.chunks.offset")
