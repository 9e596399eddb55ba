"""Where the bytes of a checkpoint lie → bytes in memory, digested while they are hot.

Memory is slower than any digest: what was read is digested block by block, before it leaves the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ckptfmt._engine import pages
from ckptfmt._engine.plan import Fetch
from ckptfmt.backends.base import Backend, BlockReads
from ckptfmt.errors import CheckpointError, IntegrityError, NotFoundError
from ckptfmt.format.tables import Chunk, Tables

BLOCK_NBYTES: Final = 2**18  # digested while it lies in the second level of cache
LARGE_NBYTES: Final = 64 * 2**20  # memory that is worth a look at the file's length first …
REMOTE_LARGE_NBYTES: Final = 8 * 2**30  # … and where that look is a request of its own


def unchanged() -> None:
    """Say that nobody can have deleted or revised a checkpoint: there is no store."""


class Place(NamedTuple):
    """Where a data file lies: its key and the first byte of its data area."""

    key: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The chunks of one checkpoint, and where their bytes are."""

    backend: Backend
    tables: Tables
    places: Sequence[Place]  # per row of the file table
    changed: Callable[[], NotFoundError | None] = unchanged  # why data may be gone, by now

    @property
    def requests(self) -> int:
        return self.backend.capabilities.requests

    def check_fetch(self, fetch: Fetch) -> None:
        """Read and digest the chunks of a fetch without keeping them."""
        size = self.block_nbytes(fetch.nbytes)
        if len(fetch.parts) > 1:
            try:
                self._check_together(fetch)
            except IntegrityError:  # the file is missing or too short: which chunk lacks bytes?
                for row, chunk in fetch.parts:
                    self.check_fetch(single(row, chunk, chunk.offset, chunk.nbytes))
                raise
            return
        scratch = memoryview(bytearray(min(size, fetch.nbytes)))
        rest = (fetch.nbytes - at for at in range(0, fetch.nbytes, size))
        found = self._digest(fetch, (scratch[: min(size, left)] for left in rest))
        self.compare(*fetch.parts[0], found)

    def _check_together(self, fetch: Fetch) -> None:
        scratch = memoryview(bytearray(fetch.nbytes))
        self.read_into(fetch, scratch, fresh=False)
        for row, chunk in fetch.parts:
            at = chunk.offset - fetch.offset
            self.compare(row, chunk, self.tables.digest.of(scratch[at : at + chunk.nbytes]))

    def mapped(self, row: int, first: Chunk, nbytes: int) -> memoryview:
        """Return the stored bytes from a chunk on, without a copy where storage maps."""
        place = self.places[first.file]
        try:
            return self.backend.map(place.key, place.start + first.offset, nbytes)
        except (NotFoundError, IntegrityError) as error:
            raise self._unreadable(error, row, first) from error

    def read_into(self, fetch: Fetch, target: memoryview, *, fresh: bool = True) -> None:
        """Read a fetch; `fresh` memory was never written to."""
        if fresh and self.requests > 1:
            pages.provide(target)
        for _ in self._read_blocks(fetch, (target,)):
            pass

    def read_whole(
        self, fetch: Fetch, target: memoryview, *, fresh: bool, verify: bool
    ) -> None:
        """Read one chunk, and digest it on the way."""
        if not verify:
            self.read_into(fetch, target, fresh=fresh)
            return
        if fresh and self.requests > 1:
            pages.provide(target)
        size = self.block_nbytes(target.nbytes)
        found = self._digest(
            fetch, (target[at : at + size] for at in range(0, target.nbytes, size))
        )
        self.compare(*fetch.parts[0], found)

    def block_nbytes(self, nbytes: int) -> int:
        """How much of so many bytes to read at once: all, where each read is a request."""
        return BLOCK_NBYTES if self._blocks is not None else max(1, nbytes)

    @property
    def _blocks(self) -> BlockReads | None:
        # Asked for each chunk; `isinstance` of a protocol would take longer than a small read.
        return self.backend if hasattr(self.backend, "read_each") else None  # type: ignore[return-value]

    def _digest(self, fetch: Fetch, targets: Iterable[memoryview]) -> bytes:
        """Fill one target after the other with a fetch's bytes, and digest each while hot."""
        hasher = self.tables.digest.new()
        for data in self._read_blocks(fetch, targets):
            hasher.update(data)
        return hasher.digest()

    def _read_blocks(self, fetch: Fetch, targets: Iterable[memoryview]) -> Iterator[memoryview]:
        """Fill one target after the other with a fetch's bytes, and yield it."""
        place = self.places[fetch.file]
        at = place.start + fetch.offset
        try:
            if (blocks := self._blocks) is not None:
                yield from blocks.read_each(place.key, at, targets)
                return
            for target in targets:
                self.backend.read_into(place.key, at, target)
                at += target.nbytes
                yield target
        except (NotFoundError, IntegrityError) as error:
            raise self._unreadable(error, *fetch.parts[0]) from error

    def ensure_length(self, row: int, chunks: Sequence[Chunk], nbytes: int) -> None:
        """Before much memory is asked for: are the bytes there that shall fill it?"""
        if nbytes < (LARGE_NBYTES if self.requests == 1 else REMOTE_LARGE_NBYTES):
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
            **self.where(row, chunk),
            nbytes=chunk.nbytes,
        )

    def compare(self, row: int, chunk: Chunk, found: bytes) -> None:
        if found != chunk.digest:
            raise IntegrityError(
                f"digest mismatch after reading {chunk.nbytes} bytes",
                **self.where(row, chunk),
                expected=chunk.digest.hex(),
                found=found.hex(),
            )

    def where(self, row: int, chunk: Chunk) -> dict[str, Any]:
        place = self.places[chunk.file]
        return {
            "path": self.tables.paths[row],
            "file": place.key,
            "offset": place.start + chunk.offset,
        }


def single(row: int, chunk: Chunk, offset: int, nbytes: int) -> Fetch:
    return Fetch(file=chunk.file, offset=offset, nbytes=nbytes, parts=((row, chunk),))
