"""Free all bytes that nothing references, spent leases and old tombstones (spec §10.4).

    manifests → data → intents → manifests → delete

Every other order can delete what a save beside it has just committed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from ckptfmt._engine import catalog, uploads
from ckptfmt._engine.leases import WRITES
from ckptfmt._engine.upkeep import Upkeep
from ckptfmt.backends.base import Entry
from ckptfmt.errors import ConflictError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.records import COPY, Intent
from ckptfmt.options import FENCE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `collect` did, or would do in a dry run."""

    files: tuple[str, ...]
    nbytes: int
    intents: tuple[str, ...]  # leases removed, broken ones too, with the rows of their ranks
    uploads: tuple[str, ...]  # keys whose upload in parts was begun and never ended
    tombstones: tuple[int, ...]  # numbers whose tombstone was old enough to go
    blocked: tuple[str, ...]  # why nothing, or not everything, was collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """An object that no checkpoint needs: of a dead writer, or of one in flight."""

    key: str
    nbytes: int
    age_seconds: float  # since its last change; by two clocks, so only for people
    reason: str  # whose it is


def leftovers(at: Upkeep) -> list[Leftover]:
    """Return the leases, and the data files that no checkpoint references. Changes nothing."""
    begun = uploads.unfinished(at.backend)
    found = at.survey()
    spent = {i.save for i in found.intents if at.leases.spent(i, found.view)}
    owners = {
        i.save: f"{i.kind} of process {i.pid} on {i.host}, "
        + ("which is over" if i.save in spent else "in flight or dead")
        for i in found.intents
    }
    entries = at.backend.list(layout.INTENTS)
    names = {key: layout.parse_intent_key(key) for key in entries}
    mine = {key: name[0] for key, name in names.items() if name is not None}
    mine |= {key: layout.data_save_id(key) or "" for key in found.data.keys() - found.files}
    now = at.sources.time() / 1e6
    parts = [
        Leftover(
            key=one.key,
            nbytes=0,  # only known to the storage
            age_seconds=max(0.0, now - one.began),
            reason="parts of an upload "
            + owners.get(layout.data_save_id(one.key) or "", "of nobody in flight"),
        )
        for one in begun
    ]
    return parts + [
        Leftover(
            key=key,
            nbytes=entry.nbytes,
            age_seconds=max(0.0, now - entry.modified),
            reason=owners.get(mine[key], "of nobody in flight"),
        )
        for key, entry in sorted({**entries, **found.data}.items())
        if key in mine
    ]


def sweep(
    at: Upkeep,
    *,
    dry_run: bool = False,
    older_than_seconds: float = 0.0,
    break_lease: bool = False,
    forget: Collection[int] = (),
) -> Collected:
    """Delete all data that nothing references, spent leases, and old tombstones.

    Does nothing, and says why, while a save is in flight or a checkpoint is unreadable.

    Args:
        older_than_seconds: Leave younger data files alone, by the storage's clock.
        break_lease: Put tombstones where foreign saves in flight would land, so that they
            fail instead of blocking the sweep. For jobs known to be dead.
        forget: Damaged checkpoints to give up for good.

    Raises:
        UsageError: a number to forget is not damaged.
        BackendError: storage failed; calling again goes on where it stopped.
    """
    token = at.sources.save_id()
    clock = at.leases.clock(token)
    if dry_run:
        at = at.rehearsal(clock)
    _forget(at, forget, token)
    broken = _break_leases(at, token, clock) if break_lease else ()
    return _sweep(at, clock, older_than_seconds, broken)


def _forget(at: Upkeep, numbers: Collection[int], token: str) -> None:
    """Take exactly the names that cannot be read (spec §10.6.3)."""
    unreadable = catalog.scan(at.backend, at.memory).unreadable()
    for number in numbers:
        if not any(name[0] == number for name in unreadable):
            raise UsageError(
                "only a checkpoint that cannot be read can be forgotten", number=number
            )
    for number, revision in unreadable:
        if number in numbers:
            at.replace(number, revision, id_=None, by=token)


def _break_leases(at: Upkeep, token: str, clock: float) -> tuple[str, ...]:
    """Take the exact name each live lease aims at: the sleeper's create then fails.

    Returns the leases that are gone.
    """
    if not at.backend.capabilities.create_if_absent:
        return ()  # a create there would not fail
    gone = []
    found = at.leases.all()
    now = catalog.scan(at.backend, at.memory)
    for intent in found:
        if at.leases.spent(intent, now):
            continue
        if intent.kind not in WRITES:  # what it covers, no tombstone can take: only time helps
            made = at.leases.modified(intent.save)
            if made is not None and clock - made > FENCE_SECONDS:
                at.leases.drop(intent.save)
                gone.append(intent.save)
            continue
        # Taken already: it landed just now, or somebody else was faster.
        with contextlib.suppress(ConflictError):
            at.block(intent.number, intent.revision, by=token)
        at.leases.drop(intent.save)
        gone.append(intent.save)
    return tuple(gone)


def _way_out(at: Upkeep, intent: Intent) -> str:
    """Return how to end a lease: by hand where no tombstone could stop its job (spec §8.9)."""
    if at.backend.capabilities.create_if_absent:
        return "break its lease (--break-lease; break_lease=True)"
    return f"delete {layout.intent_key(intent.save)} yourself: no lease can be broken here"


def _sweep(at: Upkeep, clock: float, older_than: float, broken: tuple[str, ...]) -> Collected:
    begun = uploads.unfinished(at.backend)  # before the intents: their writers' are seen there
    found = at.survey()
    spent = [i for i in found.intents if at.leases.spent(i, found.view)]
    blocked = found.blocked
    blocked += [
        f"{i.kind} {i.save} of process {i.pid} on {i.host} is in flight, aiming at checkpoint"
        f" {i.number}: wait for it{', or copy again' if i.kind == COPY else ''}, or, if that"
        f" job is dead, {_way_out(at, i)}"
        for i in found.intents
        if i.kind in WRITES and i not in spent
    ]
    todo = [
        key
        for key, entry in sorted(found.data.items())
        if key not in found.files
        and layout.data_save_id(key) is not None  # else it is nobody's we know
        and clock - entry.modified >= older_than
    ]
    begun = [one for one in begun if not older_than or clock - one.began >= older_than]
    if blocked:
        todo, spent, begun = [], [], []
    for key in todo:
        at.backend.delete(key)
    at.leases.remove(spent)
    return Collected(
        files=tuple(todo),
        nbytes=sum(found.data[key].nbytes for key in todo),
        intents=(*broken, *(i.save for i in spent)),
        uploads=uploads.end(at.backend, begun, lambda key: key not in found.files),
        tombstones=_old_tombstones(at, clock),
        blocked=tuple(blocked),
    )


def _old_tombstones(at: Upkeep, clock: float) -> tuple[int, ...]:
    """Remove tombstones past the fence, below the newest live number; revisions first."""
    now = catalog.scan(at.backend, at.memory)
    top = max((row.number for row in now.live()), default=0)
    old = [
        row.number
        for row in now.all()
        if row.status == catalog.TOMBSTONE
        and row.number < top
        and _past_fence(now.entry(row.number, 0), clock)
    ]
    orphans = {n for n, _ in now.names() if not now.has(n, 0)}
    for number, revision in now.names():
        if revision and (number in old or number in orphans):
            at.backend.delete(layout.manifest_key(number, revision))
    for number in old:
        at.backend.delete(layout.manifest_key(number))
    return tuple(old)


def _past_fence(entry: Entry, clock: float) -> bool:
    return clock - entry.modified > FENCE_SECONDS
