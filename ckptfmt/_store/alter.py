"""Changing what was committed: delete, slim, retain, collect, annotate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckptfmt._engine import collect, request, retire
from ckptfmt._engine.collect import Collected, Leftover
from ckptfmt._engine.retire import Deleted
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.saving import Saving
from ckptfmt._store.shelf import Shelf
from ckptfmt.errors import UsageError
from ckptfmt.options import WriteOptions, expect, expect_numbers
from ckptfmt.training import retention


class Alterable:
    """The part of a `Store` that changes what was committed before."""

    def __init__(self, shelf: Shelf, saving: Saving, options: WriteOptions) -> None:
        self._shelf = shelf
        self._saving = saving
        self._options = options

    def delete(self, numbers: int | Iterable[int], *, dry_run: bool = False) -> Deleted:
        """Delete checkpoints, and the data that only they reference.

        Other checkpoints are not hurt, whatever they share. The numbers are not reused.

        Raises:
            NotFoundError: no such checkpoint.
            UsageError: it is pinned, or damaged (see `collect`); no number.
        """
        chosen = set(expect_numbers("numbers", numbers))
        with self._saving.held():
            self._saving.settle()
            return retire.retire(self._saving.upkeep, chosen, dry_run=dry_run)

    def slim(
        self, numbers: int | Iterable[int], *, drop: Iterable[str], dry_run: bool = False
    ) -> Deleted:
        """Drop sections, such as `optimizer`, of checkpoints, and the data only they held.

        Number and id stay, the identity changes: each becomes a new revision, created beside
        the old one, which a crash leaves in force. What was dropped cannot be brought back, and
        no run can go on from what is left. Data files go whole or stay: one that also holds
        something that is kept (sections below 1 MiB share a file) is not written anew.

        Args:
            drop: Top-level keys; those that a checkpoint has lost already do not matter.

        Raises:
            NotFoundError: no such checkpoint or section.
            UsageError: it is pinned, or nothing would be left; no number.
            ConflictError: it was deleted or revised meanwhile.
        """
        chosen = set(expect_numbers("numbers", numbers))
        with self._saving.held():
            self._saving.settle()
            expect("drop", drop, Iterable)
            sections = (drop,) if isinstance(drop, str) else tuple(drop)
            slim = dict.fromkeys(chosen, sections)
            return retire.retire(self._saving.upkeep, (), slim=slim, dry_run=dry_run)

    def retain(self, keep: retention.Keep, *, dry_run: bool = False) -> Deleted:
        """Apply retention rules now, as the store's own are applied after each save.

        Deletes what no rule wants and slims what the rules say, but no pinned checkpoint, and
        not the newest of a lineage; nothing while a checkpoint cannot be read.

        Args:
            keep: See `ckptfmt.keep`.
            dry_run: Only tell what would go.
        """
        expect("keep", keep, retention.Keep)
        with self._saving.held():
            self._saving.settle()
            return self._saving.retain(keep, dry_run=dry_run)

    def leftovers(self) -> list[Leftover]:
        """Return the leases and data files that no checkpoint needs; changes nothing.

        They are of dead writers, which `collect` removes, or of writers in flight.
        """
        return collect.leftovers(self._saving.upkeep)

    def collect(
        self,
        *,
        dry_run: bool = False,
        older_than_seconds: float = 0.0,
        break_lease: bool = False,
        forget: Iterable[int] = (),
    ) -> Collected:
        """Free all bytes that nothing references: what crashed jobs left behind.

        Does nothing, and says why in `blocked`, while a save is in flight or a checkpoint is
        unreadable.

        Args:
            dry_run: Only tell what would go.
            older_than_seconds: Leave younger files alone.
            break_lease: Give up saves in flight of other jobs, which are known to be dead.
            forget: Damaged checkpoints to give up for good.

        Raises:
            UsageError: a number in `forget` is not damaged; no duration.
        """
        expect("older_than_seconds", older_than_seconds, int, float)
        if not older_than_seconds >= 0:  # nor NaN, than which nothing is older
            reason = "expected 0 seconds or more"
            raise UsageError(reason, argument="older_than_seconds", found=older_than_seconds)
        given_up = expect_numbers("forget", forget)
        with self._saving.held():
            self._saving.settle()
            return collect.sweep(
                self._saving.upkeep,
                dry_run=dry_run,
                older_than_seconds=older_than_seconds,
                break_lease=break_lease,
                forget=given_up,
            )

    def annotate(self, number: int, fields: Mapping[str, Any]) -> Checkpoint:
        """Attach fields to a committed checkpoint; None removes one.

        `metrics.<name>` adds a late metric, `tags.<name>` a tag; other names are free.

        Raises:
            NotFoundError: no such checkpoint, or it is being deleted.
            StateError: a value is not plain.
        """
        expect("fields", fields, Mapping)
        self._saving.raise_unseen()
        found = self._shelf.number(number)
        checked = request.annotation(fields)
        self._shelf.notes.attach(
            self._shelf.memory,
            found.number,
            found.id,
            checked,
            now=self._options.sources.time,
            durable=self._options.durable,
        )
        return self._shelf.number(found.number)

    def tag(self, number: int, *tags: str) -> Checkpoint:
        """Attach tags. `pinned` protects a checkpoint from deletion and retention."""
        return self.annotate(number, {f"tags.{request.check_tag(t)}": True for t in tags})

    def untag(self, number: int, *tags: str) -> Checkpoint:
        """Remove tags that were attached with `tag`."""
        return self.annotate(number, {f"tags.{request.check_tag(t)}": None for t in tags})
