"""What deleting, revising and collecting have in common: one store, and who works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ckptfmt._engine.catalog import Catalog, Memory
from ckptfmt._engine.leases import Leases, references, unreadable
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.backends.rehearsal import Rehearsal
from ckptfmt.errors import ConflictError
from ckptfmt.format import layout
from ckptfmt.format.manifest import encode_tombstone
from ckptfmt.format.records import Intent
from ckptfmt.format.summary import Summary
from ckptfmt.options import FENCE_SECONDS, Sources

_TRIES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is there, what is referenced, and what may be about to be."""

    view: Catalog  # the last listing
    files: set[str]  # referenced in either listing
    blocked: list[str]  # why nothing may be deleted
    data: Mapping[str, Entry]
    intents: list[Intent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """A store, and who works on it."""

    backend: Backend
    memory: Memory
    sources: Sources
    writer: Mapping[str, str]  # what manifests and tombstones say of this program
    durable: bool = True

    @property
    def leases(self) -> Leases:
        """The leases of this store."""
        return Leases(backend=self.backend, sources=self.sources)

    def rehearsal(self, now: float) -> Upkeep:
        """Return the same store, except that nothing done to it reaches the storage.

        Args:
            now: The time of what is done, seconds since the epoch.
        """
        memory = Memory(heads=dict(self.memory.heads), manifests=dict(self.memory.manifests))
        return replace(self, backend=Rehearsal(self.backend, now=now), memory=memory)

    def survey(self) -> Survey:
        """Look at all there is, in the order that makes it safe to delete the rest.

        A checkpoint that is made after the first listing of manifests and deleted before the
        last is in neither, and may have handed its files on to a save whose intent came too
        late to be seen. Its tombstone tells: then all is looked at again.

        Raises:
            ConflictError: that happened too often.
        """
        for _ in range(_TRIES):
            began = self.sources.monotonic()
            first = references(self.backend, self.memory)
            data = self.backend.list(layout.DATA)
            intents = self.leases.all()
            final = references(self.backend, self.memory, since=first.view)
            # A tombstone is gone again after the fence time.
            if final.settled and self.sources.monotonic() - began <= FENCE_SECONDS / 2:
                blocked = dict.fromkeys(first.blocked + final.blocked + unreadable(intents))
                return Survey(
                    view=final.view,
                    files=first.files | final.files,
                    blocked=list(blocked),
                    data=data,
                    intents=intents,
                )
        raise ConflictError("checkpoints come and go faster than they can be listed: try again")

    def replace(self, number: int, revision: int, *, id_: str | None, by: str) -> None:
        """Put a tombstone over a manifest: the only overwrite of the format (spec §10.1)."""
        self.backend.replace(
            layout.manifest_key(number, revision),
            self._tombstone(number, revision, id_, by),
            durable=self.durable,
        )

    def block(self, number: int, revision: int, *, by: str) -> None:
        """Take a free name with a tombstone, so that a sleeping writer's create fails there.

        Raises:
            ConflictError: the name is taken.
        """
        self.backend.create(
            layout.manifest_key(number, revision),
            self._tombstone(number, revision, None, by),
            durable=self.durable,
        )

    def _tombstone(self, number: int, revision: int, id_: str | None, by: str) -> bytes:
        return encode_tombstone(
            Summary(
                number=number,
                revision=revision,
                id=id_,  # of the checkpoint it replaces, where that is known
                save=by,
                parent=None,
                time=self.sources.time(),
                writer=self.writer,
            )
        )
