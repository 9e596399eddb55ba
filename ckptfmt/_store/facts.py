"""What is known of a checkpoint without reading an array: its place, numbers and metadata."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ckptfmt._engine.source import Place
from ckptfmt.backends.base import Backend
from ckptfmt.errors import NotFoundError
from ckptfmt.format.manifest import Ancestor, Head, Manifest
from ckptfmt.format.records import overlaid
from ckptfmt.format.summary import Number, Section
from ckptfmt.reports import moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a checkpoint comes from, and how its parts are fetched."""

    backend: Backend
    url: str  # of the store or bundle
    manifest: Callable[[], Manifest]  # reads it once, when first needed
    places: Callable[[Manifest], Sequence[Place]]
    attached: Mapping[str, Any]  # annotations in force
    threads: int
    verified: set[tuple[str, int]]  # chunks that mapped arrays have verified already
    # Whom to tell: before memory of the caller's is filled (False), after a whole load (True).
    loaded: Callable[[], Callable[[Any, bool], None] | None]
    changed: Callable[[Head], NotFoundError | None]  # was it deleted or revised since?


class Facts:
    """The part of a `Checkpoint` that its manifest answers alone.

    Number, time, counters and metrics are known at once; the manifest is read when something
    else is first asked for.
    """

    def __init__(self, head: Head, origin: Origin) -> None:
        self._head = head
        self._origin = origin
        self._attached = origin.attached

    def __repr__(self) -> str:
        return f"<Checkpoint {self.number} of {self.url!r}, {self.time:%Y-%m-%d %H:%M:%S} UTC>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Facts) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def url(self) -> str:
        """Where the store or bundle is, without credentials."""
        return self._origin.url

    @property
    def number(self) -> int:
        """Its place in the order of commits; never reused."""
        return self._head.summary.number

    @property
    def revision(self) -> int:
        """0, or higher after sections were dropped."""
        return self._head.summary.revision

    @property
    def id(self) -> str:
        """The random id of the save that made it; the same for all revisions."""
        return self._head.summary.id or ""

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest's header, hexadecimal: pins every byte (spec §6.2)."""
        return self._head.header.identity

    @property
    def parent(self) -> tuple[int, str] | None:
        """(number, id) of the checkpoint the run was resumed from."""
        return self._head.summary.parent

    @property
    def time(self) -> datetime.datetime:
        """When it was saved, by the writer's clock, in UTC; at most the end of year 9999."""
        return moment(self.time_us)

    @property
    def time_us(self) -> int:
        """The same in microseconds since the Unix epoch."""
        return self._head.summary.time

    @property
    def counters(self) -> Mapping[str, Any]:
        """Counters at the time of the save, such as `seen`."""
        return MappingProxyType(self._field("counters"))

    @property
    def metrics(self) -> Mapping[str, Number]:
        """Metrics, those attached later included and those removed left out."""
        return MappingProxyType(overlaid("metrics.", self._field("metrics"), self._attached))

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags, those attached later included and those removed left out."""
        saved = dict.fromkeys(self._field("tags"), True)
        return tuple(overlaid("tags.", saved, self._attached))

    @property
    def notes(self) -> Mapping[str, Any]:
        """Annotations that are neither metrics nor tags."""
        return MappingProxyType(
            {
                name: value
                for name, value in self._attached.items()
                if value is not None and not name.startswith(("metrics.", "tags."))
            }
        )

    @property
    def sections(self) -> tuple[Section, ...]:
        """Name, bytes and number of arrays of each top-level key."""
        found: tuple[Section, ...] = self._field("sections")
        return found

    @property
    def dropped(self) -> tuple[str, ...]:
        """Sections that were saved and have been dropped since."""
        return self._head.summary.dropped

    @property
    def dropped_at(self) -> Mapping[str, datetime.datetime]:
        """When each was dropped, by the clock of who did it, in UTC."""
        at = self._head.summary.dropped_at
        return MappingProxyType({name: moment(time) for name, time in at.items()})

    @property
    def writer(self) -> Mapping[str, str]:
        """Name and version of the program that saved it."""
        return MappingProxyType(dict(self._head.summary.writer))

    @property
    def hyperparameters(self) -> Any:
        """What was given as `hyperparameters=`, or None."""
        return self.manifest.plain("hyperparameters")

    @property
    def environment(self) -> Any:
        """The environment recorded at the save."""
        return self.manifest.plain("environment")

    @property
    def architecture(self) -> Any:
        """What was given as `architecture=`, or None."""
        return self.manifest.plain("architecture")

    @property
    def preprocessing(self) -> Any:
        """What was given as `preprocessing=`, or None."""
        return self.manifest.plain("preprocessing")

    @property
    def artifacts(self) -> Mapping[str, bytes]:
        """Small files that travel with the checkpoint, by name."""
        return MappingProxyType({a.name: a.data for a in self.manifest.artifacts})

    @property
    def history(self) -> Sequence[Ancestor]:
        """The checkpoints the run went through before this one, oldest first."""
        return tuple(self.manifest.history)

    @functools.cached_property
    def manifest(self) -> Manifest:
        """The whole manifest; read once, so that what it says stays when others delete it.

        Raises:
            FormatError: and its kinds, when it is damaged or too new.
            NotFoundError: it was deleted meanwhile.
        """
        return self._origin.manifest()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(section.nbytes for section in self.sections)

    @property
    def new_bytes(self) -> int:
        """Bytes of the data files this checkpoint wrote itself."""
        return sum(f.nbytes for f in self.manifest.tables.files if f.number == self.number)

    @property
    def reused_bytes(self) -> int:
        """Stored bytes of the chunks that were written by earlier checkpoints."""
        tables = self.manifest.tables
        old = np.array([f.number != self.number for f in tables.files], dtype=bool)
        return int(tables.nbytes[old[tables.file]].sum()) if len(old) else 0

    def _field(self, name: str) -> Any:
        """Return a field of the summary, from the manifest when it did not fit."""
        moved = name in self._head.summary.moved
        return getattr(self.manifest.summary if moved else self._head.summary, name)
