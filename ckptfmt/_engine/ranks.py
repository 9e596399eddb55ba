"""One save by many ranks, after they have agreed on it (spec §8.7).

    data files → part → rank 0: all parts, one manifest, commit

Nothing here is collective: storage is all the ranks meet through, so that it may run in the
background. Rank 0 alone commits and gives up; the others hand in their part and watch. Whoever
fails before that says so in the place of its part. Nobody waits for news longer than the
time-out: a rank that dies costs the others that long, and nothing is committed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Final

from ckptfmt._engine import attempt
from ckptfmt._engine.leases import discard
from ckptfmt._engine.meet import Task
from ckptfmt._engine.save import Job, Saved
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import (
    BackendError,
    CancelledError,
    CheckpointError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
)
from ckptfmt.format import layout, tables
from ckptfmt.format.manifest import Manifest, decode_head
from ckptfmt.format.parts import Part
from ckptfmt.format.tables import ArrayRow, Chunk, FileRow
from ckptfmt.options import WriteOptions

_log: Final = logging.getLogger("ckptfmt")

FIRST_PAUSE_SECONDS: Final = 0.01  # between two looks at the store
MAX_PAUSE_SECONDS: Final = 1.0
_TRIES: Final = 3  # to hand in a part


def run(backend: Backend, task: Task, options: WriteOptions) -> Saved:
    """Do one rank's part of a save, and wait until it is committed.

    Raises:
        BackendError: storage failed, another rank did, or one did not answer in time; rank 0
            then knows that nothing was committed, the others say what they know.
        ConflictError: another writer took the number, or somebody broke the lease.
        CancelledError: the caller cancelled before this rank was done.
        IntegrityError: a planned chunk was not written.
    """
    job = Job(backend, task.request, options, task.own, task.first_file)
    return (_lead if task.rank == 0 else _follow)(backend, task, job, options)


def decline(backend: Backend, task: Task) -> None:
    """Tell the other ranks, while an exception is on its way, that this one does nothing."""
    if task.rank:
        _say_failed(backend, task, sys.exc_info()[1])
    else:
        discard(backend, _left(backend, task, data=True))


def _lead(backend: Backend, task: Task, job: Job, options: WriteOptions) -> Saved:
    """Write, wait for all others, commit."""
    try:
        part = _part(task, job)
        _hand_in(backend, task, part.encode())
        rows, files = _joined(task, [part, *_others(backend, task, options)])
        assert task.merged is not None
        manifest = job.manifest(
            (task.merged.structure, task.merged.probe),
            tables.build(rows, files=files, algorithm=task.digest),
            task.chunk_nbytes,
        )
        data = attempt.publish(backend, task.own, manifest, task.request, options)
    finally:
        if not task.own.sent:
            discard(backend, _left(backend, task, data=True))
    discard(backend, _left(backend, task, data=False))
    return Saved(manifest=manifest, data=data)


def _part(task: Task, job: Job) -> Part:
    """Write this rank's data files; return its rows."""
    cut = list(task.pieces)
    files, chunks = job.put(cut, task.digest)
    leaves = task.request.payload.flat.leaves
    of_leaf: dict[int, list[Chunk]] = {}
    for piece in cut:
        of_leaf.setdefault(piece.leaf, []).append(chunks[piece.leaf, piece.nth])
    return Part(
        save=task.own.save_id,
        rank=task.rank,
        world=task.world,
        digest=task.digest,
        arrays=[
            (ArrayRow(leaves[n].path, leaves[n].dtype, leaves[n].shape), own)
            for n, own in of_leaf.items()
        ],
        files=files,
    )


def _others(backend: Backend, task: Task, options: WriteOptions) -> list[Part]:
    """Wait for the parts of all other ranks."""
    found: dict[int, Part] = {}
    patience = _Patience(task, options)
    while True:
        listed = backend.list(layout.INTENTS)
        if task.intent not in listed and _gone(backend, task):
            raise ConflictError(
                "the lease of this save was broken: nothing was committed", key=task.intent
            )
        for rank in range(1, task.world):
            key = layout.intent_key(task.own.save_id, rank)
            if rank not in found and key in listed:
                found[rank] = _read(backend, key, rank, task)
        if len(found) == task.world - 1:
            return [found[rank] for rank in sorted(found)]
        if task.request.cancelled():
            raise CancelledError("save was cancelled before its commit")
        if patience.ends(len(found)):
            raise BackendError(
                "ranks have not handed in their part in time: nothing was committed",
                ranks=sorted(set(range(1, task.world)) - found.keys()),
                timeout_seconds=task.timeout_seconds,
            )


