"""Delete checkpoints, and free the bytes nobody references (spec §10).

Two procedures, both safe beside writers, readers and each other, at a crash on any line; the
order of their listings is what makes them so and is checked by the model in the test tree:

    retire   tombstones → manifests → intents → manifests → data      after a commit, and delete
    sweep    manifests → data → intents → manifests → delete          `collect`
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Catalog, Memory
from ckptfmt._engine.notes import PINNED, Notes
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import ConflictError, FormatError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.manifest import encode_tombstone
from ckptfmt.format.records import RETENTION, SAVE, Intent
from ckptfmt.format.summary import Summary
from ckptfmt.options import FENCE_SECONDS, Sources

_log: Final = logging.getLogger("ckptfmt")

_UNREADABLE: Final = "unreadable"  # kind of a lease that cannot be parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What a deletion did, or would do in a dry run."""

    numbers: tuple[int, ...]  # checkpoints that are gone
    files: tuple[str, ...]  # data files that nobody references any more
    nbytes: int  # of those files
    blocked: tuple[str, ...]  # why files stayed that might have gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `collect` did, or would do in a dry run."""

    files: tuple[str, ...]
    nbytes: int
    intents: tuple[str, ...]  # leases removed, with the rows of their ranks
    tombstones: tuple[int, ...]  # numbers whose tombstone was old enough to go
    blocked: tuple[str, ...]  # why nothing, or not everything, was collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """What the procedures share."""

    backend: Backend
    memory: Memory
    sources: Sources
    writer: dict[str, str]
    durable: bool = True

    def retire(
        self, numbers: Collection[int], *, dry_run: bool = False, skip_pinned: bool = False
    ) -> Deleted:
        """Delete checkpoints, then the data that only they referenced.

        Also removes what crashed saves left behind, as far as it is certain that they cannot
        land any more: a restarted job cleans up after itself.

        Args:
            dry_run: Only tell what would go.
            skip_pinned: Leave pinned checkpoints instead of refusing.

        Raises:
            UsageError: a number is damaged, or pinned.
            UnsupportedError: a checkpoint needs a newer release to be deleted.
            BackendError: storage failed; calling again goes on where it stopped.
        """
        began = self.sources.monotonic()
        now = catalog.scan(self.backend, self.memory)
        self._candidates(now, numbers)  # refuses what may not be deleted, before any change
        token = self.sources.save_id()
        announced = bool(numbers) and not dry_run
        if announced:
            self._announce(token, numbers)
        try:
            numbers = self._unpinned(now, numbers, skip_pinned=skip_pinned)
            candidates = self._candidates(now, numbers)
            if not dry_run:
                for number in numbers:
                    self._bury(now, number, token, began)
        finally:
            if announced:
                self.backend.delete(layout.intent_key(token))
        first = catalog.scan(self.backend, self.memory) if not dry_run else now
        intents = self._intents()
        last = catalog.scan(self.backend, self.memory) if not dry_run else now
        hidden = frozenset(numbers) if dry_run else frozenset()
        refs, blocked = self._references((first, last), hidden)
        blocked += _unreadable(intents)
        spent = [i for i in intents if i.kind == SAVE and self._spent(i, last)]
        data = self.backend.list(layout.DATA) if candidates or spent else {}
        dead = {i.save for i in spent if not self._landed(i, last)}
        candidates |= {key for key in data if layout.data_save_id(key) in dead}
        pins = self._pins([i for i in intents if i not in spent], data)
        todo = [] if blocked else sorted((candidates & data.keys()) - refs - pins)
        self._remove(todo, [] if blocked else spent, dry_run=dry_run)
        return Deleted(
            numbers=tuple(sorted(numbers)),
            files=tuple(todo),
            nbytes=sum(data[key].nbytes for key in todo),
            blocked=tuple(blocked),
        )

    def _candidates(self, now: Catalog, numbers: Collection[int]) -> set[str]:
        """Return the files of checkpoints about to be deleted; refuse what may not be."""
        files: set[str] = set()
        for number in numbers:
            row = now.listed(number)
            if row is None or row.status == catalog.TOMBSTONE:
                raise NotFoundError("no such checkpoint", number=number, url=self.backend.url)
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

    def _announce(self, token: str, numbers: Collection[int]) -> None:
        intent = Intent(
            kind=RETENTION,
            save=token,
            numbers=tuple(sorted(numbers)),
            time=self.sources.now(),
            host=platform.node(),
            pid=os.getpid(),
        )
        self.backend.create(layout.intent_key(token), intent.encode(), durable=False)

    def _unpinned(
        self, now: Catalog, numbers: Collection[int], *, skip_pinned: bool
    ) -> list[int]:
        """Look for pins after the intent is published: a pinner that came first is seen here,
        one that comes later sees the intent (spec §8.8)."""
        attached = Notes(self.backend).all() if numbers else {}
        free = []
        for number in sorted(numbers):
            row = now.listed(number)
            id_ = row.summary.id if row is not None and row.summary is not None else None
            if not attached.get(id_ or "", {}).get(PINNED):
                free.append(number)
            elif not skip_pinned:
                raise UsageError(
                    "checkpoint is pinned: remove its tag 'pinned' first", number=number
                )
        return free

    def _bury(self, now: Catalog, number: int, token: str, began: float) -> None:
        if self.sources.monotonic() - began > FENCE_SECONDS / 2:
            raise ConflictError("deletion took too long to be safe: start it again")
        row = now.listed(number)
        id_ = row.summary.id if row is not None and row.summary is not None else None
        self.backend.replace(
            layout.manifest_key(number),
            self._tombstone(number, 0, id_, token),
            durable=self.durable,
        )

    def _tombstone(self, number: int, revision: int, id_: str | None, token: str) -> bytes:
        return encode_tombstone(
            Summary(
                number=number,
                revision=revision,
                id=id_,
                save=token,
                parent=None,
                time=self.sources.now(),
                writer=self.writer,
            )
        )

    def _intents(self) -> list[Intent]:
        """Read all leases. One that cannot be parsed counts as alive, whatever it covers."""
        found = []
        for key in self.backend.list(layout.INTENTS):
            name = layout.parse_intent_key(key)
            if name is None or name[1] is not None:
                continue
            try:
                found.append(Intent.decode(self.backend.read(key)))
            except NotFoundError:
                continue
            except FormatError:
                found.append(Intent(kind=_UNREADABLE, save=name[0]))
        return found

    def _references(
        self, views: Iterable[Catalog], hidden: frozenset[int]
    ) -> tuple[set[str], list[str]]:
        """Return all data files that live checkpoints reference, and what may hide more."""
        refs: set[str] = set()
        blocked: dict[int, str] = {}
        for view in views:
            for row in view.all():
                if row.status == catalog.TOMBSTONE or row.number in hidden:
                    continue
                reason = row.reason
                try:
                    if row.status == catalog.OK:
                        refs.update(f.key for f in view.manifest(row).tables.files)
                except NotFoundError:
                    continue  # deleted since the listing: the other view decides
                except FormatError as error:
                    reason = str(error)
                if reason is not None:
                    blocked[row.number] = (
                        f"checkpoint {row.number} is not readable, so what it references is"
                        f" unknown and no data is deleted: {reason}"
                    )
        return refs, list(blocked.values())

    def _spent(self, intent: Intent, view: Catalog) -> bool:
        """Tell whether the save of this lease has landed, or can never land (spec §8.3)."""
        if not self.backend.capabilities.create_if_absent:
            return False
        if view.has(intent.number, intent.revision):
            return True
        if intent.revision == 0:
            return view.top > intent.number
        row = view.listed(intent.number)
        return row is None or row.status == catalog.TOMBSTONE

    def _landed(self, intent: Intent, view: Catalog) -> bool:
        """Tell whether the name a lease aimed at holds this very save."""
        if not view.has(intent.number, intent.revision):
            return False
        try:
            head = view.head(intent.number, intent.revision)
        except FormatError:
            return True  # unknown: then its data stays
        except NotFoundError:
            return False
        return not head.tombstone and head.summary.save == intent.save

    def _pins(self, alive: Iterable[Intent], data: Iterable[str]) -> set[str]:
        saves = {i.save for i in alive if i.kind == SAVE}
        pins = {key for i in alive if i.kind == SAVE for key in i.reuse}
        return pins | {key for key in data if layout.data_save_id(key) in saves}

    def _remove(self, files: Iterable[str], spent: Iterable[Intent], *, dry_run: bool) -> None:
        if dry_run:
            return
        for key in files:
            self.backend.delete(key)
        gone = {intent.save for intent in spent}
        if gone:
            for key in self.backend.list(layout.INTENTS):
                name = layout.parse_intent_key(key)
                if name is not None and name[0] in gone:
                    self.backend.delete(key)

    def sweep(
        self,
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
        token = self.sources.save_id()
        self._announce(token, ())  # its time of modification is the storage's own clock
        try:
            if not dry_run:
                self._forget(forget, token)
                if break_lease:
                    self._break_leases(token)
            return self._sweep(token, dry_run, older_than_seconds, frozenset(forget))
        finally:
            self.backend.delete(layout.intent_key(token))

    def _forget(self, numbers: Collection[int], token: str) -> None:
        now = catalog.scan(self.backend, self.memory)
        for number in numbers:
            row = now.listed(number)
            if row is None or row.status != catalog.DAMAGED:
                raise UsageError(
                    "only a damaged checkpoint can be forgotten",
                    number=number,
                    found=None if row is None else row.status,
                )
            self.backend.replace(
                layout.manifest_key(number),
                self._tombstone(number, 0, None, token),
                durable=self.durable,
            )

    def _break_leases(self, token: str) -> None:
        """Take the exact name each live lease aims at: the sleeper's create then fails."""
        intents = self._intents()
        now = catalog.scan(self.backend, self.memory)
        clock = self._clock(token)
        entries = self.backend.list(layout.INTENTS)
        for intent in intents:
            key = layout.intent_key(intent.save)
            if intent.save == token or key not in entries:
                continue
            if intent.kind == RETENTION:
                if clock - entries[key].modified > FENCE_SECONDS:
                    self.backend.delete(key)
                continue
            if not self.backend.capabilities.create_if_absent:
                continue
            if intent.kind == _UNREADABLE:
                self.backend.delete(key)
                continue
            if self._spent(intent, now):
                continue
            try:
                self.backend.create(
                    layout.manifest_key(intent.number, intent.revision),
                    self._tombstone(intent.number, intent.revision, None, token),
                    durable=self.durable,
                )
            except ConflictError:
                continue  # it landed just now, or somebody else was faster
            self.backend.delete(key)

    def _clock(self, token: str) -> float:
        """Return the storage's time, from the lease just written."""
        entry = self.backend.list(layout.INTENTS).get(layout.intent_key(token))
        return entry.modified if entry is not None else 0.0

    def _sweep(
        self, token: str, dry_run: bool, older_than: float, forget: frozenset[int]
    ) -> Collected:
        clock = self._clock(token)
        first = catalog.scan(self.backend, self.memory)
        data = self.backend.list(layout.DATA)
        intents = [i for i in self._intents() if i.save != token]
        last = catalog.scan(self.backend, self.memory)
        refs, blocked = self._references((first, last), forget if dry_run else frozenset())
        saves = [i for i in intents if i.kind == SAVE]
        spent = [i for i in saves if self._spent(i, last)]
        blocked += _unreadable(intents)
        blocked += [
            f"save {i.save} of process {i.pid} on {i.host} is in flight, aiming at checkpoint"
            f" {i.number}: wait for it, or break its lease if that job is dead"
            for i in saves
            if i not in spent
        ]
        todo = [
            key
            for key, entry in sorted(data.items())
            if key not in refs and clock - entry.modified >= older_than
        ]
        if blocked:
            todo, spent = [], []
        self._remove(todo, spent, dry_run=dry_run)
        return Collected(
            files=tuple(todo),
            nbytes=sum(data[key].nbytes for key in todo),
            intents=tuple(i.save for i in spent),
            tombstones=self._old_tombstones(clock, dry_run=dry_run),
            blocked=tuple(blocked),
        )

    def _old_tombstones(self, clock: float, *, dry_run: bool) -> tuple[int, ...]:
        """Remove tombstones past the fence, below the newest live number; revisions first."""
        now = catalog.scan(self.backend, self.memory)
        top = max((row.number for row in now.live()), default=0)
        old = [
            row.number
            for row in now.all()
            if row.status == catalog.TOMBSTONE
            and row.number < top
            and _past_fence(now.entry(row.number, 0), clock)
        ]
        orphans = {n for n, _ in now.names() if not now.has(n, 0)}
        if not dry_run:
            for number, revision in now.names():
                if revision and (number in old or number in orphans):
                    self.backend.delete(layout.manifest_key(number, revision))
            for number in old:
                self.backend.delete(layout.manifest_key(number))
        return tuple(old)


def _unreadable(intents: Iterable[Intent]) -> list[str]:
    return [
        f"lease {i.save} is damaged, so what it covers is unknown and no data is deleted:"
        " break it if no save is running"
        for i in intents
        if i.kind == _UNREADABLE
    ]


def _past_fence(entry: Entry, clock: float) -> bool:
    return clock - entry.modified > FENCE_SECONDS
