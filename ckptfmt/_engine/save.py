"""One save, from a flat tree to a committed manifest (spec §8.2.4).

Order: read base → intent → validate the base again → data files → manifest → read back →
remove the intent. Until the manifest is created nothing is visible; after it everything is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ckptfmt._engine import catalog, plan, stage, write
from ckptfmt._engine.catalog import Listed, Memory
from ckptfmt._engine.commit import commit
from ckptfmt._engine.leases import Leases
from ckptfmt._engine.lineage import Lineage, sections
from ckptfmt._engine.plan import Piece
from ckptfmt._engine.request import Payload
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend
from ckptfmt.errors import (
    BackendError,
    CancelledError,
    CheckpointError,
    ConflictError,
    UsageError,
)
from ckptfmt.format import codec, digest, layout, tables
from ckptfmt.format.manifest import Artifact, Manifest, encode_metadata
from ckptfmt.format.summary import Summary
from ckptfmt.format.tables import ArrayRow, Chunk, FileRow
from ckptfmt.format.values import encode
from ckptfmt.options import FENCE_SECONDS, WriteOptions
from ckptfmt.pause import gc_paused
from ckptfmt.tree import Leaf

_log: Final = logging.getLogger("ckptfmt")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to save, and after what."""

    payload: Payload
    lineage: Lineage  # what it continues
    writer: Mapping[str, str]
    expected_top: int | None  # highest number the caller knows of; None: any
    progress: Progress | None = None
    cancelled: Callable[[], bool] = lambda: False


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
    began = options.sources.monotonic()
    before = catalog.scan(backend, memory)
    _check_alone(before, request.expected_top)
    base = _base(before, request.lineage.parent)
    save_id = options.sources.save_id()
    number = before.top + 1
    if number > layout.MAX_NUMBER:
        raise UsageError("no number is left in this store: begin a new one", highest=before.top)
    leases = Leases(backend=backend, sources=options.sources)
    job = _Job(backend, request, options, save_id, number)
    sent = False
    try:
        leases.save(
            save_id,
            number=number,
            base=None if base is None else (base[0].number, base[0].revision),
            reuse=() if base is None else [f.key for f in base[1].tables.files],
        )
        if base is not None and not _still(catalog.scan(backend, memory), base[0]):
            base = None  # deleted or revised since: its files may go any moment
        manifest = job.run(None if base is None else base[1])
        with gc_paused():
            data = manifest.encode()
        age = options.sources.monotonic() - began
        if age > FENCE_SECONDS / 2:
            raise ConflictError(
                "save took so long that its number may have been given up: save again",
                seconds=int(age),
                expected=FENCE_SECONDS // 2,
            )
        if request.cancelled():
            raise CancelledError("save was cancelled before its commit", number=number)
        sent = True
        key = layout.manifest_key(number)
        commit(backend, key, data, save_id=save_id, durable=options.durable)
    finally:
        if not sent:
            _discard(backend, [*job.keys, layout.intent_key(save_id)])
    _discard(backend, [layout.intent_key(save_id)])
    return Saved(manifest=manifest, data=data)


def _check_alone(now: catalog.Catalog, expected_top: int | None) -> None:
    """Find out a second writer in the same store by numbers that nobody here has written."""
    if expected_top is None:
        return
    for number in range(now.top, expected_top, -1):
        row = now.listed(number)
        if row is not None and row.status != catalog.TOMBSTONE:
            raise ConflictError(
                "another writer committed to this store: two jobs share one folder, or this"
                " process opened it twice; reload the newest checkpoint, then save again",
                number=number,
                by=row.summary.save if row.summary else None,
                expected=expected_top,
            )


def _base(
    now: catalog.Catalog, parent: tuple[int, str] | None
) -> tuple[Listed, Manifest] | None:
    """Return the checkpoint whose unchanged chunks may be referenced: the parent if it lives,
    else the newest loadable one."""
    rows = list(reversed(now.live()))
    if parent is not None:
        rows.sort(key=lambda row: row.summary is None or row.summary.id != parent[1])
    for row in rows:
        try:
            manifest = now.manifest(row)
            manifest.summary.features.require("write", number=row.number)
        except CheckpointError as error:
            _log.debug("checkpoint %d is no base for reuse: %s", row.number, error)
            continue
        return row, manifest
    return None


def _still(now: catalog.Catalog, row: Listed) -> bool:
    again = now.listed(row.number)
    return (
        again is not None
        and again.status == catalog.OK
        and again.revision == row.revision
        and again.head == row.head
    )


def _discard(backend: Backend, keys: Sequence[str]) -> None:
    """Remove what nobody references; a refusal is left to the next retention, and said."""
    for key in keys:
        try:
            backend.delete(key)
        except BackendError as error:
            _log.warning("could not remove %s, the next save will: %s", key, error)