def _read(backend: Backend, key: str, rank: int, task: Task) -> Part:
    part = Part.decode(backend.read(key))
    if (part.save, part.rank, part.world) != (task.own.save_id, rank, task.world):
        raise IntegrityError("part of a rank lies under another name", key=key)
    if part.reason is not None:
        raise BackendError(
            f"rank {rank} failed, so that nothing was committed: {part.reason}", rank=rank
        )
    return part


def _joined(
    task: Task, parts: Sequence[Part]
) -> tuple[list[tuple[ArrayRow, tuple[str, ...], list[Chunk]]], list[FileRow]]:
    """Return the rows of all arrays and files, after a look at every planned box.

    Raises:
        IntegrityError: a rank wrote something else than was planned.
    """
    assert task.merged is not None
    arrays = task.merged.rows
    files: dict[str, tuple[int, FileRow]] = {}
    chunks: dict[tuple[int, int], Chunk] = {}
    for part, planned in zip(parts, task.orders, strict=True):
        want = {(arrays[p.leaf].array, p.start, p.shape): (p.leaf, p.nth) for p, _ in planned}
        have = {(array, c.start, c.shape): c for array, own in part.arrays for c in own}
        if have.keys() != want.keys() or part.digest != task.digest:
            raise IntegrityError(
                "a rank wrote something else than was planned: nothing was committed",
                rank=part.rank,
                missing=[(a.path, *box) for a, *box in want.keys() - have.keys()][:10],
                unexpected=[(a.path, *box) for a, *box in have.keys() - want.keys()][:10],
            )
        for name, chunk in have.items():
            file = part.files[chunk.file]
            at, known = files.setdefault(file.key, (len(files), file))
            if known != file:
                raise IntegrityError(
                    "two ranks disagree about a data file", key=file.key, rank=part.rank
                )
            chunks[want[name]] = chunk._replace(file=at)
    of_row: list[list[Chunk]] = [[] for _ in arrays]
    for (row, _), chunk in sorted(chunks.items()):
        of_row[row].append(chunk)
    rows = [(row.array, row.aliases, own) for row, own in zip(arrays, of_row, strict=True)]
    return rows, [file for _, file in files.values()]


def _left(backend: Backend, task: Task, *, data: bool) -> list[str]:
    """Return what the ranks have left of this save, its intent last."""
    keys: list[str] = []
    try:
        if data:
            keys += [
                key
                for key in backend.list(layout.DATA)
                if layout.data_save_id(key) == task.own.save_id
            ]
        keys += _parts(backend.list(layout.INTENTS), task)
    except BackendError as error:  # then the intent must stay: it names what is left
        _log.warning("could not clean up, the next save will: %s", error)
        return []
    return [*keys, task.intent]


def _parts(listed: dict[str, Entry], task: Task) -> list[str]:
    return [key for key in listed if key.startswith(task.intent + ".")]


# ---- the other ranks


def _follow(backend: Backend, task: Task, job: Job, options: WriteOptions) -> Saved:
    """Write, hand in the part, watch what rank 0 does."""
    handed = False
    try:
        part = _part(task, job).encode()
        if _gone(backend, task):
            raise _given_up(task)
        if task.request.cancelled():
            raise CancelledError("save was cancelled before its commit")
        handed = True  # from here on rank 0 may commit it: nothing may be removed
    finally:
        if not handed:
            discard(backend, job.keys)
            _say_failed(backend, task, sys.exc_info()[1])
    _hand_in(backend, task, part)
    return _watch(backend, task, options)


