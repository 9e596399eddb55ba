"""The array, chunk and file tables of a manifest, column by column (spec §6.5–6.7).

Columns are packed little-endian integers: 100,000 rows decode in a few `frombuffer` calls,
and any language reads them with a loop. Objects for single rows are made when asked for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ckptfmt import dtypes
from ckptfmt.errors import FormatError
from ckptfmt.format import codec, columns, digest, filetable
from ckptfmt.format.columns import Column
from ckptfmt.format.rows import ArrayRow as ArrayRow
from ckptfmt.format.rows import Chunk as Chunk
from ckptfmt.format.rows import FileRow as FileRow
from ckptfmt.format.tiling import check_tiling
from ckptfmt.leaves import MAX_PATH_NBYTES

MAX_ARRAYS: Final = 2_000_000
MAX_NDIM: Final = 64
MAX_ENCODED_NBYTES: Final = 2**30  # decoded bytes of one encoded chunk

U64: Final = np.dtype("<u8")
ORIGIN: Final = (0,) * MAX_NDIM
BULK: Final = 50  # unpacking a value of all columns takes so much less time than looking at one


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """All arrays of a checkpoint, where their chunks lie, and the files they lie in."""

    paths: Sequence[str]
    dtypes: Sequence[dtypes.DType]  # distinct
    dtype: Column  # per array: index into `dtypes`
    ndim: Column
    shape: Column  # concatenated
    shape_at: Column  # per array, plus the end
    aliases: Sequence[tuple[int, str]]
    chunk_at: Column  # per array: its first chunk, plus the end
    box_at: Column  # per array: its first value in `start`, plus the end
    file: Column
    offset: Column
    nbytes: Column
    codecs: Sequence[str]
    codec: Column
    digests: bytes
    raw_digests: bytes
    raw_at: Column  # per chunk: index into `raw_digests`, valid for encoded ones
    start: Column
    extent: Column
    files: Sequence[FileRow]
    digest: digest.Digest

    def __len__(self) -> int:
        return len(self.paths)

    def shape_of(self, row: int) -> tuple[int, ...]:
        """Return the shape of the array in `row`."""
        return tuple(self.shape[self.shape_at[row] : self.shape_at[row + 1]].tolist())

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shape of every array."""
        flat = tuple(self.shape.tolist())
        return [flat[begin:end] for begin, end in itertools.pairwise(self.shape_at.tolist())]

    def sizes(self) -> Column:
        """Return the decoded bytes of every array.

        Raises:
            FormatError: a shape no memory could hold.
        """
        items = columns.int64([kind.itemsize for kind in self.dtypes])[self.dtype]
        return columns.products(self.shape, self.shape_at, "$.arrays.shape") * items

    def array(self, row: int) -> ArrayRow:
        """Return the array in `row`."""
        return ArrayRow(
            path=self.paths[row], dtype=self.dtypes[self.dtype[row]], shape=self.shape_of(row)
        )

    def chunks(self, row: int) -> list[Chunk]:
        """Return the chunks of the array in `row`, in stored order."""
        first, end = int(self.chunk_at[row]), int(self.chunk_at[row + 1])
        if end - first == 1:
            shape = self.shape_of(row)
            return [self._chunk(first, (0,) * len(shape), shape)]
        ndim, at = int(self.ndim[row]), int(self.box_at[row])
        boxes = zip(
            self.start[at : at + ndim * (end - first)].reshape(-1, ndim).tolist(),
            self.extent[at : at + ndim * (end - first)].reshape(-1, ndim).tolist(),
            strict=True,
        )
        return [
            self._chunk(first + i, tuple(start), tuple(extent))
            for i, (start, extent) in enumerate(boxes)
        ]

    def rows(self, wanted: Sequence[int]) -> Iterator[tuple[int, ArrayRow, list[Chunk]]]:
        """Yield (row, array, its chunks): of many rows, the columns are unpacked once."""
        if len(wanted) * BULK < len(self):
            yield from ((row, self.array(row), self.chunks(row)) for row in wanted)
            return
        shapes, dtype, first = self.shapes(), self.dtype.tolist(), self.chunk_at.tolist()
        file, offset, nbytes = self.file.tolist(), self.offset.tolist(), self.nbytes.tolist()
        raw = np.isin(self.codec, [n for n, c in enumerate(self.codecs) if c == codec.RAW])
        size, plain = self.digest.nbytes, raw.tolist()
        for row in wanted:
            c, shape = first[row], shapes[row]
            array = ArrayRow(self.paths[row], self.dtypes[dtype[row]], shape)
            if first[row + 1] - c != 1 or not plain[c]:
                yield row, array, self.chunks(row)
                continue
            digest = self.digests[c * size : (c + 1) * size]
            start = ORIGIN[: len(shape)]
            own = file[c], offset[c], nbytes[c], codec.RAW, digest, digest, start, shape
            yield row, array, [Chunk(*own)]

    def _chunk(self, c: int, start: tuple[int, ...], shape: tuple[int, ...]) -> Chunk:
        size = self.digest.nbytes
        stored = self.digests[c * size : (c + 1) * size]
        name = self.codecs[self.codec[c]]
        at = int(self.raw_at[c]) * size
        raw = stored if name == codec.RAW else self.raw_digests[at : at + size]
        return Chunk(
            int(self.file[c]), int(self.offset[c]), int(self.nbytes[c]), name, stored, raw,
            start, shape,
        )  # fmt: skip

    def encode(self) -> dict[str, dict[str, Any]]:
        """Return the msgpack form: the maps `arrays`, `chunks` and `files`."""
        return {
            "arrays": {
                "path": list(self.paths),
                "dtypes": [row.name for row in self.dtypes],
                "dtype": columns.pack(self.dtype, "<u2"),
                "ndim": columns.pack(self.ndim, "u1"),
                "shape": columns.pack(self.shape, "<u8"),
                "chunks": columns.pack(np.diff(self.chunk_at), "<u4"),
                "aliases": [list(alias) for alias in self.aliases],
            },
            "chunks": {
                "file": columns.pack(self.file, "<u4"),
                "offset": columns.pack(self.offset, "<u8"),
                "nbytes": columns.pack(self.nbytes, "<u8"),
                "codecs": list(self.codecs),
                "codec": columns.pack(self.codec, "u1"),
                "digest": self.digests,
                "raw_digest": self.raw_digests,
                "start": columns.pack(self.start, "<u8"),
                "shape": columns.pack(self.extent, "<u8"),
            },
            "files": {
                "key": [f.key for f in self.files],
                "nbytes": columns.pack([f.nbytes for f in self.files], "<u8"),
                "header_nbytes": columns.pack([f.header_nbytes for f in self.files], "<u8"),
                "header_digest": b"".join(f.header_digest for f in self.files),
                "number": columns.pack([f.number for f in self.files], "<u8"),
            },
        }


