"""Leases: what saves and deletions in flight protect (spec §8.3)."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Final

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Catalog, Memory
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import (
    BackendError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from ckptfmt.format import layout
from ckptfmt.format.records import COPY, MAX_RECORD_NBYTES, RETENTION, SAVE, Intent
from ckptfmt.options import Sources

WRITES: Final = frozenset({SAVE, COPY})  # kinds that end with a manifest
UNREADABLE: Final = "unreadable"  # kind of a lease that cannot be parsed: it covers everything
_TRIES: Final = 100

_log: Final = logging.getLogger("ckptfmt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """The leases of one store."""

    backend: Backend
    sources: Sources

    def save(
        self,
        save_id: str,
        *,
        number: int,
        revision: int = 0,
        base: tuple[int, int] | None,
        reuse: Iterable[str],
    ) -> None:
        """Announce a save or a revision, before its base is validated and a byte is written."""
        self._create(
            Intent(
                kind=SAVE,
                save=save_id,
                number=number,
                revision=revision,
                base=base,
                reuse=tuple(reuse),
            )
        )

    def copy(self, save_id: str, *, number: int, revision: int, files: Iterable[str]) -> None:
        """Announce a copy, before it looks what is there and a byte is written."""
        self._create(
            Intent(
                kind=COPY,
                save=save_id,
                number=number,
                revision=revision,
                reuse=tuple(files),
            )
        )

    def retention(self, save_id: str, numbers: Collection[int]) -> None:
        """Announce a deletion, before it looks for pins."""
        self._create(
            Intent(
                kind=RETENTION,
                save=save_id,
                numbers=tuple(sorted(numbers)),
            )
        )

    def _create(self, intent: Intent) -> None:
        signed = replace(
            intent, time=self.sources.time(), host=platform.node(), pid=os.getpid()
        )
        # Not durable: a power cut takes the writer too, and then nothing needs protection.
        key, data = layout.intent_key(signed.save), signed.encode()
        try:
            self.backend.create(key, data, durable=False)
        except ConflictError:
            # A client that repeats a request whose reply was lost meets its own object; where
            # others have removed that since, it is spent, as it may be after any reply.
            with contextlib.suppress(NotFoundError):
                if self.backend.read(key) != data:
                    raise

    def drop(self, save_id: str) -> None:
        """Remove a lease."""
        self.backend.delete(layout.intent_key(save_id))

    def all(self) -> list[Intent]:
        """Read all leases. One that cannot be parsed counts as alive, whatever it covers."""
        found = []
        for key, entry in self.backend.list(layout.INTENTS).items():
            name = layout.parse_intent_key(key)
            if name is None or name[1] is not None:
                continue
            try:
                found.append(self._read(entry, name[0]))
            except NotFoundError:
                continue
            except FormatError:
                found.append(Intent(kind=UNREADABLE, save=name[0]))
        return found

    def _read(self, entry: Entry, save_id: str) -> Intent:
        if entry.nbytes > MAX_RECORD_NBYTES:
            raise FormatError("lease is too large", key=entry.key, found=entry.nbytes)
        intent = Intent.decode(self.backend.read(entry.key))
        if intent.save != save_id:
            raise IntegrityError(
                "lease lies under another name", key=entry.key, expected=intent.save
            )
        return intent

    def modified(self, save_id: str) -> float | None:
        """Return when a lease was written, by the storage's own clock; None if it is gone."""
        entry = self.backend.list(layout.INTENTS).get(layout.intent_key(save_id))
        return entry.modified if entry is not None else None

    def clock(self, save_id: str) -> float:
        """Return the time by the storage's own clock: that of a lease made for this.

        Raises:
            ConflictError: others removed the lease each time; it covers nothing, so they may.
        """
        for _ in range(_TRIES):
            self.retention(save_id, ())
            try:
                found = self.modified(save_id)
            finally:
                self.drop(save_id)
            if found is not None:
                return found
        raise ConflictError("could not learn the storage's time: try again")

    def spent(self, intent: Intent, view: Catalog) -> bool:
        """Tell whether a lease covers nothing any more.

        That of a save or copy, when it has landed or can never land; that of a deletion, when
        none of the checkpoints it names lives: no pin of those can succeed (spec §10.2).
        """
        if not self.backend.capabilities.create_if_absent:
            return False
        if intent.kind == RETENTION:
            return not any(view.lives(number) for number in intent.numbers)
        if intent.kind not in WRITES:
            return False
        if view.has(intent.number, intent.revision):
            return True
        if intent.revision == 0:  # a copy may fill a gap below the highest number
            return intent.kind == SAVE and view.top > intent.number
        return not view.lives(intent.number)

    def landed(self, intent: Intent, view: Catalog) -> bool:
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

    def remove(self, spent: Iterable[Intent]) -> None:
        """Remove leases and the rows of their ranks; also rows whose lease is gone.

        A rank that is late hands in its rows after rank 0 has given up and removed the lease.
        Two listings, since one that takes several requests may see rows and miss their lease.
        """
        gone = {intent.save for intent in spent}
        once, again = self._names(), None
        for key, (save_id, rank) in once.items():
            if save_id not in gone:
                if rank is None or layout.intent_key(save_id) in once:
                    continue
                again = self._names() if again is None else again
                if layout.intent_key(save_id) in again:
                    continue
            self.backend.delete(key)

    def _names(self) -> dict[str, tuple[str, int | None]]:
        """Return save id and rank of each lease and part, parts first."""
        names = {key: layout.parse_intent_key(key) for key in self.backend.list(layout.INTENTS)}
        found = {key: name for key, name in names.items() if name is not None}
        return dict(sorted(found.items(), key=lambda item: item[1][1] is None))


