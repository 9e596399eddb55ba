"""Planned pieces → data files → chunks. A file is durable when its function returns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckptfmt._engine import plan, stage
from ckptfmt._engine.plan import FilePlan, Group, Piece
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend, Buffer
from ckptfmt.errors import CancelledError, IntegrityError
from ckptfmt.format import codec, datafile
from ckptfmt.format.digest import Digest
from ckptfmt.format.rows import Chunk, FileRow, chunks_of
from ckptfmt.tree import Leaf

ENCODED_FILE_NBYTES: Final = 64 * 2**20  # an encoded file is assembled in memory up to here


class Written(NamedTuple):
    """One finished data file and the chunks in it."""

    row: FileRow
    chunks: dict[tuple[int, int], Chunk]  # by (leaf, chunk index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """What all files of one save share."""

    backend: Backend
    leaves: Sequence[Leaf]
    digest: Digest
    known: Mapping[tuple[int, int], bytes]  # digests of this save's pieces taken before
    threads: Threads
    ahead: int  # batches in flight beside the one being written
    durable: bool
    number: int  # checkpoint being written
    advance: Callable[[int], None]  # told the decoded bytes that were handed over
    cancelled: Callable[[], bool]

    def raw(self, file: FilePlan, row: int) -> Written:
        """Write one file of raw pieces, digesting ahead of the disk.

        Args:
            row: The file's place in the file table.

        Raises:
            BackendError: storage failed.
            CancelledError: the caller cancelled meanwhile.
        """
        chunks: dict[tuple[int, int], Chunk] = {}
        blocks = self._blocks(file, row, chunks)
        self.backend.write(file.key, blocks, nbytes=file.nbytes, durable=self.durable)
        return Written(self._row(file.key, file.nbytes, file.header), chunks)

    def _blocks(
        self, file: FilePlan, row: int, chunks: dict[tuple[int, int], Chunk]
    ) -> Iterator[Buffer]:
        yield file.header
        offset = 0
        staged = self.threads.ordered(
            lambda own: stage.stage(self.leaves, own, self.digest, self.known),
            stage.batches(file.pieces),
            ahead=self.ahead,
        )
        for batch in staged:
            if self.cancelled():
                raise CancelledError("save was cancelled before its commit", key=file.key)
            leaf, nth, start, shape, nbytes = zip(*batch.pieces, strict=True)
            *offsets, end = itertools.accumulate(nbytes, initial=offset)
            digests = batch.digests
            files, codecs = itertools.repeat(row), itertools.repeat(codec.RAW)  # without end
            fields = zip(files, offsets, nbytes, codecs, digests, digests, start, shape)  # noqa: B905
            chunks.update(zip(zip(leaf, nth, strict=True), chunks_of(fields), strict=True))
            yield from batch.data
            self.advance(end - offset)
            offset = end

    def encoded(
        self, own: Group, name: str, keys: Iterator[str], rows: Iterator[int]
    ) -> Iterator[Written]:
        """Write one group under codec `name`, in files assembled within a byte budget.

        A chunk that does not become smaller stays raw. With "auto" each chunk has the codec
        that suits a sample of it.

        Args:
            keys: A name for each file.
            rows: A place in the file table for each file.
        """
        batch: list[_Encoded] = []
        nbytes = 0
        encoded = self.threads.ordered(
            lambda piece: self._encode(piece, name), own.pieces, ahead=self.ahead
        )
        for item in encoded:
            if self.cancelled():
                raise CancelledError("save was cancelled before its commit")
            batch.append(item)
            nbytes += len(item.data)
            if nbytes >= ENCODED_FILE_NBYTES:
                yield self._assemble(own, batch, next(keys), next(rows))
                batch, nbytes = [], 0
        if batch:
            yield self._assemble(own, batch, next(keys), next(rows))

    def _encode(self, piece: Piece, name: str) -> _Encoded:
        leaf = self.leaves[piece.leaf]
        width, data = leaf.dtype.itemsize, stage.piece_bytes(leaf, piece)
        raw_digest = self.known.get((piece.leaf, piece.nth)) or self.digest.of(data)
        if name == codec.AUTO:
            name = codec.suited(data, width=width)
        stored = codec.encode(name, data, width=width)
        if len(stored) < len(data):
            return _Encoded(piece, stored, name, self.digest.of(stored), raw_digest)
        return _Encoded(piece, data, codec.RAW, raw_digest, raw_digest)

    def _assemble(self, own: Group, batch: list[_Encoded], key: str, row: int) -> Written:
        names = plan.EntryNames()
        entries: list[datafile.Entry] = []
        chunks: dict[tuple[int, int], Chunk] = {}
        offset = 0
        # Encoded chunks have no alignment: they go last, so that the raw ones keep theirs.
        batch.sort(key=lambda e: e.codec != codec.RAW)
        for item in batch:
            leaf, size = self.leaves[item.piece.leaf], len(item.data)
            natural = plan.natural_name(leaf.path, full=own.shared)
            whole = plan.is_raw(item.codec) and size == leaf.nbytes and leaf.dtype.natural
            entries.append(
                datafile.Entry(
                    name=names.whole(natural) if whole else names.part(natural, item.piece.nth),
                    dtype=leaf.dtype.name if whole else "U8",
                    shape=leaf.shape if whole else (size,),
                    offset=offset,
                    nbytes=size,
                )
            )
            chunks[item.piece.leaf, item.piece.nth] = Chunk(
                row, offset, size, item.codec, item.digest, item.raw_digest,
                item.piece.start, item.piece.shape,
            )  # fmt: skip
            offset += size
        header = datafile.build(entries)
        nbytes = len(header) + offset
        blocks = [header, *(item.data for item in batch)]
        self.backend.write(key, blocks, nbytes=nbytes, durable=self.durable)
        self.advance(sum(item.piece.nbytes for item in batch))
        return Written(self._row(key, nbytes, header), chunks)

    def _row(self, key: str, nbytes: int, header: bytes) -> FileRow:
        return FileRow(key, nbytes, len(header) - 8, self.digest.of(header), self.number)


class _Encoded(NamedTuple):
    piece: Piece
    data: Buffer
    codec: str
    digest: bytes
    raw_digest: bytes


def check_complete(cut: Sequence[Piece], chunks: dict[tuple[int, int], Chunk]) -> None:
    """Refuse to go on unless every planned piece became exactly one chunk.

    A write that a thread lost can then never be committed (a peer's bug: a full disk in one
    writer thread left half of the tensors out of a checkpoint that looked fine).

    Raises:
        IntegrityError: naming the first piece that is missing.
    """
    for piece in cut:
        chunk = chunks.get((piece.leaf, piece.nth))
        if chunk is None or (chunk.start, chunk.shape) != (piece.start, piece.shape):
            raise IntegrityError(
                "a planned chunk was not written: nothing was committed",
                expected=piece,
                found=chunk,
            )
    if len(chunks) != len(cut):
        raise IntegrityError(
            "more chunks written than planned", expected=len(cut), found=len(chunks)
        )
