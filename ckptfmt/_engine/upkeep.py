"""What deleting, revising and collecting have in common: one store, and who works on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckptfmt._engine.catalog import Memory
from ckptfmt._engine.leases import Leases
from ckptfmt.backends.base import Backend
from ckptfmt.format import layout
from ckptfmt.format.manifest import encode_tombstone
from ckptfmt.format.summary import Summary
from ckptfmt.options import Sources


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
                time=self.sources.now(),
                writer=self.writer,
            )
        )
