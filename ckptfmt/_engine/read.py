"""Planned fetches → verified bytes in their final memory.

Large raw chunks are read straight into the array they belong to; small neighbours are read
together into one slab, and their arrays are views of it. Every byte that was read is digested
while it is hot; nothing is handed out before its digest agrees.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt._engine import pages, plan, stage
from ckptfmt._engine.boxes import (
    Box,
    contiguous,
    inside,
    intersection,
    leading,
    region,
    touching,
)
from ckptfmt._engine.plan import Fetch
from ckptfmt._engine.source import Source, single
from ckptfmt._engine.threads import Threads
from ckptfmt.errors import IntegrityError, NotFoundError
from ckptfmt.format import codec
from ckptfmt.format.tables import ArrayRow, Chunk
from ckptfmt.pause import gc_paused

Array: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = tuple[int, ArrayRow, list[Chunk]]

SLAB_NBYTES: Final = 8 * 2**20  # one read for many small arrays
SMALL_NBYTES: Final = 2**20  # arrays below it share a slab: each keeps at most one slab alive
MAX_REQUESTS: Final = 16  # for data: each holds up to a chunk
MAX_GAP: Final = 64 * 2**10  # hole that is cheaper to read than to skip
CHECK_GAP: Final = 64  # hole that alignment leaves: each byte is read once
NO_BOXES: Final[Mapping[int, Box]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader(Source):
    """The arrays of one checkpoint."""

    threads: int = 2
    verified: set[tuple[str, int]] = field(default_factory=set)  # chunks seen to agree: views

    def load(
        self,
        rows: Iterable[int],
        *,
        targets: Mapping[int, Array] | None = None,
        boxes: Mapping[int, Box] = NO_BOXES,
        verify: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> dict[int, Array]:
        """Read whole arrays.

        Args:
            targets: By row, arrays of the stored shape and dtype to fill in place; all other
                arrays are new memory.
            boxes: By row, which box of the array the target holds; only the chunks that it
                touches are read.
            progress: Told (phase, done, total) after each read, from the calling thread.

        Raises:
            IntegrityError: a chunk is damaged, or its file missing or too short. Targets may
                then hold a part of the new bytes.
            NotFoundError: the checkpoint was deleted or revised meanwhile; the same holds.
            BackendError: storage failed.
        """
        out: dict[int, Array] = dict(targets or {})
        with gc_paused():
            tasks = list(self._tasks(list(rows), out, boxes))
        total = sum(task.nbytes for task in tasks)
        done = 0
        given = frozenset(targets or {})

        def do(task: Fetch) -> tuple[Fetch, dict[int, Array]]:
            return task, self._do(task, out, given, verify)

        for task, made in self._run(tasks, do):
            out.update(made)
            done += task.nbytes
            if progress is not None:
                progress("load", done, total)
        return out

    def check(self, rows: Iterable[int], *, boxes: Mapping[int, Box] = NO_BOXES) -> None:
        """Read and digest the stored bytes of arrays, or of boxes of them; keeps none.

        Raises:
            IntegrityError, NotFoundError, BackendError: as in `load`.
        """
        found = self._rows(list(rows), boxes)
        parts = [(row, chunk) for row, _, chunks in found for chunk in chunks]
        size = self.block_nbytes(SLAB_NBYTES)
        fetches = plan.coalesce(parts, max_gap=CHECK_GAP, max_nbytes=size)
        for _ in self._run(fetches, self.check_fetch):
            pass

    def _run(self, work: Sequence[Any], task: Callable[[Any], Any]) -> Iterator[Any]:
        count = max(self.threads, min(self.requests, MAX_REQUESTS))
        if len(work) <= 1 or count == 1:
            yield from map(task, work)
            return
        with Threads(min(count, len(work)), "ckptfmt-load") as pool:
            yield from pool.ordered(task, work, ahead=4 * count)

    def _tasks(
        self, rows: list[int], out: dict[int, Array], boxes: Mapping[int, Box]
    ) -> Iterator[Fetch]:
        """Allocate what is large or given in pieces; leave small arrays to their slab."""
        small: list[tuple[int, Chunk]] = []
        for row, array, chunks in self._rows(rows, boxes):
            if row not in out and not (
                len(chunks) == 1
                and chunks[0].nbytes < SMALL_NBYTES
                and chunks[0].codec == codec.RAW
            ):
                self.ensure_length(row, chunks, array.nbytes)
                out[row] = np.empty(array.shape, array.dtype.numpy)
            for chunk in chunks:
                if chunk.nbytes >= SMALL_NBYTES:
                    yield single(row, chunk, chunk.offset, chunk.nbytes)
                else:
                    small.append((row, chunk))
        yield from plan.coalesce(small, max_gap=MAX_GAP, max_nbytes=SLAB_NBYTES)

    def _rows(self, rows: Sequence[int], boxes: Mapping[int, Box]) -> Iterator[Run]:
        """Yield arrays with their chunks, or those that a box touches, relative to that."""
        for row, array, chunks in self.tables.rows(rows):
            if row in boxes:
                chunks = list(touching(chunks, boxes[row]))
            yield row, array, chunks

    def _do(
        self, fetch: Fetch, out: Mapping[int, Array], given: frozenset[int], verify: bool
    ) -> dict[int, Array]:
        """Read one fetch; returns the arrays that are views of its slab."""
        row, chunk = fetch.parts[0]
        if len(fetch.parts) == 1 and row in out and chunk.codec == codec.RAW:
            direct = contiguous(out[row], chunk)
            if direct is not None:
                self.read_whole(fetch, direct, fresh=row not in given, verify=verify)
                return {}
        slab = pages.aligned(fetch.nbytes, fetch.offset)  # arrays keep their alignment
        data = slab.data
        self.read_into(fetch, data)
        made: dict[int, Array] = {}
        for row, chunk in fetch.parts:
            at = chunk.offset - fetch.offset
            stored = data[at : at + chunk.nbytes]
            if verify:
                self.compare(row, chunk, self.tables.digest.of(stored))
            if row in out:
                self._place(out[row], row, chunk, stored, verify)
            else:
                dtype = self.tables.dtypes[self.tables.dtype[row]].numpy
                made[row] = np.ndarray(chunk.shape, dtype, slab, at)
        return made

    def _place(
        self, array: Array, row: int, chunk: Chunk, stored: memoryview, verify: bool
    ) -> None:
        """Decode a chunk and put it into its box of `array`, whatever that one's layout is."""
        if chunk.codec == codec.RAW and chunk.shape == array.shape and not any(chunk.start):
            dtype = self.tables.dtypes[self.tables.dtype[row]].numpy
            array[...] = np.ndarray(chunk.shape, dtype, stored)
            return
        direct = contiguous(array, chunk)
        if direct is not None:
            self._decode(row, chunk, stored, direct, verify)
            return
        box = np.empty(chunk.shape, self.tables.dtypes[self.tables.dtype[row]].numpy)
        self._decode(row, chunk, stored, stage.flat_bytes(box), verify)
        own = chunk.start, chunk.shape
        if (common := intersection(own, ((0,) * array.ndim, array.shape))) is not None:
            array[region(*common)] = box[region(*inside(common, chunk.start))]

    def _decode(
        self, row: int, chunk: Chunk, stored: memoryview, target: memoryview, verify: bool
    ) -> None:
        codec.decode_into(chunk.codec, stored, target, **self.where(row, chunk))
        if verify and chunk.codec != codec.RAW:
            found = self.tables.digest.of(target)
            if found != chunk.raw_digest:
                raise IntegrityError(
                    "digest mismatch after decoding",
                    **self.where(row, chunk),
                    expected=chunk.raw_digest.hex(),
                    found=found.hex(),
                )

    def box(self, row: int, box: Box, *, verify: bool = True) -> Array:
        """Read one box of an array.

        Args:
            verify: Read and verify each chunk that the box touches, whole. When False, only
                the byte range from the box's first to its last element of each raw chunk.

        Raises:
            IntegrityError: as in `load`.
            BackendError: storage failed.
        """
        dtype = self.tables.dtypes[self.tables.dtype[row]].numpy
        chunks = self.tables.chunks(row)
        self.ensure_length(row, chunks, dtype.itemsize * math.prod(box[1]))
        out: Array = np.empty(box[1], dtype)
        if out.size == 0:
            return out
        touched = [
            (chunk, common)
            for chunk in chunks
            if (common := intersection(box, (chunk.start, chunk.shape))) is not None
        ]

        def fill(chunk: Chunk, common: Box) -> None:
            part = self._part(row, chunk, inside(common, chunk.start), verify)
            into = tuple(s - b for s, b in zip(common[0], box[0], strict=True))
            out[region(into, common[1])] = part

        for _ in self._run(touched, lambda parts: fill(*parts)):
            pass
        return out

    def _part(self, row: int, chunk: Chunk, want: Box, verify: bool) -> Array:
        """Return a region, relative to its chunk, of one chunk."""
        dtype = self.tables.dtypes[self.tables.dtype[row]].numpy
        if verify or chunk.codec != codec.RAW:
            self.ensure_length(row, [chunk], chunk.nbytes)
            whole = np.empty(chunk.shape, dtype)
            stored = stage.flat_bytes(whole)
            fetch = single(row, chunk, chunk.offset, chunk.nbytes)
            if chunk.codec != codec.RAW:
                stored = memoryview(bytearray(chunk.nbytes))
            self.read_into(fetch, stored)
            if verify:
                self.compare(row, chunk, self.tables.digest.of(stored))
            if chunk.codec != codec.RAW:
                self._decode(row, chunk, stored, stage.flat_bytes(whole), verify)
            return whole[region(*want)]
        inner = range(1, len(chunk.shape) + 1)
        strides = [dtype.itemsize * math.prod(chunk.shape[k:]) for k in inner]
        first = sum(s * n for s, n in zip(want[0], strides, strict=True))
        last = first + sum((n - 1) * s for n, s in zip(want[1], strides, strict=True))
        data = np.empty(last - first + dtype.itemsize, np.uint8)
        at = chunk.offset + first
        fetch = single(row, chunk, at, data.nbytes)
        self.read_into(fetch, data.data)
        return np.ndarray(want[1], dtype, buffer=data, strides=strides)

    def views(self, rows: Sequence[int], *, verify: bool = True) -> dict[int, Array]:
        """Return read-only arrays over the stored bytes, without a copy where storage maps.

        Args:
            verify: Digest each chunk that is not in `verified` yet.

        Returns:
            By row, those arrays that are one run of raw chunks in one file.

        Raises:
            IntegrityError, NotFoundError, BackendError: as in `load`.
        """
        with gc_paused():
            runs = [run for run in self.tables.rows(rows) if _is_run(*run[1:])]
            mapped = dict(self._mapped_runs(runs))
        if verify:
            work = [
                (row, chunk, mapped[row][1][at : at + chunk.nbytes])
                for row, _, chunks in runs
                for chunk in chunks
                if self._name(chunk) not in self.verified
                for at in (mapped[row][0] + chunk.offset - chunks[0].offset,)
            ]
            for _ in self._run(list(_batches(work)), self._verify_mapped):
                pass
        found: dict[int, Array] = {}
        for row, array, _ in runs:
            at, memory = mapped[row]
            found[row] = np.ndarray(array.shape, array.dtype.numpy, memory, at)
            found[row].flags.writeable = False
        return found

    def _mapped_runs(self, runs: Sequence[Run]) -> Iterator[tuple[int, tuple[int, memoryview]]]:
        """Yield (row, (offset, memory)); where storage maps, one memory for all of a file."""
        ends: dict[int, int] = {}
        for _, array, (first, *_) in runs if self.backend.capabilities.maps else ():
            ends[first.file] = max(ends.get(first.file, 0), first.offset + array.nbytes)
        files: dict[int, memoryview] = {}
        for file, nbytes in ends.items():
            key, start = self.places[file]
            with contextlib.suppress(NotFoundError, IntegrityError):  # below: of which array?
                files[file] = self.backend.map(key, start, nbytes)
        for row, array, (first, *_) in runs:
            if first.file in files:
                yield row, (first.offset, files[first.file])
            else:
                yield row, (0, self.mapped(row, first, array.nbytes))

    def _verify_mapped(self, work: Sequence[tuple[int, Chunk, memoryview]]) -> None:
        for row, chunk, data in work:
            self.compare(row, chunk, self.tables.digest.of(data))
            self.verified.add(self._name(chunk))

    def _name(self, chunk: Chunk) -> tuple[str, int]:
        place = self.places[chunk.file]
        return place.key, place.start + chunk.offset


def _is_run(array: ArrayRow, chunks: Sequence[Chunk]) -> bool:
    """Tell whether an array's chunks are raw and follow one another in one file."""
    end = chunks[0].offset if chunks else 0
    for chunk in chunks:
        if (chunk.codec, chunk.file, chunk.offset) != (codec.RAW, chunks[0].file, end):
            return False
        if not leading(chunk, array.shape):
            return False
        end += chunk.nbytes
    return bool(chunks)


def _batches(
    work: Iterable[tuple[int, Chunk, memoryview]],
) -> Iterator[list[tuple[int, Chunk, memoryview]]]:
    """Put together what is too small for a task of its own."""
    batch: list[tuple[int, Chunk, memoryview]] = []
    nbytes = 0
    for item in work:
        batch.append(item)
        nbytes += item[1].nbytes
        if nbytes >= SMALL_NBYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch
