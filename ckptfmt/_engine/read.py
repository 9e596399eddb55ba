"""Planned fetches → verified bytes in their final memory.

Large raw chunks are read straight into the array they belong to; small neighbours are read
together into one slab, and their arrays are views of it. Every byte that was read is digested
while it is hot; nothing is handed out before its digest agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

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
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend
from ckptfmt.errors import CheckpointError, IntegrityError, NotFoundError
from ckptfmt.format import codec
from ckptfmt.format.tables import Chunk, Tables
from ckptfmt.pause import gc_paused

Array: TypeAlias = npt.NDArray[Any]

SLAB_NBYTES: Final = 8 * 2**20  # one read for many small arrays
CHECK_NBYTES: Final = 2**19  # digested at once: in mapped memory a bad disk kills the process
SMALL_NBYTES: Final = 2**20  # arrays below it share a slab: each keeps at most one slab alive
LARGE_NBYTES: Final = 64 * 2**20  # memory that is worth a look at the file's length first …
REMOTE_LARGE_NBYTES: Final = 8 * 2**30  # … and where that look is a request of its own
MAX_REQUESTS: Final = 16  # for data: each holds up to a chunk
MAX_GAP: Final = 64 * 2**10  # hole that is cheaper to read than to skip
NO_BOXES: Final[Mapping[int, Box]] = MappingProxyType({})


def unchanged() -> None:
    """Say that nobody can have deleted or revised a checkpoint: there is no store."""


class Place(NamedTuple):
    """Where a data file lies: its key and the first byte of its data area."""

    key: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """The arrays of one checkpoint, and where their bytes are."""

    backend: Backend
    tables: Tables
    places: Sequence[Place]  # per row of the file table
    threads: int = 2
    verified: set[tuple[str, int]] = field(default_factory=set)  # chunks seen to agree: views
    changed: Callable[[], NotFoundError | None] = unchanged  # why data may be gone, by now

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

    def check(
        self,
        rows: Iterable[int],
        *,
        boxes: Mapping[int, Box] = NO_BOXES,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Iterator[tuple[int, Chunk, IntegrityError | None]]:
        """Digest the stored bytes of arrays, or of boxes of them, without keeping them.

        Yields:
            (row, chunk, None or what is wrong with it).
        """
        parts = [(row, chunk) for row in rows for chunk in self._chunks(row, boxes)]
        fetches = plan.coalesce(parts, max_gap=0, max_nbytes=SLAB_NBYTES)
        total = sum(chunk.nbytes for _, chunk in parts)
        done = 0
        for results in self._run(fetches, self._check_fetch):
            yield from results
            done += sum(chunk.nbytes for _, chunk, _ in results)
            if progress is not None:
                progress("verify", done, total)

    def _run(self, work: Sequence[Any], task: Callable[[Any], Any]) -> Iterator[Any]:
        count = max(self.threads, min(self._requests, MAX_REQUESTS))
        if len(work) <= 1 or count == 1:
            yield from map(task, work)
            return
        with Threads(min(count, len(work)), "ckptfmt-load") as pool:
            yield from pool.ordered(task, work, ahead=4 * count)

    @property
    def _requests(self) -> int:
        return self.backend.capabilities.requests

    def _chunks(self, row: int, boxes: Mapping[int, Box]) -> list[Chunk]:
        """Return the chunks of an array, or those of its box, relative to that."""
        chunks = self.tables.chunks(row)
        return chunks if row not in boxes else list(touching(chunks, boxes[row]))

    def _tasks(
        self, rows: list[int], out: dict[int, Array], boxes: Mapping[int, Box]
    ) -> Iterator[Fetch]:
        """Allocate what is large or given in pieces; leave small arrays to their slab."""
        small: list[tuple[int, Chunk]] = []
        for row in rows:
            chunks = self._chunks(row, boxes)
            array = self.tables.array(row)
            slab = row not in out and len(chunks) == 1 and array.nbytes < SMALL_NBYTES
            if row not in out and not (slab and chunks[0].codec == codec.RAW):
                self._check_length(row, chunks, array.nbytes)
                out[row] = np.empty(array.shape, array.dtype.numpy)
            for chunk in chunks:
                if chunk.nbytes >= SMALL_NBYTES:
                    yield _single(row, chunk, chunk.offset, chunk.nbytes)
                else:
                    small.append((row, chunk))
        yield from plan.coalesce(small, max_gap=MAX_GAP, max_nbytes=SLAB_NBYTES)

    def _do(
        self, fetch: Fetch, out: Mapping[int, Array], given: frozenset[int], verify: bool
    ) -> dict[int, Array]:
        """Read one fetch; returns the arrays that are views of its slab."""
        row, chunk = fetch.parts[0]
        if len(fetch.parts) == 1 and row in out and chunk.codec == codec.RAW:
            direct = contiguous(out[row], chunk)
            if direct is not None:
                self._read_into(fetch, direct, fresh=row not in given)
                if verify:
                    self._compare(row, chunk, self.tables.digest.of(direct))
                return {}
        slab = pages.aligned(fetch.nbytes, fetch.offset)  # arrays keep their alignment
        data = slab.data
        self._read_into(fetch, data)
        made: dict[int, Array] = {}
        for row, chunk in fetch.parts:
            at = chunk.offset - fetch.offset
            stored = data[at : at + chunk.nbytes]
            if verify:
                self._compare(row, chunk, self.tables.digest.of(stored))
            if row in out:
                self._place(out[row], row, chunk, stored, verify)
            else:
                made[row] = np.ndarray(
                    self.tables.shape_of(row),
                    self.tables.dtypes[self.tables.dtype[row]].numpy,
                    buffer=slab,
                    offset=at,
                )
        return made

    def _place(
        self, array: Array, row: int, chunk: Chunk, stored: memoryview, verify: bool
    ) -> None:
        """Decode a chunk and put it into its box of `array`, whatever that one's layout is."""
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
        codec.decode_into(chunk.codec, stored, target, **self._where(row, chunk))
        if verify and chunk.codec != codec.RAW:
            found = self.tables.digest.of(target)
            if found != chunk.raw_digest:
                raise IntegrityError(
                    "digest mismatch after decoding",
                    **self._where(row, chunk),
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
        self._check_length(row, chunks, dtype.itemsize * math.prod(box[1]))
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
            self._check_length(row, [chunk], chunk.nbytes)
            whole = np.empty(chunk.shape, dtype)
            stored = stage.flat_bytes(whole)
            fetch = _single(row, chunk, chunk.offset, chunk.nbytes)
            if chunk.codec != codec.RAW:
                stored = memoryview(bytearray(chunk.nbytes))
            self._read_into(fetch, stored)
            if verify:
                self._compare(row, chunk, self.tables.digest.of(stored))
            if chunk.codec != codec.RAW:
                self._decode(row, chunk, stored, stage.flat_bytes(whole), verify)
            return whole[region(*want)]
        inner = range(1, len(chunk.shape) + 1)
        strides = [dtype.itemsize * math.prod(chunk.shape[k:]) for k in inner]
        first = sum(s * n for s, n in zip(want[0], strides, strict=True))
        last = first + sum((n - 1) * s for n, s in zip(want[1], strides, strict=True))
        data = np.empty(last - first + dtype.itemsize, np.uint8)
        at = chunk.offset + first
        fetch = _single(row, chunk, at, data.nbytes)
        self._read_into(fetch, data.data)
        return np.ndarray(want[1], dtype, buffer=data, strides=strides)

    def view(self, row: int) -> Array | None:
        """Return a read-only array over the stored bytes, without a copy where storage maps.

        None when the array is not one run of raw chunks in one file. Nothing is verified.
        """
        array, chunks = self.tables.array(row), self.tables.chunks(row)
        if not chunks:
            return None
        end = chunks[0].offset
        for chunk in chunks:
            if (chunk.codec, chunk.file, chunk.offset) != (codec.RAW, chunks[0].file, end):
                return None
            if not leading(chunk, array.shape):
                return None
            end += chunk.nbytes
        place = self.places[chunks[0].file]
        data = self._map(row, chunks[0], place, end - chunks[0].offset)
        view: Array = np.frombuffer(data, array.dtype.numpy).reshape(array.shape)
        view.flags.writeable = False
        return view

    def verify_view(self, row: int, view: Array) -> None:
        """Digest the chunks of an array that `view` returned, each once per `verified`.

        Raises:
            IntegrityError: a chunk is damaged.
        """
        data = stage.flat_bytes(view)
        at = 0
        for chunk in self.tables.chunks(row):
            place = self.places[chunk.file]
            name = place.key, place.start + chunk.offset
            if name not in self.verified:
                self._compare(row, chunk, self.tables.digest.of(data[at : at + chunk.nbytes]))
                self.verified.add(name)
            at += chunk.nbytes

    def _check_fetch(self, fetch: Fetch) -> list[tuple[int, Chunk, IntegrityError | None]]:
        results: list[tuple[int, Chunk, IntegrityError | None]] = []
        limit = CHECK_NBYTES if self.backend.capabilities.maps else fetch.nbytes
        scratch = memoryview(bytearray(min(fetch.nbytes, limit)))
        for row, chunk in fetch.parts:
            hasher = self.tables.digest.new()
            try:
                for at in range(0, chunk.nbytes, len(scratch)):
                    part = scratch[: min(len(scratch), chunk.nbytes - at)]
                    self._read_into(_single(row, chunk, chunk.offset + at, len(part)), part)
                    hasher.update(part)
                self._compare(row, chunk, hasher.digest())
            except IntegrityError as error:
                results.append((row, chunk, error))
            else:
                results.append((row, chunk, None))
        return results

    def _map(self, row: int, chunk: Chunk, place: Place, nbytes: int) -> memoryview:
        try:
            return self.backend.map(place.key, place.start + chunk.offset, nbytes)
        except (NotFoundError, IntegrityError) as error:
            raise self._unreadable(error, row, chunk) from error

    def _read_into(self, fetch: Fetch, target: memoryview, *, fresh: bool = True) -> None:
        """Read a fetch; `fresh` memory was never written to."""
        place = self.places[fetch.file]
        if fresh and self._requests > 1:
            pages.provide(target)
        try:
            self.backend.read_into(place.key, place.start + fetch.offset, target)
        except (NotFoundError, IntegrityError) as error:
            raise self._unreadable(error, *fetch.parts[0]) from error

    def _check_length(self, row: int, chunks: Sequence[Chunk], nbytes: int) -> None:
        """Before much memory is asked for: are the bytes there that shall fill it?"""
        if nbytes < (LARGE_NBYTES if self._requests == 1 else REMOTE_LARGE_NBYTES):
            return
        for chunk in {c.file: c for c in sorted(chunks, key=lambda c: c.offset)}.values():
            place = self.places[chunk.file]
            try:
                self.backend.read(place.key, place.start + chunk.offset + chunk.nbytes, 0)
            except (NotFoundError, IntegrityError) as error:
                raise self._unreadable(error, row, chunk) from error

    def _unreadable(self, error: Exception, row: int, chunk: Chunk) -> CheckpointError:
        if (why := self.changed()) is not None:
            return why
        problem = "is missing" if isinstance(error, NotFoundError) else "ends too early"
        return IntegrityError(
            f"data file {problem}: restore it from a copy of the store, or load another"
            " checkpoint",
            **self._where(row, chunk),
            nbytes=chunk.nbytes,
        )

    def _compare(self, row: int, chunk: Chunk, found: bytes) -> None:
        if found != chunk.digest:
            raise IntegrityError(
                f"digest mismatch after reading {chunk.nbytes} bytes",
                **self._where(row, chunk),
                expected=chunk.digest.hex(),
                found=found.hex(),
            )

    def _where(self, row: int, chunk: Chunk) -> dict[str, Any]:
        place = self.places[chunk.file]
        return {
            "path": self.tables.paths[row],
            "file": place.key,
            "offset": place.start + chunk.offset,
        }


def _single(row: int, chunk: Chunk, offset: int, nbytes: int) -> Fetch:
    return Fetch(file=chunk.file, offset=offset, nbytes=nbytes, parts=((row, chunk),))
