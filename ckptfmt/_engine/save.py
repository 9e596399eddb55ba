"""One save, from a flat tree to a committed manifest (spec §8.2.4).

Order: read base → intent → validate the base again → data files → manifest → read back →
remove the intent. Until the manifest is created nothing is visible; after it everything is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptfmt._engine import attempt, plan, stage, write
from ckptfmt._engine.attempt import Attempt, Request
from ckptfmt._engine.catalog import Memory
from ckptfmt._engine.leases import discard
from ckptfmt._engine.lineage import sections
from ckptfmt._engine.plan import Piece
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend
from ckptfmt.format import codec, digest, layout, tables
from ckptfmt.format.features import Features
from ckptfmt.format.manifest import Artifact, Manifest, encode_metadata, encode_tree
from ckptfmt.format.summary import Summary
from ckptfmt.format.tables import Chunk, FileRow
from ckptfmt.options import WriteOptions
from ckptfmt.pause import gc_paused
from ckptfmt.tree import Leaf, Structure

_log: Final = logging.getLogger("ckptfmt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A committed checkpoint."""

    manifest: Manifest
    data: bytes  # of the manifest file


def save(backend: Backend, memory: Memory, request: Request, options: WriteOptions) -> Saved:
    """Write and commit one checkpoint.

    All or nothing. After an error before the commit was sent, the data files written so far
    and the intent are removed as well as storage allows; what cannot be removed is cleaned up
    by the next save.

    Raises:
        ConflictError: another writer took the number.
        UsageError: the store has used up its numbers.
        BackendError: storage failed; when the outcome of the commit is unknown it says so.
        CancelledError: the caller cancelled before the commit.
        IntegrityError: a planned chunk was not written.
    """
    own = attempt.begin(backend, memory, request, options)
    job = Job(backend, request, options, own)
    intent = layout.intent_key(own.save_id)
    try:
        manifest = job.run()
        data = attempt.publish(backend, own, manifest, request, options)
    finally:
        if not own.sent:
            discard(backend, [*job.keys, intent])
    discard(backend, [intent])
    return Saved(manifest=manifest, data=data)


