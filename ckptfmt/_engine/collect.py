"""Free all bytes that nothing references, spent leases and old tombstones (spec §10.4).

    manifests → data → intents → manifests → delete

Every other order can delete what a save beside it has just committed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Memory
from ckptfmt._engine.leases import Leases, references, tombstone, unreadable
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import ConflictError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.records import SAVE
from ckptfmt.options import FENCE_SECONDS, Sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `collect` did, or would do in a dry run."""

    files: tuple[str, ...]
    nbytes: int
    intents: tuple[str, ...]  # leases removed, with the rows of their ranks
    tombstones: tuple[int, ...]  # numbers whose tombstone was old enough to go
    blocked: tuple[str, ...]  # why nothing, or not everything, was collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Sweeps one store."""

    backend: Backend
    memory: Memory
    sources: Sources
    writer: Mapping[str, str]
    durable: bool = True

    @property
    def leases(self) -> Leases:
        """The leases of this store."""
        return Leases(backend=self.backend, sources=self.sources)

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
        self.leases.retention(token, ())  # its time of modification is the storage's own clock
        try:
            if not dry_run:
                self._forget(forget, token)
                if break_lease:
                    self._break_leases(token)
            return self._sweep(token, dry_run, older_than_seconds, frozenset(forget))
        finally:
            self.leases.drop(token)

    def _forget(self, numbers: Collection[int], token: str) -> None:
        """Take exactly the names that cannot be read (spec §10.6.3)."""
        unreadable = catalog.scan(self.backend, self.memory).unreadable()
        for number in numbers:
            if not any(name[0] == number for name in unreadable):
                raise UsageError(
                    "only a checkpoint that cannot be read can be forgotten", number=number
                )
        for number, revision in unreadable:
            if number in numbers:
                self.backend.replace(
                    layout.manifest_key(number, revision),
                    self._grave(number, revision, token),
                    durable=self.durable,
                )

    def _break_leases(self, token: str) -> None:
        """Take the exact name each live lease aims at: the sleeper's create then fails."""
        if not self.backend.capabilities.create_if_absent:
            return  # a create there would not fail
        found = self.leases.all()
        now = catalog.scan(self.backend, self.memory)
        clock = self.leases.modified(token)
        for intent in found:
            if intent.save == token or self.leases.spent(intent, now):
                continue
            if intent.kind != SAVE:  # what it covers, no tombstone can take: only time helps
                if clock - self.leases.modified(intent.save) > FENCE_SECONDS:
                    self.leases.drop(intent.save)
                continue
            # Taken already: it landed just now, or somebody else was faster.
            with contextlib.suppress(ConflictError):
                self.backend.create(
                    layout.manifest_key(intent.number, intent.revision),
                    self._grave(intent.number, intent.revision, token),
                    durable=self.durable,
                )
            self.leases.drop(intent.save)

    def _grave(self, number: int, revision: int, token: str) -> bytes:
        return tombstone(
            number,
            revision,
            id_=None,
            by=token,
            time=self.sources.now(),
            writer=self.writer,
        )

    def _sweep(
        self, token: str, dry_run: bool, older_than: float, forget: frozenset[int]
    ) -> Collected:
        clock = self.leases.modified(token)
        hidden = forget if dry_run else frozenset()
        first = references(self.backend, self.memory, hidden)
        data = self.backend.list(layout.DATA)
        intents = [i for i in self.leases.all() if i.save != token]
        final = references(self.backend, self.memory, hidden)
        last, refs = final.view, first.files | final.files
        blocked = list(dict.fromkeys(first.blocked + final.blocked))
        saves = [i for i in intents if i.kind == SAVE]
        spent = [i for i in saves if self.leases.spent(i, last)]
        blocked += unreadable(intents)
        blocked += [
            f"save {i.save} of process {i.pid} on {i.host} is in flight, aiming at checkpoint"
            f" {i.number}: wait for it, or break its lease if that job is dead"
            for i in saves
            if i not in spent
        ]
        todo = [
            key
            for key, entry in sorted(data.items())
            if key not in refs
            and layout.data_save_id(key) is not None  # else it is nobody's we know
            and clock - entry.modified >= older_than
        ]
        if blocked:
            todo, spent = [], []
        if not dry_run:
            for key in todo:
                self.backend.delete(key)
            self.leases.remove(spent)
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


def _past_fence(entry: Entry, clock: float) -> bool:
    return clock - entry.modified > FENCE_SECONDS