def _say_failed(backend: Backend, task: Task, error: BaseException | None) -> None:
    """Spare rank 0 the wait; it finds out by itself if this does not arrive."""
    reason = str(error) if isinstance(error, CheckpointError) else repr(error)
    part = Part(save=task.own.save_id, rank=task.rank, world=task.world, reason=reason).encode()
    try:
        if not _gone(backend, task):
            backend.create(task.part, part, durable=False)
    except (BackendError, ConflictError) as failed:
        _log.warning("could not tell rank 0 that rank %d failed: %s", task.rank, failed)


def _hand_in(backend: Backend, task: Task, part: bytes) -> None:
    """Create the part; rank 0 may commit it from then on.

    Raises:
        BackendError: storage failed again and again; whether the part landed is unknown.
    """
    # Not durable: the files are, and a power cut that takes the part takes rank 0's wait too.
    for left in reversed(range(_TRIES)):
        try:
            backend.create(task.part, part, durable=False)
        except (BackendError, ConflictError) as error:
            # A reply was lost, or a client met its own object: our bytes there settle it. When
            # nothing is there, the same bytes may be sent again.
            if _holds(backend, task.part, part):
                return
            if not left:
                raise BackendError(
                    "could not hand in the part of a rank", key=task.part
                ) from error
        else:
            return


def _holds(backend: Backend, key: str, data: bytes) -> bool:
    try:
        return backend.read(key) == data
    except (BackendError, NotFoundError):
        return False


def _watch(backend: Backend, task: Task, options: WriteOptions) -> Saved:
    """Wait for the commit of rank 0."""
    patience = _Patience(task, options)
    while True:
        if (saved := _committed(backend, task)) is not None:
            return saved
        listed = backend.list(layout.INTENTS)
        if task.intent not in listed and _gone(backend, task):
            # Committed meanwhile, or given up: the intent goes last in both.
            if (saved := _committed(backend, task)) is not None:
                return saved
            # Nothing is deleted here: shared file systems may show that the intent is gone
            # before they show the manifest, and then these files are part of a checkpoint.
            raise _given_up(task)
        if patience.ends(len(_parts(listed, task))):
            raise BackendError(
                "rank 0 has not committed in time, or another rank has not handed in its part:"
                " the outcome is unknown; open the store again and look",
                number=task.own.number,
                rank=task.rank,
                timeout_seconds=task.timeout_seconds,
            )


def _committed(backend: Backend, task: Task) -> Saved | None:
    """Return what rank 0 has committed; None as long as its number is free."""
    key = layout.manifest_key(task.own.number)
    try:
        data = backend.read(key)
    except NotFoundError:
        return None
    try:
        head = decode_head(data)
    except FormatError as error:
        raise ConflictError("something unreadable took the number", key=key) from error
    if head.summary.save == task.own.save_id:
        return Saved(manifest=Manifest.decode(data), data=data)
    if head.tombstone and head.summary.id == task.own.save_id:
        raise NotFoundError("the checkpoint was committed and deleted again", key=key)
    raise ConflictError(
        "another writer took the number of this save", key=key, by=head.summary.save
    )


def _gone(backend: Backend, task: Task) -> bool:
    """Look for the intent itself: on a shared file system a listing may be some time old."""
    try:
        backend.read(task.intent)
    except NotFoundError:
        return True
    return False


def _given_up(task: Task) -> BackendError:
    return BackendError(
        "rank 0 has given this save up, and its error says why: no commit of it is to be seen",
        number=task.own.number,
        rank=task.rank,
    )


class _Patience:
    """Looks at the store again and again, ever more seldom, as long as there is news."""

    def __init__(self, task: Task, options: WriteOptions) -> None:
        self._limit = task.timeout_seconds
        self._clock = options.sources.monotonic
        self._since = self._clock()
        self._news = 0
        self._pause = FIRST_PAUSE_SECONDS

    def ends(self, news: int) -> bool:
        """Sleep until the next look; True when there was no news for too long.

        Args:
            news: A number that changes whenever another rank has got on.
        """
        if news != self._news:
            self._news, self._since, self._pause = news, self._clock(), FIRST_PAUSE_SECONDS
        elif self._clock() - self._since > self._limit:
            return True
        time.sleep(self._pause)
        self._pause = min(1.5 * self._pause, MAX_PAUSE_SECONDS)
        return False