class Job:
    """The writing part of one save: pieces → chunks → manifest."""

    def __init__(
        self,
        backend: Backend,
        request: Request,
        options: WriteOptions,
        own: Attempt,
        first_file: int = 0,
    ) -> None:
        self._backend = backend
        self._request = request
        self._options = options
        self._save_id = own.save_id
        self._number = own.number
        self._base = own.base
        self._history = own.history
        self._count = itertools.count(first_file)  # of data files
        self._done = 0
        self._known: dict[tuple[int, int], bytes] = {}  # digests taken so far, by piece
        self.keys: list[str] = []  # data files begun, for cleaning up

    def run(self) -> Manifest:
        """Write what is new and return the manifest to commit."""
        flat = self._request.payload.flat
        algorithm = self.algorithm()
        size = self.chunk_nbytes(sum(leaf.nbytes for leaf in flat.leaves))
        with gc_paused():
            cut = list(plan.pieces(flat.leaves, size))
        files, chunks = self.put(cut, algorithm)
        with gc_paused():
            rows = _tables(flat.leaves, cut, chunks, files, algorithm)
            return self.manifest((flat.structure, flat.probe), rows, size)

    def put(
        self, cut: list[Piece], algorithm: digest.Digest
    ) -> tuple[list[FileRow], dict[tuple[int, int], Chunk]]:
        """Write the pieces that are not in the base; return the files and all chunks.

        Raises:
            IntegrityError: a piece was not written.
        """
        base = self._usable(algorithm)
        leaves = self._request.payload.flat.leaves
        total = sum(map(plan.NBYTES, cut))
        files: list[FileRow] = []
        chunks: dict[tuple[int, int], Chunk] = {}
        with Threads(self._options.threads, "ckptfmt-save") as pool:
            same = self._unchanged(cut, base, algorithm, pool)
            reused = plan.worth_reusing(same, base.tables) if base else {}
            if base is not None and reused:
                _take_over(reused, base.tables.files, files, chunks)
            self._report(sum(c.nbytes for c in reused.values()), total)
            writer = write.Writer(
                backend=self._backend,
                leaves=leaves,
                digest=algorithm,
                known=self._known,
                threads=pool,
                ahead=2 * self._options.threads,
                durable=self._options.durable,
                number=self._number,
                advance=lambda nbytes: self._report(nbytes, total),
                cancelled=self._request.cancelled,
            )
            todo = [p for p in cut if (p.leaf, p.nth) not in reused] if reused else cut
            rows = itertools.count(len(files))
            for written in self._files(writer, todo, frozenset(same), rows):
                files.append(written.row)
                chunks.update(written.chunks)
        with gc_paused():
            write.check_complete(cut, chunks)
        return files, chunks

    def algorithm(self) -> digest.Digest:
        """Return the digest algorithm: the one asked for, else the parent's or the base's."""
        if self._options.digest is not None:
            return digest.chosen(self._options.digest)
        inherited = self._request.lineage.digest
        if inherited is None and self._base is not None:
            inherited = self._base.tables.digest.name
        return digest.DIGESTS[inherited or "xxh3-128"]

    def chunk_nbytes(self, total: int) -> int:
        """Return the chunk size for `total` bytes of arrays: that of the base if it fits."""
        base = self._usable(self.algorithm())
        return plan.chunk_nbytes(total, base.chunk_nbytes if base else None)

    def _usable(self, algorithm: digest.Digest) -> Manifest | None:
        """Return the base, unless its digests cannot be compared with new ones."""
        if self._base is not None and self._base.tables.digest.name == algorithm.name:
            return self._base
        return None

    def _unchanged(
        self,
        cut: list[Piece],
        base: Manifest | None,
        algorithm: digest.Digest,
        pool: Threads,
    ) -> dict[tuple[int, int], Chunk]:
        """Return the pieces whose bytes the base already holds."""
        if base is None:
            return {}
        leaves = self._request.payload.flat.leaves
        might = plan.candidates(
            leaves, cut, base.tables, number=self._number, intact=self._intact(base)
        )
        frozen, verify = self._frozen(base), self._request.payload.frozen.verify
        same = {key: chunk for key, chunk in might.items() if key[0] in frozen and not verify}
        asked = (p for p in cut if (p.leaf, p.nth) in might and (p.leaf, p.nth) not in same)
        thawed: set[str] = set()
        for batch in pool.ordered(
            lambda own: zip(own, stage.stage(leaves, own, algorithm, {}).digests, strict=True),
            stage.batches(asked),
            ahead=2 * self._options.threads,
        ):
            for piece, found in batch:
                key = piece.leaf, piece.nth
                self._known[key] = found
                if might[key].raw_digest == found:
                    same[key] = might[key]
                elif piece.leaf in frozen:
                    thawed.add(leaves[piece.leaf].path)
        if thawed:
            _log.warning(
                "%d arrays listed as frozen have changed; they are written as they are now: %s",
                len(thawed),
                ", ".join(map(repr, sorted(thawed)[:10])),
            )
        return same

    def _frozen(self, base: Manifest) -> frozenset[int]:
        """Return the leaves that need no look: the caller says that they did not change since
        the last save, and that one was made here, of this memory."""
        payload = self._request.payload
        if base.summary.id != self._request.last:
            return frozenset()
        return payload.frozen.rows(payload.flat.leaves)

    def _intact(self, base: Manifest) -> set[str]:
        """Return the data files of the base that are there in full length (spec §7.3.3)."""
        present = self._backend.list(layout.DATA)
        intact = {
            f.key
            for f in base.tables.files
            if f.key in present and present[f.key].nbytes == f.nbytes
        }
        for file in base.tables.files:
            if file.key not in intact:
                _log.warning(
                    "checkpoint %d is damaged: %s is missing or has another length; its bytes"
                    " are written again",
                    base.summary.number,
                    file.key,
                )
        return intact

    def _files(
        self,
        writer: write.Writer,
        todo: list[Piece],
        stable: frozenset[tuple[int, int]],
        rows: Iterator[int],
    ) -> Iterator[write.Written]:
        leaves = self._request.payload.flat.leaves
        with gc_paused():
            groups = plan.group(
                leaves, todo, stable=stable, max_file_nbytes=self._options.max_file_nbytes
            )
        for own in groups:
            if self._options.codec == codec.RAW:
                with gc_paused():
                    file = plan.file_plan(leaves, own, self._key(own))
                yield writer.raw(file, next(rows))
            else:
                keys = iter(lambda own=own: self._key(own), None)  # type: ignore[misc]
                yield from writer.encoded(own, self._options.codec, keys, rows)

    def _key(self, own: plan.Group) -> str:
        key = plan.file_key(self._save_id, own, next(self._count))
        self.keys.append(key)
        return key

    def _writer(self) -> Mapping[str, str]:
        process = self._request.process
        if process is None:
            return self._request.writer
        return {**self._request.writer, "process": process or self._save_id}

    def _report(self, nbytes: int, total: int) -> None:
        self._done += nbytes
        if self._request.progress is not None:
            self._request.progress("save", self._done, total)

    def manifest(
        self,
        structures: tuple[Structure, Structure | None],
        rows: tables.Tables,
        chunk_nbytes: int,
    ) -> Manifest:
        """Return the manifest of a tree and a probe whose arrays are `rows`."""
        request = self._request
        structure, probe = structures
        return Manifest(
            summary=Summary(
                number=self._number,
                revision=0,
                id=self._save_id,
                save=self._save_id,
                parent=request.lineage.parent,
                time=self._options.sources.time(),
                counters=request.payload.counters,
                metrics=request.payload.metrics,
                tags=request.payload.tags,
                sections=sections(
                    structure, zip(rows.paths, rows.sizes().tolist(), strict=True)
                ),
                writer=self._writer(),
                features=Features(read=codec.features(rows.codecs)),
            ),
            tree=encode_tree(structure),
            tables=rows,
            chunk_nbytes=chunk_nbytes,
            nodes=encode_metadata(request.payload.metadata),
            probe=None if probe is None else encode_tree(probe),
            artifacts=[
                Artifact(n, rows.digest.of(data), data) for n, data in request.payload.artifacts
            ],
            history=self._history,
        )


