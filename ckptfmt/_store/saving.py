"""The writing half of a store: one save at a time, lineage, retention, the background."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from ckptfmt._engine import meet, ranks, request, retire, save
from ckptfmt._engine.attempt import NEW, Request
from ckptfmt._engine.commit import TombstoneConflictError
from ckptfmt._engine.lineage import Lineage
from ckptfmt._engine.meet import Task
from ckptfmt._engine.request import Payload
from ckptfmt._engine.stage import Arena
from ckptfmt._engine.threads import Threads
from ckptfmt._engine.upkeep import Upkeep
from ckptfmt._store import marker
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.mirror import Mirror
from ckptfmt._store.pending import PendingSave
from ckptfmt._store.shelf import Shelf, point
from ckptfmt.errors import BackendError, ConflictError, FormatError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.manifest import Manifest
from ckptfmt.group import Group
from ckptfmt.leaves import PROBE
from ckptfmt.options import Progress, WriteOptions, expect
from ckptfmt.training import retention

_log: Final = logging.getLogger("ckptfmt")

VERSION: Final = "0.1.0"
PINNED: Final = "pinned"

# (process, store) → id of the first checkpoint that it saved there, by whatever object.
_FIRST: Final[dict[tuple[int, str], str]] = {}
_IN_MEMORY: Final = itertools.count()


class Auto:
    """Stands for: the checkpoint the run was last saved to or resumed from."""

    def __repr__(self) -> str:
        return "AUTO"


AUTO: Final = Auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One save, ready to run."""

    payload: Payload
    lineage: Lineage
    progress: Progress | None
    begins: bool = False  # the caller wants a new lineage to begin
    fills: int = 0  # how often a load had changed memory when the state was taken
    last: str | None = None  # id of what this store saved before, and nobody failed to since
    once: bool = False  # a call of its own, no step of a run that goes on in this process
    task: Task | None = None  # what this process does of a save by many ranks


