"""A committed checkpoint you can ask: what it is, what is in it, and for its arrays."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from ckptfmt import tree
from ckptfmt._engine import request, restore
from ckptfmt._engine.extract import extract
from ckptfmt._engine.read import Reader
from ckptfmt._store.array import LazyArray
from ckptfmt._store.facts import Facts, Origin
from ckptfmt.checks import environment, inputs
from ckptfmt.checks.coverage import LoadReport
from ckptfmt.checks.environment import Finding
from ckptfmt.checks.probe import Probe
from ckptfmt.errors import MismatchError, NotFoundError
from ckptfmt.format.manifest import Head
from ckptfmt.leaves import PROBE
from ckptfmt.options import Progress, expect_progress
from ckptfmt.options import expect as check_kind
from ckptfmt.pause import gc_paused
from ckptfmt.reports import (
    ArrayInfo,
    ArrayTable,
    Seen,
    VerifyReport,
    check_dropped,
    check_identity,
    verify,
)

Array: TypeAlias = npt.NDArray[Any]
Patterns: TypeAlias = str | Sequence[str]
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]


class Checkpoint(Facts):
    """One committed checkpoint.

    Immutable and safe to use from several threads. Number, time, counters and metrics are
    known at once; the manifest is read when something else is first asked for; array data is
    read by `load`, `verify` and lazy arrays only.
    """

    def __init__(self, head: Head, origin: Origin) -> None:
        super().__init__(head, origin)
        self._known: tuple[Any, Any] | None = None

    def reader(self) -> Reader:
        """Return what reads the arrays; for code in this package."""
        origin = self._origin
        return Reader(
            backend=origin.backend,
            tables=self.manifest.tables,
            places=origin.places(self.manifest),
            threads=origin.threads,
            verified=origin.verified,
            changed=lambda: origin.changed(self._head),
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
        check_kind("path", path, str)
        row = self._rows.get(path)
        if row is not None:  # an array: no need to take the tree apart
            return LazyArray(self.reader, path, row, verify=verify, mmap=mmap)
        try:
            state, probe = self._structures()
            inside = path.startswith(PROBE + "/") and probe is not None
            found = tree.lookup({PROBE: probe} if inside else state, path)
        except NotFoundError as error:
            check_dropped(self._head.summary, [path], error)
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

    def choose(self, select: Patterns | None, rename: Rename | None) -> Any:
        """Return the structure that a load is about; for code in this package.

        Raises:
            NotFoundError: `select` matches nothing, or names a dropped section.
        """
        check_dropped(self._head.summary, restore.patterns_of(select))
        return restore.choose(self.structure(), select, rename)

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
                renamed paths, with the stored shapes and dtypes; a `Shard` gets its part.
                Nothing is touched before that is checked and, where storage maps files (local
                disk), before every chunk is verified; elsewhere that is part of the one pass
                over the network, and an `IntegrityError` says the arrays are undefined.
            verify: Digest every byte that is read.
            mmap: Return read-only arrays over the stored file instead of copies, where
                storage and layout allow it. Verified now, unless `verify=False`.
            expect: The identity this checkpoint must have.
            progress: Called with (phase, done, total bytes).

        Returns:
            The state tree; new containers, NumPy arrays (the caller's own with `into`).

        Raises:
            NotFoundError: `select` matches nothing, or names a dropped section; or the
                checkpoint was deleted or slimmed meanwhile, and data is gone.
            MismatchError: `into` and the checkpoint disagree, or `expect` does.
            IntegrityError: data is damaged or missing; names path, file and offset.
            BackendError: storage failed.
        """
        expect_progress(progress)
        if expect is not None:
            check_identity(expect, self.identity, self.manifest)
        chosen = self.choose(select, rename)
        how = restore.Restore(reader=self.reader(), verify=verify, progress=progress)
        if into is None:
            loaded: dict[str, Any] = how.fresh(chosen, mmap=mmap)
        else:
            self._tell(whole=False)
            try:
                loaded = how.into(chosen, into, checkpoint=f"{self.number:010d}")
            except MismatchError as error:
                check_dropped(self._head.summary, list(into), error)
                raise
        if select is None:
            self._tell(whole=True)
        return loaded

    def fill(
        self,
        places: Mapping[str, Array | Callable[[Array], None]],
        *,
        resumes: bool = False,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> None:
        """Read single arrays to where they belong; for adapters.

        Args:
            places: By path, the array to fill in place, of the stored shape and dtype, or a
                function that takes the array: one at a time, after the others.
            resumes: Whether this continues the run: the store's next save is then a child.
            verify, progress: As for `load`; all is verified before a place is touched where
                storage maps files.

        Raises:
            NotFoundError, MismatchError, IntegrityError, BackendError: as `load`.
        """
        how = restore.Restore(reader=self.reader(), verify=verify, progress=progress)
        self._tell(whole=False)
        how.fill(self._rows, places, checkpoint=f"{self.number:010d}")
        if resumes:
            self._tell(whole=True)

    def _tell(self, *, whole: bool) -> None:
        if told := self._origin.loaded():
            told(self, whole)

    def compare(
        self,
        target: Mapping[str, Any],
        *,
        select: Patterns | None = None,
        rename: Rename | None = None,
    ) -> LoadReport:
        """Compare with a state tree that is to be filled, before a data byte is read.

        Raises:
            NotFoundError: `select` matches nothing, or names a dropped section.
            StateError: the target is no state tree.
        """
        chosen = self.choose(select, rename)
        return restore.compare(chosen, self.manifest.tables, target)

    def verify(
        self, *, seen: Seen | None = None, progress: Progress | None = None
    ) -> VerifyReport:
        """Read every stored byte of this checkpoint and compare it with its digest.

        Finds all problems instead of stopping at the first. Memory stays bounded.

        Args:
            seen: `ckptfmt.reports.Seen()`, the same for several checkpoints of one store:
                bytes that they share are read once.
            progress: Called with (phase, done, total bytes).

        Raises:
            NotFoundError: it was deleted or slimmed meanwhile: ask the store for what is left.
            BackendError: storage failed, which says nothing about the data.
        """
        check_kind("seen", seen, Seen, type(None))
        expect_progress(progress)
        return verify(self.reader(), self.number, seen=seen, progress=progress)

    def probe(self) -> Probe | None:
        """Return the batch stored to prove a load by, and its outputs; None if there is none.

        Its arrays are read and verified.

        Raises:
            FormatError: it does not follow the specification.
            IntegrityError, BackendError: as `load`.
        """
        found = self._structures()[1]
        if found is None:
            return None
        how = restore.Restore(reader=self.reader(), verify=True, progress=None)
        return Probe.of(how.fresh(found, mmap=False))

    def extract(
        self, folder: str | os.PathLike[str], *, names: str | Sequence[str] | None = None
    ) -> list[pathlib.Path]:
        """Write artifacts to files of a folder, which is made where it is absent.

        Each file appears whole. A file with the same content is left alone.

        Args:
            names: Which, or the one; by default all.

        Raises:
            UsageError: no folder is given.
            NotFoundError: there is no artifact of that name.
            ConflictError: a file of that name with other content, or anything else, is there.
            BackendError: the file system failed.
        """
        return extract(self.artifacts, folder, names)

    def check_environment(
        self, policy: environment.Policy = "off", *, extra: Mapping[str, Any] | None = None
    ) -> list[Finding]:
        """Compare the environment recorded at the save with this one, most severe first.

        Args:
            policy: "off" only returns; "warn" logs what may change results; "strict" refuses
                it.
            extra: What the caller records of this environment, as given to `Store.save`.

        Raises:
            MismatchError: the policy is "strict", and a finding is no mere "info".
            UsageError: no such policy, or `extra` is no mapping.
        """
        check_kind("extra", extra, Mapping, type(None))
        now = environment.capture(extra=extra)
        found = environment.compare(self.environment or {}, now)
        environment.apply(policy, found, checkpoint=self.number)
        return found

    def check_preprocessing(
        self,
        *,
        preprocessing: Any = None,
        artifacts: Mapping[str, bytes | os.PathLike[str]] | None = None,
    ) -> list[Finding]:
        """Compare how inputs are made here with how they were made when it was saved.

        Args:
            preprocessing: As given to `Store.save`; None does not compare it.
            artifacts: File name to content or path; those of the checkpoint that are not
                named are not compared.

        Raises:
            StateError: a value of `preprocessing` could not have been saved, such as an array.
            UsageError: a file cannot be read.
        """
        check_kind("artifacts", artifacts, Mapping, type(None))
        here = {
            name: request.artifact(name, value) for name, value in (artifacts or {}).items()
        }
        made = request.plain("preprocessing", preprocessing)
        return inputs.compare(self.preprocessing, self.artifacts, made, here)