def build(
    arrays: Iterable[tuple[ArrayRow, Sequence[str], Sequence[Chunk]]],
    *,
    files: Sequence[FileRow],
    algorithm: digest.Digest,
) -> Tables:
    """Return the tables of `arrays`: each an array, its aliases, its chunks in order."""
    listed = list(arrays)
    return join(
        [array.path for array, _, _ in listed],
        [array.dtype for array, _, _ in listed],
        [array.shape for array, _, _ in listed],
        aliases=[(row, path) for row, (_, more, _) in enumerate(listed) for path in more],
        counts=columns.int64([len(own) for _, _, own in listed]),
        chunks=[chunk for _, _, own in listed for chunk in own],
        files=files,
        algorithm=algorithm,
    )


def join(
    paths: Sequence[str],
    kinds: Sequence[dtypes.DType],
    shapes: Sequence[tuple[int, ...]],
    *,
    aliases: Sequence[tuple[int, str]],
    counts: Column,
    chunks: Sequence[Chunk],
    files: Sequence[FileRow],
    algorithm: digest.Digest,
) -> Tables:
    """Return the tables of arrays given column by column.

    Args:
        aliases: Row and further path of each tied array.
        counts: How many of the chunks each array has; those of all lie end to end.
    """
    dtype, known = columns.numbered([kind.name for kind in kinds])
    ndim = columns.int64([*map(len, shapes)])
    file, offset, nbytes, codecs, digests, raw_digests, _, _ = (
        zip(*chunks, strict=True) if chunks else [()] * len(Chunk._fields)
    )
    which, names = columns.numbered(codecs)
    encoded = np.array([name != codec.RAW for name in names], dtype=bool)[which]
    many = counts > 1
    boxed = (
        [*itertools.compress(chunks, np.repeat(many, counts).tolist())] if many.any() else []
    )
    return Tables(
        paths=paths,
        dtypes=[dtypes.DTYPES[name] for name in known],
        dtype=dtype,
        ndim=ndim,
        shape=columns.int64([*itertools.chain.from_iterable(shapes)]),
        shape_at=columns.starts(ndim),
        aliases=aliases,
        chunk_at=columns.starts(counts),
        box_at=columns.starts(np.where(many, counts * ndim, 0)),
        file=columns.int64(file),
        offset=columns.int64(offset),
        nbytes=columns.int64(nbytes),
        codecs=names,
        codec=which,
        digests=b"".join(digests),
        raw_digests=b"".join(itertools.compress(raw_digests, encoded.tolist())),
        raw_at=columns.starts(encoded.astype(np.int64))[:-1],
        start=columns.int64([n for chunk in boxed for n in chunk.start]),
        extent=columns.int64([n for chunk in boxed for n in chunk.shape]),
        files=list(files),
        digest=algorithm,
    )