class Saving:
    """The state a store keeps between saves."""

    def __init__(
        self, shelf: Shelf, options: WriteOptions, keep: retention.Keep | None
    ) -> None:
        self._shelf = shelf
        self._options = options
        self._keep = keep
        self.upkeep = Upkeep(
            backend=shelf.backend,
            memory=shelf.memory,
            sources=options.sources,
            writer=writer(),
            durable=options.durable,
        )
        self._lock = threading.RLock()
        self._pid = os.getpid()
        # A store in memory has no address of its own: there each object is a store.
        self._place = shelf.url if shelf.url != "memory:" else f"memory:{next(_IN_MEMORY)}"
        self._arena = Arena()
        self._pending: PendingSave | None = None
        self.mirror: Mirror | None = None
        self._top: int | None = None  # highest number we know of; None before the first save
        self._parent: Manifest | None = None
        self._sent: Manifest | None = None  # of a save that has not told whether it landed
        self._resumed = False  # whether the parent was loaded after the last save began
        self._fills = 0
        self._last: str | None = None  # id of the checkpoint that was saved last from here
        self._marked = False
        self._warned = False
        self._overlaps: tuple[tuple[str, str], ...] = ()  # those the user was told of

    def held(self) -> threading.RLock:
        """Return the lock under which saves and deletions follow one another."""
        if self._pid != os.getpid():  # a child: the lock and the save are the parent's
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._pending = None
            self._arena = Arena()
        return self._lock

    def settle(self) -> None:
        """Wait for the pending save; raise its failure unless somebody has seen it."""
        if self._pending is not None:
            self._pending.settle()  # Ctrl-C leaves it in flight, and the arena in use
            self._pending = None
        if self.mirror is not None:
            self.mirror.raise_unseen()

    def _look_for(self, sent: Manifest) -> None:
        """Go on from a checkpoint that landed though its save raised: Ctrl-C, a lost reply."""
        there, what = self._shelf.scan().listed(sent.summary.number), sent.summary
        if there is not None and there.summary is not None and there.summary.save == what.save:
            self._top, self._parent = what.number, self._parent if self._resumed else sent
        self._sent = None

    def finish(self) -> None:
        """Wait for the pending save and for the mirror, then apply the rules once more."""
        try:
            self.settle()
        finally:
            if self.mirror is not None:
                self.mirror.wake()
                self.mirror.settle()
                self.tidy()

    def raise_unseen(self) -> None:
        """Raise the failure of background work that has finished, if nobody has seen it."""
        if self.mirror is not None:
            self.mirror.raise_unseen()
        if self._pending is not None and self._pending.belongs_here():
            self._pending.raise_unseen()

    def release(self) -> None:
        """Give the memory of private copies back."""
        self._arena = Arena()

    def loaded(self, checkpoint: Checkpoint) -> None:
        """Remember what the run was resumed from, until the next save that begins after it."""
        self._parent, self._resumed = checkpoint.manifest, True

    def filling(self) -> None:
        """Forget what was saved last: memory is about to change, and not by the caller."""
        self._fills += 1
        self._last = None

    def _taken(self) -> str | None:
        """Return what was saved last, once: a save that fails leaves nobody who knows."""
        last, self._last = self._last, None
        return last

    def lineage(self, parent: Checkpoint | Auto | None) -> Lineage:
        """Return the lineage of the save that begins."""
        if self._sent is not None:
            self._look_for(self._sent)
        self._resumed = False
        if isinstance(parent, Auto):
            return Lineage.after(self._parent)
        expect("parent", parent, Checkpoint, type(None))
        return Lineage.after(None if parent is None else parent.manifest)

    def prepare(
        self,
        payload: Callable[[bool], Payload],
        parent: Checkpoint | Auto | None,
        progress: Progress | None,
        group: Group | None,
        timeout_seconds: float,
    ) -> Job:
        """Settle the save before, check what is to be saved, agree on it with all ranks.

        Args:
            payload: Checks what the caller gave; told whether arrays may be parts.
        """
        if group is None:
            self.settle()
            last = self._taken()
            return self._job(payload(False), parent, progress, last)
        first = group.rank == 0
        last = None

        def ask() -> Request:
            nonlocal last
            self.settle()
            last = self._taken()
            if first:
                self._mark()
            return self._request(self._job(payload(True), parent, progress, last))

        task = meet.meet(
            self._shelf.backend,
            self._shelf.memory,
            ask,
            self._options,
            group=group,
            timeout_seconds=timeout_seconds,
        )
        return replace(self._job(task.request.payload, parent, progress, last), task=task)

    def _job(
        self,
        payload: Payload,
        parent: Checkpoint | Auto | None,
        progress: Progress | None,
        last: str | None,
    ) -> Job:
        return Job(
            payload=payload,
            lineage=self.lineage(parent),
            progress=progress,
            begins=parent is None,
            last=last,
            fills=self._fills,
        )

    def _request(self, job: Job, cancelled: Callable[[], bool] = lambda: False) -> Request:
        return Request(
            payload=job.payload,
            lineage=job.lineage,
            writer=writer(),
            expected_top=self._top,
            above=0 if self.mirror is None else self.mirror.top,
            last=job.last,
            process=None if job.once else _FIRST.get((os.getpid(), self._place), NEW),
            late=self._shelf.notes.all,
            progress=job.progress,
            cancelled=cancelled,
            sending=functools.partial(setattr, self, "_sent"),
        )

    def run(self, job: Job, cancelled: Callable[[], bool] = lambda: False) -> Checkpoint:
        """Commit one checkpoint, then apply the retention rules."""
        self._tell_overlaps(job.payload.flat.overlaps)
        what = self._request(job, cancelled)
        if job.task is None:
            self._mark()
            saved = self._save(what)
        else:
            task = replace(job.task, request=what)
            saved = ranks.run(self._shelf.backend, task, self._options)
        self._sent, self._top = None, saved.manifest.summary.number
        if not self._resumed:
            self._parent = saved.manifest
        if job.fills == self._fills:  # else a load came while this one was saved
            self._last = saved.manifest.summary.id
        if (process := saved.manifest.summary.writer.get("process")) is not None:
            _FIRST[os.getpid(), self._place] = process
        self._tell_lineage(job, saved.manifest)
        self._warn_of_limits()
        if job.task is None or job.task.rank == 0:
            if self.mirror is not None:
                self.mirror.wake()
            self.tidy()
        return self._shelf.committed(saved.data, saved.manifest)

    def _save(self, what: Request) -> save.Saved:
        backend, memory = self._shelf.backend, self._shelf.memory
        try:
            return save.save(backend, memory, what, self._options)
        except TombstoneConflictError:
            # Somebody broke the lease, thinking this job dead: once more, under a new save id.
            return save.save(backend, memory, what, self._options)

    def _warn_of_limits(self) -> None:
        """Say once what this backend cannot promise; some learn it from what they store."""
        if not self._warned:
            self._warned = True
            marker.warn_of_limits(self._shelf.backend)

    def _tell_lineage(self, job: Job, saved: Manifest) -> None:
        """Say once that this run does not continue what the store holds, unless that is meant.

        A forgotten load looks like success: only `best`, `at` and `history` tell, much later.
        Of many ranks the first one knows, whose parent it is.
        """
        meant = job.begins or job.once or (job.task is not None and job.task.rank != 0)
        number = saved.summary.number
        if meant or saved.summary.parent is not None or not self._holds_earlier(number):
            return
        _log.warning(
            "checkpoint %d of %s begins a new lineage, since none of the earlier ones was"
            " loaded whole through this store: `best`, `at` and `history` leave those out"
            " unless lineage='all'; load the checkpoint that the run goes on from, or pass"
            " parent=checkpoint, or parent=None to say that a new run is meant",
            number,
            self._shelf.url,
        )

    def _holds_earlier(self, number: int) -> bool:
        try:
            return number > 1 and any(one.number < number for one in self._shelf.all())
        except (BackendError, FormatError, NotFoundError) as error:  # the commit stands
            _log.debug("could not look for checkpoints before %d: %s", number, error)
            return False

    def _tell_overlaps(self, found: tuple[tuple[str, str], ...]) -> None:
        """Report arrays that share memory without being tied: they come back apart."""
        if found and found != self._overlaps:
            self._overlaps = found
            _log.warning(
                "%s some memory without being the same array; they are stored and come back"
                " separately: %s",
                f"{len(found)} pairs of arrays share" if len(found) > 1 else "two arrays share",
                ", ".join(f"{a!r} and {b!r}" for a, b in found[:3]),
            )

    def begin(self, job: Job) -> PendingSave:
        """Make the private copy and start the save in the background."""
        private = None
        try:
            with Threads(self._options.threads, "ckptfmt-stage") as threads:
                private = self._arena.copy(job.payload.flat.leaves, threads)
        finally:
            if private is None and job.task is not None:  # no memory: others wait for us
                ranks.decline(self._shelf.backend, job.task)
        copied = replace(job, payload=request.with_leaves(job.payload, private))
        self._pending = PendingSave(lambda cancelled: self.run(copied, cancelled))
        self._pending.start()
        return self._pending

    def tidy(self) -> None:
        """Apply the rules, and clean up after crashed saves; the commit stands in any case."""
        try:
            victims, slim = (set(), {}) if self._keep is None else self._victims(self._keep)
            if victims or slim or self._shelf.backend.list(layout.INTENTS):
                retire.retire(self.upkeep, victims, slim=slim, skip_pinned=True)
        except (BackendError, ConflictError, FormatError, NotFoundError) as error:
            _log.warning("retention will be tried again after the next save: %s", error)

    def retain(self, rules: retention.Keep, *, dry_run: bool) -> retire.Deleted:
        """Apply rules now; see `Store.retain`."""
        victims, slim = self._victims(rules)
        return retire.retire(self.upkeep, victims, slim=slim, dry_run=dry_run, skip_pinned=True)

    def _victims(self, rules: retention.Keep) -> tuple[set[int], dict[int, list[str]]]:
        """Return the numbers that no rule wants, and what others lose.

        Nothing while a checkpoint cannot be read: it may be one of those that would stay, and
        no data could go.
        """
        present = {checkpoint.number: checkpoint for checkpoint in self._shelf.own()}
        points = [point(checkpoint) for checkpoint in present.values()]
        held = self._shelf.notes.pinned()
        pinned = {c.number for c in present.values() if c.id in held or PINNED in c.tags}
        victims = present.keys() - retention.survivors(points, rules, pinned)
        slim = self._slim(present, retention.lighter(points, rules, pinned) - victims, rules)
        if not victims and not slim:
            return set(), {}
        if unreadable := self._shelf.scan().unreadable():
            _log.warning(
                "no checkpoint is deleted or slimmed while one cannot be read: give up the"
                " damaged one with `ckptfmt collect --forget` (%s)",
                next(iter(unreadable.values())),
            )
            return set(), {}
        tips = retention.tips(points, lambda n: [a.id for a in present[n].history])
        slim = {n: drop for n, drop in slim.items() if n not in tips}
        return self._mirrored(victims - tips), {n: slim[n] for n in self._mirrored(slim)}

    def _mirrored(self, numbers: Iterable[int]) -> set[int]:
        """Return the numbers that may lose something here: with a mirror, what it has."""
        return set(numbers) if self.mirror is None else self.mirror.safe(numbers)

    def _slim(
        self, present: Mapping[int, Checkpoint], numbers: Iterable[int], rules: retention.Keep
    ) -> dict[int, list[str]]:
        """Return the sections that checkpoints still have and are to lose."""
        slim = {}
        for number in numbers:
            names = [s.name for s in present[number].sections if s.name != PROBE]
            drop = [name for name in names if name in rules.slim]
            if 0 < len(drop) < len(names):  # something must stay
                slim[number] = drop
        return slim

    def check_marker(self) -> None:
        """Refuse a folder that is something else, or a store of another format version."""
        self._marked = marker.check(self._shelf.backend)

    def _mark(self) -> None:
        """Leave the marker."""
        if not self._marked:
            marker.leave(self._shelf.backend, durable=self._options.durable)
            self._marked = True


def writer() -> Mapping[str, str]:
    """Return what manifests say of this program."""
    return {"name": "ckptfmt", "version": VERSION, "python": platform.python_version()}