def _tables(
    leaves: Sequence[Leaf],
    cut: Sequence[Piece],
    chunks: Mapping[tuple[int, int], Chunk],
    files: Sequence[FileRow],
    algorithm: digest.Digest,
) -> tables.Tables:
    """Return the tables of arrays that are here as a whole.

    Args:
        cut: All their pieces, in order.
    """
    return tables.join(
        [leaf.path for leaf in leaves],
        [leaf.dtype for leaf in leaves],
        [leaf.shape for leaf in leaves],
        aliases=[(row, path) for row, leaf in enumerate(leaves) for path in leaf.aliases],
        counts=np.bincount([piece.leaf for piece in cut], minlength=len(leaves)),
        chunks=[*map(chunks.__getitem__, map(plan.PLACE, cut))],
        files=files,
        algorithm=algorithm,
    )


def _take_over(
    reused: dict[tuple[int, int], Chunk],
    old: Sequence[FileRow],
    files: list[FileRow],
    chunks: dict[tuple[int, int], Chunk],
) -> None:
    """Enter reused chunks and the files they lie in."""
    at: dict[int, int] = {}
    for key, chunk in reused.items():
        if chunk.file not in at:
            at[chunk.file] = len(files)
            files.append(old[chunk.file])
        chunks[key] = chunk._replace(file=at[chunk.file])