def decode(body: dict[str, Any], algorithm: digest.Digest, *, bundle: bool = False) -> Tables:
    """Parse and validate the three tables of a manifest's body.

    Every count, index, offset and box is checked here, before any memory for array data is
    spent: what passes can be read without further questions.

    Raises:
        FormatError: a column is missing, of the wrong length, or a value is out of range;
            boxes overlap, leave a hole, or disagree with lengths.
        UnsupportedError: a dtype or codec this release does not know.
    """
    a, c, f = (columns.table(body, name) for name in ("arrays", "chunks", "files"))
    files = filetable.decode(f, algorithm, bundle=bundle)
    paths = columns.strings(a, "path", "$.arrays", limit=MAX_ARRAYS)
    kinds = [
        dtypes.by_name(n, at="$.arrays.dtypes")
        for n in columns.distinct(columns.strings(a, "dtypes", "$.arrays"), "$.arrays.dtypes")
    ]
    dtype = columns.unpack(a, "dtype", "<u2", "$.arrays", count=len(paths), below=len(kinds))
    ndim = columns.unpack(a, "ndim", "u1", "$.arrays", count=len(paths), below=MAX_NDIM + 1)
    shape = columns.unpack(a, "shape", "<u8", "$.arrays", count=int(ndim.sum()), below=2**62)
    counts = columns.unpack(a, "chunks", "<u4", "$.arrays", count=len(paths))
    total = int(counts.sum())
    boxes = np.where(counts > 1, counts * ndim, 0)
    names = [
        codec.stored(n, "$.chunks.codecs")
        for n in columns.distinct(columns.strings(c, "codecs", "$.chunks"), "$.chunks.codecs")
    ]
    column = functools.partial(columns.unpack, c, at="$.chunks", count=total)
    box = functools.partial(columns.unpack, c, at="$.chunks", count=int(boxes.sum()))
    which = column("codec", "u1", below=len(names))
    encoded = np.array([name != codec.RAW for name in names], dtype=bool)[which]
    size = algorithm.nbytes
    tables = Tables(
        paths=paths,
        dtypes=kinds,
        dtype=dtype,
        ndim=ndim,
        shape=shape,
        shape_at=columns.starts(ndim),
        aliases=_aliases(a.get("aliases"), len(paths)),
        chunk_at=columns.starts(counts),
        box_at=columns.starts(boxes),
        file=column("file", "<u4", below=len(files)),
        offset=column("offset", "<u8"),
        nbytes=column("nbytes", "<u8"),
        codecs=names,
        codec=which,
        digests=columns.binary(c, "digest", "$.chunks", nbytes=total * size),
        raw_digests=columns.binary(
            c, "raw_digest", "$.chunks", nbytes=int(encoded.sum()) * size
        ),
        raw_at=columns.starts(encoded.astype(np.int64))[:-1],
        start=box("start", "<u8"),
        extent=box("shape", "<u8"),
        files=files,
        digest=algorithm,
    )
    _check(tables, encoded)
    return tables