class _Job:
    """The writing part of one save: pieces → chunks → manifest."""

    def __init__(
        self,
        backend: Backend,
        request: Request,
        options: WriteOptions,
        save_id: str,
        number: int,
    ) -> None:
        self._backend = backend
        self._request = request
        self._options = options
        self._save_id = save_id
        self._number = number
        self._done = 0
        self._known: dict[tuple[int, int], bytes] = {}  # digests taken so far, by piece
        self.keys: list[str] = []  # data files begun, for cleaning up

    def run(self, base: Manifest | None) -> Manifest:
        """Write what is new and return the manifest to commit."""
        request, leaves = self._request, self._request.payload.flat.leaves
        algorithm = self._algorithm(base)
        if base is not None and base.tables.digest.name != algorithm.name:
            base = None  # digests of two algorithms cannot be compared
        total = sum(leaf.array.nbytes for leaf in leaves)
        size = plan.chunk_nbytes(total, base.chunk_nbytes if base else None)
        with gc_paused():
            cut = list(plan.pieces(leaves, size))
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
                cancelled=request.cancelled,
            )
            todo = [p for p in cut if (p.leaf, p.nth) not in reused]
            for written in self._files(writer, todo, frozenset(same)):
                at = len(files)
                files.append(written.row)
                for key, chunk in written.chunks.items():
                    chunks[key] = chunk._replace(file=at)
        with gc_paused():
            write.check_complete(cut, chunks)
            return self._manifest(size, cut, chunks, files, algorithm)

    def _algorithm(self, base: Manifest | None) -> digest.Digest:
        if self._options.digest is not None:
            return digest.chosen(self._options.digest)
        inherited = self._request.lineage.digest
        if inherited is None and base is not None:
            inherited = base.tables.digest.name
        return digest.DIGESTS[inherited or "xxh3-128"]

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
        asked = (p for p in cut if (p.leaf, p.nth) in might)
        same: dict[tuple[int, int], Chunk] = {}
        for batch in pool.ordered(
            lambda own: [(s.piece, s.digest) for s in stage.stage(leaves, own, algorithm, {})],
            stage.batches(asked),
            ahead=2 * self._options.threads,
        ):
            for piece, found in batch:
                key = piece.leaf, piece.nth
                self._known[key] = found
                if might[key].raw_digest == found:
                    same[key] = might[key]
        return same

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
        self, writer: write.Writer, todo: list[Piece], stable: frozenset[tuple[int, int]]
    ) -> Iterator[write.Written]:
        leaves = self._request.payload.flat.leaves
        count = itertools.count()
        with gc_paused():
            groups = plan.group(
                leaves, todo, stable=stable, max_file_nbytes=self._options.max_file_nbytes
            )
        for own in groups:
            if self._options.codec == codec.RAW:
                with gc_paused():
                    file = plan.file_plan(leaves, own, self._key(own, count))
                yield writer.raw(file)
            else:
                keys = iter(lambda own=own: self._key(own, count), None)  # type: ignore[misc]
                yield from writer.encoded(own, self._options.codec, keys)

    def _key(self, own: plan.Group, count: Iterator[int]) -> str:
        key = plan.file_key(self._save_id, own, next(count))
        self.keys.append(key)
        return key

    def _report(self, nbytes: int, total: int) -> None:
        self._done += nbytes
        if self._request.progress is not None:
            self._request.progress("save", self._done, total)

    def _manifest(
        self,
        size: int,
        cut: list[Piece],
        chunks: dict[tuple[int, int], Chunk],
        files: list[FileRow],
        algorithm: digest.Digest,
    ) -> Manifest:
        request, leaves = self._request, self._request.payload.flat.leaves
        of_leaf: dict[int, list[Chunk]] = {}
        for piece in cut:
            of_leaf.setdefault(piece.leaf, []).append(chunks[piece.leaf, piece.nth])
        return Manifest(
            summary=Summary(
                number=self._number,
                revision=0,
                id=self._save_id,
                save=self._save_id,
                parent=request.lineage.parent,
                time=self._options.sources.now(),
                counters=request.payload.counters,
                metrics=request.payload.metrics,
                tags=request.payload.tags,
                sections=sections(request.payload.flat),
                writer=request.writer,
            ),
            tree=encode(request.payload.flat.structure),
            tables=tables.build(
                (
                    (_array(leaf), leaf.aliases, of_leaf.get(n, []))
                    for n, leaf in enumerate(leaves)
                ),
                files=files,
                algorithm=algorithm,
            ),
            chunk_nbytes=size,
            nodes=encode_metadata(request.payload.metadata),
            artifacts=[
                Artifact(n, algorithm.of(data), data) for n, data in request.payload.artifacts
            ],
            history=request.lineage.history,
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


def _array(leaf: Leaf) -> ArrayRow:
    return ArrayRow(path=leaf.path, dtype=leaf.dtype, shape=leaf.array.shape)
