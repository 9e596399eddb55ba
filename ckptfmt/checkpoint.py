"""A committed checkpoint you can ask: what it is, what is in it, and for its arrays."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt import tree
from ckptfmt._engine import restore
from ckptfmt._engine.read import Place, Reader
from ckptfmt.array import LazyArray
from ckptfmt.backends.base import Backend
from ckptfmt.checks import environment
from ckptfmt.checks.coverage import LoadReport
from ckptfmt.checks.environment import Finding
from ckptfmt.errors import NotFoundError
from ckptfmt.format.manifest import PROBE, Ancestor, Head, Manifest
from ckptfmt.format.summary import Number, Section
from ckptfmt.options import Progress
from ckptfmt.pause import gc_paused
from ckptfmt.reports import (
    ArrayInfo,
    ArrayTable,
    VerifyReport,
    check_identity,
    overlaid,
    verify,
)

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Array: TypeAlias = npt.NDArray[Any]
Patterns: TypeAlias = str | Sequence[str]
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]


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
    loaded: Callable[[], Callable[[Checkpoint], None] | None]  # whom to tell of a whole load


class Checkpoint:
    """One committed checkpoint.

    Immutable and safe to use from several threads. Number, time, counters and metrics are
    known at once; the manifest is read when something else is first asked for; array data is
    read by `load`, `verify` and lazy arrays only.
    """

    def __init__(self, head: Head, origin: Origin) -> None:
        self._head = head
        self._origin = origin
        self._attached = origin.attached
        self._known: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<Checkpoint {self.number} of {self.url!r}, {self.time:%Y-%m-%d %H:%M:%S} UTC>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checkpoint) and self.identity == other.identity

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
        last = datetime.datetime.max.replace(tzinfo=datetime.UTC)
        return _EPOCH + min(datetime.timedelta(microseconds=self.time_us), last - _EPOCH)

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

    @property
    def manifest(self) -> Manifest:
        """The whole manifest.

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

    def reader(self) -> Reader:
        """Return what reads the arrays; for code in this package."""
        origin = self._origin
        return Reader(
            backend=origin.backend,
            tables=self.manifest.tables,
            places=origin.places(self.manifest),
            threads=origin.threads,
            verified=origin.verified,
        )

    def structure(self) -> Any:
        """Return the state tree with an `ArrayRef` in place of each array."""
        return self._structures()[0]

    def _structures(self) -> tuple[Any, Any]:
        if self._known is None:
            manifest = self.manifest
            with gc_paused():
                self._known = manifest.structures()
        return self._known

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        tables = self.manifest.tables
        rows = {path: row for row, path in enumerate(tables.paths)}
        return rows | {path: row for row, path in tables.aliases}

    @functools.cached_property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """What the manifest says of each array, by path, in order of the tree."""
        return ArrayTable(self.manifest.tables)

    def __getitem__(self, path: str) -> Any:
        """Return what is at a path: a lazy array, a plain value, or a tree of them.

        Raises:
            NotFoundError: nothing is there, or its section was dropped.
        """
        return self.lazy(path)

    def lazy(self, path: str, *, verify: bool = True, mmap: bool = False) -> Any:
        """Return what is at a path, with arrays that read themselves when asked.

        Args:
            verify, mmap: How the arrays read; see `LazyArray`.

        Raises:
            NotFoundError: nothing is there, or its section was dropped.
        """
        row = self._rows.get(path)
        if row is not None:  # an array: no need to take the tree apart
            return LazyArray(self.reader, path, row, verify=verify, mmap=mmap)
        try:
            state, probe = self._structures()
            inside = path.startswith(PROBE + "/") and probe is not None
            found = tree.lookup({PROBE: probe} if inside else state, path)
        except NotFoundError as error:
            self._explain_dropped([path], error)
            raise
        if not isinstance(found, dict | list | tuple):
            return found
        filled = tree.unflatten(
            {"": found},
            lambda below, row: LazyArray(
                self.reader, path + below, row, verify=verify, mmap=mmap
            ),
        )
        return filled[""]

    def tree(self) -> dict[str, Any]:
        """Return the state tree with lazy arrays; no array data is read."""
        return tree.unflatten(
            self.structure(),
            lambda path, row: LazyArray(self.reader, path, row, verify=True, mmap=False),
        )  # type: ignore[return-value]

    def _explain_dropped(self, patterns: Sequence[str], cause: Exception | None) -> None:
        for pattern in patterns:
            section = pattern.split("/", 1)[0]
            if section in self.dropped:
                raise NotFoundError(
                    "this section was dropped from the checkpoint to save space (slimmed)",
                    section=section,
                    checkpoint=self.number,
                    dropped=self.dropped,
                ) from cause

    def load(
        self,
        *,
        select: Patterns | None = None,
        rename: Rename | None = None,
        into: Mapping[str, Any] | None = None,
        verify: bool = True,
        mmap: bool = False,
        expect: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Read the state tree.

        Complete and verified, or an error: there is no half load, no cast, no skip.

        Args:
            select: Globs over paths; `model/**` or just `model` is everything below `model`.
            rename: From stored paths to paths in the result: a dict of leaves or prefixes, or
                a function.
            into: A state tree whose arrays are filled in place: exactly the selected and
                renamed paths, with the stored shapes and dtypes. Nothing in it is touched
                before that is checked and, where storage maps files (local disk), before
                every chunk is verified; elsewhere verifying is part of the one pass over
                the network, and an `IntegrityError` says that the arrays are undefined.
            verify: Digest every byte that is read.
            mmap: Return read-only arrays over the stored file instead of copies, where
                storage and layout allow it. Verified now, unless `verify=False`.
            expect: The identity this checkpoint must have.
            progress: Called with (phase, done, total bytes).

        Returns:
            The state tree; new containers, NumPy arrays (the caller's own with `into`).

        Raises:
            NotFoundError: `select` matches nothing, or names a dropped section.
            MismatchError: `into` and the checkpoint disagree, or `expect` does.
            IntegrityError: data is damaged or missing; names path, file and offset.
            BackendError: storage failed.
        """
        if expect is not None:
            check_identity(expect, self.identity, self.manifest)
        patterns = [select] if isinstance(select, str) else list(select or ())
        try:
            chosen = restore.choose(self.structure(), select, rename)
        except NotFoundError as error:
            self._explain_dropped(patterns, error)
            raise
        how = restore.Restore(reader=self.reader(), verify=verify, progress=progress)
        if into is not None:
            loaded = how.into(chosen, into, checkpoint=f"{self.number:010d}")
        else:
            loaded = how.fresh(chosen, mmap=mmap)
        if select is None and (told := self._origin.loaded()):
            told(self)
        result: dict[str, Any] = loaded
        return result

    def compare(
        self,
        target: Mapping[str, Any],
        *,
        select: Patterns | None = None,
        rename: Rename | None = None,
    ) -> LoadReport:
        """Compare with a state tree that is to be filled, before a data byte is read.

        Raises:
            NotFoundError: `select` matches nothing.
            StateError: the target is no state tree.
        """
        chosen = restore.choose(self.structure(), select, rename)
        return restore.compare(chosen, self.manifest.tables, target)

    def verify(self, *, progress: Progress | None = None) -> VerifyReport:
        """Read every stored byte of this checkpoint and compare it with its digest.

        Finds all problems instead of stopping at the first. Memory stays bounded.

        Raises:
            BackendError: storage failed, which says nothing about the data.
        """
        return verify(self.reader(), self.number, progress=progress)

    def check_environment(self) -> list[Finding]:
        """Compare the environment recorded at the save with this one, most severe first."""
        return environment.compare(self.environment or {}, environment.capture())