def _aliases(rows: object, count: int) -> list[tuple[int, str]]:
    if not isinstance(rows, list):
        raise FormatError("expected a list of [row, path]", at="$.arrays.aliases", found=rows)
    found: list[tuple[int, str]] = []
    for row in rows:
        match row:
            case [int(n), str(path)] if 0 <= n < count and len(path) <= MAX_PATH_NBYTES:
                found.append((n, path))
            case _:
                raise FormatError("expected [row, path]", at="$.arrays.aliases", found=row)
    return found


def _check(t: Tables, encoded: npt.NDArray[np.bool_]) -> None:
    """Check what only several columns together can tell."""
    if max(map(len, t.paths), default=0) > MAX_PATH_NBYTES:
        raise FormatError("path too long", at="$.arrays.path", expected=MAX_PATH_NBYTES)
    if len({*t.paths, *(path for _, path in t.aliases)}) != len(t.paths) + len(t.aliases):
        raise FormatError("two arrays have the same path", at="$.arrays.path")
    nbytes = t.sizes()
    counts = t.chunk_at[1:] - t.chunk_at[:-1]
    if len(t.nbytes) and int(np.minimum.reduce(t.nbytes)) == 0:
        raise FormatError("a chunk is empty", at="$.chunks.nbytes")
    if not np.array_equal(nbytes == 0, counts == 0):
        raise FormatError("exactly the empty arrays have no chunk", at="$.arrays.chunks")
    raw = np.repeat(nbytes, counts)  # per chunk: decoded bytes
    if len(t.nbytes) > np.count_nonzero(counts):
        _check_boxes(t, counts, raw)
    if encoded.any():
        if (encoded & (raw > MAX_ENCODED_NBYTES)).any():
            raise FormatError(
                "an encoded chunk is too large", at="$.chunks", expected=MAX_ENCODED_NBYTES
            )
        raw[encoded] = t.nbytes[encoded]  # any length will do
    if not np.array_equal(raw, t.nbytes):
        raise FormatError(
            "a raw chunk's length differs from shape × dtype", at="$.chunks.nbytes"
        )
    _check_files(t)


def _check_boxes(t: Tables, counts: Column, raw: Column) -> None:
    """Check the boxes of arrays with several chunks; enter these chunks' lengths in `raw`."""
    many = counts > 1  # per array: its chunks have explicit boxes
    if (many & (t.ndim == 0)).any():
        raise FormatError("a 0-d array has one chunk", at="$.arrays.chunks")
    boxed = np.repeat(many, counts)
    per = np.repeat(t.ndim, counts)[boxed]
    volumes = columns.products(t.extent, columns.starts(per), "$.chunks.shape")
    items = columns.int64([kind.itemsize for kind in t.dtypes])[t.dtype]
    raw[boxed] = volumes * np.repeat(items, counts)[boxed]
    for row in np.flatnonzero(many).tolist():
        n, at = int(t.ndim[row]), int(t.box_at[row])
        end = at + n * int(counts[row])
        check_tiling(
            t.start[at:end].reshape(-1, n),
            t.extent[at:end].reshape(-1, n),
            t.shape_of(row),
            path=t.paths[row],
        )


def _check_files(t: Tables) -> None:
    """Check that each chunk lies inside its file, and apart from the others."""
    area = columns.int64([f.area_nbytes for f in t.files])[t.file]
    ends = t.offset + t.nbytes
    if (beyond := ends > area).any():
        row = int(beyond.argmax())
        raise FormatError(
            "a chunk ends beyond its file",
            at=f"$.chunks[{row}]",
            expected=int(area[row]),
            found=int(ends[row]),
        )
    file, offset = t.file, t.offset
    for _ in range(2):  # as they stand in the table, mostly their order in the files; sorted
        apart = (file[1:] > file[:-1]) | (file[1:] == file[:-1]) & (offset[1:] >= ends[:-1])
        if apart.all():
            return
        order = np.lexsort((offset, file))
        file, offset, ends = file[order], offset[order], ends[order]
    raise FormatError("two chunks share bytes of a file", at="$.chunks.offset")