def discard(backend: Backend, keys: Iterable[str]) -> None:
    """Remove what nobody references; a refusal is left to the next retention, and said."""
    for key in keys:
        try:
            backend.delete(key)
        except BackendError as error:
            _log.warning("could not remove %s, the next save will: %s", key, error)


def pins(alive: Iterable[Intent], data: Iterable[str]) -> set[str]:
    """Return the data files that saves in flight write or reuse."""
    saves = {i.save: i for i in alive if i.kind in WRITES}
    reused = {key for intent in saves.values() for key in intent.reuse}
    return reused | {key for key in data if layout.data_save_id(key) in saves}


def unreadable(intents: Iterable[Intent]) -> list[str]:
    """Say which leases make it impossible to know what may be deleted."""
    return [
        f"lease {i.save} is damaged, so what it covers is unknown and no data is deleted:"
        " when it is a week old, it can be broken"
        for i in intents
        if i.kind == UNREADABLE
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """What the manifests of one listing reference."""

    view: Catalog
    files: set[str]
    blocked: list[str]  # what may hide more
    settled: bool  # nothing was both made and deleted since the listing before


def references(
    backend: Backend,
    memory: Memory,
    *,
    since: Catalog | None = None,
) -> References:
    """List the manifests and read all of them, as of one instant.

    Args:
        since: An earlier listing. What is new counts with all of its revisions: a save that
            this listing lacks may rely on one that has been replaced already.

    One that is deleted between listing and reading may have handed its files on to a save that
    the listing lacks: then the listing counts for nothing and is made again.

    Raises:
        ConflictError: it was made again too often.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(NotFoundError):
            return _references(catalog.scan(backend, memory), since)
    raise ConflictError("checkpoints are deleted faster than they can be listed: try again")


def _references(view: Catalog, since: Catalog | None) -> References:
    files: set[str] = set()
    blocked = {
        name: f"checkpoint {name[0]} is not readable, so what it references is"
        f" unknown and no data is deleted: {error}"
        for name, error in view.unreadable().items()
    }
    settled = True
    for name in view.names():
        with contextlib.suppress(FormatError):  # said above
            dead = view.head(*name).tombstone
            if since is None or since.has(*name):
                continue
            if dead:
                settled = settled and name[1] > 0
            else:
                files.update(f.key for f in view.of(*name).tables.files)
    for row in view.live():
        if row.summary is None:
            continue
        try:
            row.summary.features.require("delete", number=row.number)
        except UnsupportedError as error:
            blocked[row.number, row.revision] = f"no data is deleted: {error}"
        with contextlib.suppress(FormatError):  # said above
            files.update(f.key for f in view.manifest(row).tables.files)
    return References(view=view, files=files, blocked=list(blocked.values()), settled=settled)
