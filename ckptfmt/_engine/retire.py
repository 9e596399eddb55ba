"""Delete and slim checkpoints, then free the data that only they referenced (spec §10.3).

    tombstones, revisions → manifests → intents → manifests → data

Safe beside writers, readers and other deletions, at a crash on any line; the order of the
listings is what makes it so, and is checked by the model in the test tree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ckptfmt._engine import catalog, revise, uploads
from ckptfmt._engine.catalog import Catalog
from ckptfmt._engine.leases import pins
from ckptfmt._engine.notes import Notes
from ckptfmt._engine.upkeep import Upkeep
from ckptfmt.errors import ConflictError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.records import COPY
from ckptfmt.options import FENCE_SECONDS

_NOTHING: Final[Mapping[int, Collection[str]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What a deletion did, or would do in a dry run."""

    numbers: tuple[int, ...]  # checkpoints that are gone
    slimmed: tuple[int, ...]  # checkpoints that lost sections
    files: tuple[str, ...]  # data files that nobody references any more
    nbytes: int  # of those files
    blocked: tuple[str, ...]  # why files stayed that might have gone


def retire(
    at: Upkeep,
    numbers: Collection[int],
    *,
    slim: Mapping[int, Collection[str]] = _NOTHING,
    dry_run: bool = False,
    skip_pinned: bool = False,
) -> Deleted:
    """Delete checkpoints, drop sections of others, then free the data that only they held.

    Also removes what crashed saves and deletions left behind, as far as it is certain that
    they cannot go on any more: a restarted job cleans up after itself.

    Args:
        slim: From the number of another checkpoint to the sections that it loses.
        dry_run: Only tell what would go.
        skip_pinned: Leave pinned checkpoints instead of refusing.

    Raises:
        NotFoundError: no such checkpoint or section.
        UsageError: a number is damaged, or pinned; or nothing would be left of it.
        UnsupportedError: a checkpoint needs a newer release to be deleted or revised.
        ConflictError: a checkpoint to slim was deleted or revised meanwhile.
        BackendError: storage failed; calling again goes on where it stopped.
    """
    if dry_run:
        at = at.rehearsal(at.sources.time() / 1e6)
    began = at.sources.monotonic()
    now = catalog.scan(at.backend, at.memory)
    _candidates(now, numbers)  # refuses what may not be deleted, before any change
    plans = [revise.plan(at, now, number, slim[number]) for number in sorted(slim)]
    revisions = [plan for plan in plans if plan is not None]
    buried = _bury(at, now, numbers, began, skip_pinned=skip_pinned)
    revisions = [
        r for r in revisions if revise.revise(at, r, began=began, skip_pinned=skip_pinned)
    ]
    candidates = _candidates(now, buried).union(*(r.freed for r in revisions))
    files, blocked = _free(at, candidates)
    return Deleted(
        numbers=tuple(buried),
        slimmed=tuple(r.row.number for r in revisions),
        files=tuple(files),
        nbytes=sum(files.values()),
        blocked=tuple(blocked),
    )


def _bury(
    at: Upkeep,
    now: Catalog,
    numbers: Collection[int],
    began: float,
    *,
    skip_pinned: bool,
) -> list[int]:
    """Put tombstones in the place of checkpoints; return the numbers, pinned ones left out."""
    if not numbers:
        return []
    token = at.sources.save_id()
    at.leases.retention(token, numbers)
    try:
        free = _unpinned(at, now, numbers, skip_pinned=skip_pinned)
        for number in free:
            if at.sources.monotonic() - began > FENCE_SECONDS / 2:
                raise ConflictError("deletion took too long to be safe: start it again")
            row = now.listed(number)
            id_ = row.summary.id if row is not None and row.summary is not None else None
            at.replace(number, 0, id_=id_, by=token)
    finally:
        at.leases.drop(token)
    return free


def _free(at: Upkeep, candidates: set[str]) -> tuple[dict[str, int], list[str]]:
    """Delete what nothing references of `candidates`, and of what spent leases cover.

    Returns:
        The files with their lengths, and why others stayed that might have gone.
    """
    found = at.survey()
    spent = [i for i in found.intents if at.leases.spent(i, found.view)]
    dead = {i.save for i in spent if not at.leases.landed(i, found.view)}
    candidates |= {key for key in found.data if layout.data_save_id(key) in dead}
    candidates |= {key for i in spent if i.kind == COPY for key in i.reuse}
    pinned = pins([i for i in found.intents if i not in spent], found.data)
    todo = sorted((candidates & found.data.keys()) - found.files - pinned)
    if found.blocked:
        todo, spent, dead = [], [], set()
    for key in todo:
        at.backend.delete(key)
    if dead:
        uploads.end(
            at.backend,
            uploads.unfinished(at.backend),
            lambda key: layout.data_save_id(key) in dead and key not in found.files,
        )
    at.leases.remove(spent)
    return {key: found.data[key].nbytes for key in todo}, found.blocked


def _candidates(now: Catalog, numbers: Collection[int]) -> set[str]:
    """Return the files of checkpoints about to be deleted; refuse what may not be."""
    files: set[str] = set()
    for number in numbers:
        row = now.listed(number)
        if row is None or row.status == catalog.TOMBSTONE:
            what = "no such checkpoint" if row is None else "checkpoint was deleted"
            raise NotFoundError(what, number=number, url=now.url)
        if row.status == catalog.DAMAGED:
            raise UsageError(
                "a damaged checkpoint is not deleted by number, since what it references is"
                " unknown: give it up with `ckptfmt collect --forget`",
                number=number,
                reason=row.reason,
            )
        manifest = now.manifest(row)
        manifest.summary.features.require("delete", number=number)
        files.update(f.key for f in manifest.tables.files)
    return files


def _unpinned(
    at: Upkeep, now: Catalog, numbers: Collection[int], *, skip_pinned: bool
) -> list[int]:
    """Look for pins after the intent is published: a pinner that came first is seen here,
    one that comes later sees the intent (spec §8.8)."""
    held = Notes(at.backend).holds()
    free = []
    for number in sorted(numbers):
        row = now.listed(number)
        if row is None or not held(now.manifest(row).summary):
            free.append(number)
        elif not skip_pinned:
            raise UsageError(
                "checkpoint is pinned: remove its tag 'pinned' first", number=number
            )
    return free
