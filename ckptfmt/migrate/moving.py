"""`open` and `migrate`: a foreign checkpoint as data, and as a checkpoint of a store."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

import ckptfmt
from ckptfmt import Checkpoint, Store, tree
from ckptfmt.errors import IntegrityError, UsageError
from ckptfmt.migrate import registry
from ckptfmt.migrate.files import LOCAL, Place, place
from ckptfmt.migrate.layout import Layout, arrange
from ckptfmt.migrate.remote import remote_place
from ckptfmt.migrate.reports import ARTIFACT, Report, report
from ckptfmt.migrate.source import Contents, Lazy, Path, left_out, refusing, walk
from ckptfmt.migrate.spool import Spool
from ckptfmt.migrate.storing import stored
from ckptfmt.options import Progress

TAG: Final = "migrated:"


@final
class Source:
    """A foreign checkpoint, opened: its headers are checked, nothing of it is executed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        found = registry.read(place)
        notes = (*found.notes, *left_out(found.root))
        self._contents: Contents = dataclasses.replace(found, notes=notes)

    @property
    def format(self) -> str:
        """The name of its format, such as `torch-zip`."""
        return self._contents.format

    @property
    def producer(self) -> str | None:
        """The program and version that wrote it, where the bytes tell."""
        return self._contents.producer

    @property
    def files(self) -> tuple[str, ...]:
        """The files it consists of, relative to its folder."""
        return self._contents.files

    def tree(self) -> Any:
        """Return all it holds, as the source arranges it; arrays are `Lazy`."""
        return self._contents.root

    def arrays(self) -> Iterator[tuple[Path, Lazy]]:
        """Yield (path, array) in the source's order; `np.asarray(array)` reads one.

        A path is a tuple of str and int. Arrays have the source's dtype and shape. Where the
        source's file is not compressed, what is read is a view of it and costs no memory.
        NumPy scalars count as arrays without axes.

        Raises:
            FormatError: the source unfolds to too many values.
        """
        for path, leaf in walk(self._contents.root):
            if isinstance(leaf, Lazy):
                if leaf.items is None:  # else an array of no objects
                    yield path, leaf
            elif isinstance(leaf, np.generic):
                yield path, Lazy.of(np.asarray(leaf))

    @functools.cached_property
    def layout(self) -> Layout:
        """Where each part goes: sections, counters, settings."""
        with refusing("cannot be arranged", files=self.files):
            return arrange(self._contents)

    @functools.cached_property
    def report(self) -> Report:
        """Every item and where it goes, and the digests of the files, which are read for it."""
        return report(self._contents, self.layout, self._place.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What a migration did."""

    checkpoint: Checkpoint
    report: Report
    new: bool  # False: the store had it already, nothing was written
    verified: int | None  # arrays read back and compared; None if not asked


def open(
    source: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Source:
    """Open a foreign checkpoint: a file, a folder, a prefix, or any part of a sharded set.

    On the local disk or behind any URL that fsspec knows; files behind a URL are fetched into
    scratch files when they are first looked at.

    What it is is told by its bytes, never by its name. Nothing in it is executed, imported or
    extracted; see docs/migration.md for what is read and how.

    Raises:
        NotFoundError: nothing is there, or a part is missing.
        UnsupportedError: no reader knows these bytes, or a reader needs an extra.
        FormatError: and its kinds, when it is damaged or unsafe.
    """
    text = os.fspath(source)
    if "://" in text and not text.startswith(LOCAL):
        return Source(remote_place(text, storage_options))
    return Source(place(text))


def migrate(
    source: str | os.PathLike[str] | Source,
    store: str | os.PathLike[str] | Store,
    *,
    verify: bool = False,
    scratch: str | None = None,
    progress: Progress | None = None,
) -> Migrated:
    """Commit a foreign checkpoint as the next checkpoint of a store.

    One commit: a crash leaves all of it or nothing, and calling again goes on; a source that
    the store has already is recognised by the digests of its files. Memory is bounded by the
    largest array and the pickled objects around the arrays; what cannot be mapped goes through
    a scratch file. Provenance and the whole report are stored as artifact `migration.json`.

    Args:
        verify: Read every array back from the store and compare it with the source's.
        scratch: Folder for the scratch file.
        progress: Called with (phase, done, total bytes).

    Raises:
        IntegrityError: with `verify`: what was stored differs from the source.
        FormatError: and its kinds, when the source is damaged or unsafe; nothing is written.
        ConflictError, BackendError: as in `Store.save`.
    """
    opened = source if isinstance(source, Source) else open(source)
    if isinstance(store, Store):
        return _migrate(opened, store, verify, scratch, progress)
    with ckptfmt.open(store) as target:
        return _migrate(opened, target, verify, scratch, progress)


def _migrate(
    source: Source, store: Store, verify: bool, scratch: str | None, progress: Progress | None
) -> Migrated:
    told = source.report
    tag = f"{TAG}{told.identity[:32]}"
    present = next((one for one in store if tag in one.tags), None)
    layout = source.layout
    if scratch is not None and not os.path.isdir(scratch):
        raise UsageError("the scratch folder does not exist", found=scratch)
    with Spool(scratch) as spool:
        lazies = _unique(layout)
        _fill(spool, lazies, progress)
        found, _ = stored(layout, spool.array)
        checkpoint = present or store.save(
            found.state,
            counters=found.counters,
            hyperparameters=found.settings.get("hyperparameters"),
            architecture=found.settings.get("architecture"),
            artifacts={ARTIFACT: told.artifact(ckptfmt.__version__)},
            tags=[tag],
            parent=None,
            progress=progress,
        )
        verified = _compare(checkpoint, found.state, progress) if verify else None
        del found
    return Migrated(checkpoint=checkpoint, report=told, new=present is None, verified=verified)


def _unique(layout: Layout) -> list[Lazy]:
    lazies = [leaf for _, leaf in walk(layout.state) if isinstance(leaf, Lazy)]
    return list({id(lazy): lazy for lazy in lazies if lazy.items is None}.values())


def _fill(spool: Spool, lazies: list[Lazy], progress: Progress | None) -> None:
    total = sum(lazy.nbytes for lazy in lazies)
    done = 0
    for lazy in lazies:
        spool.take(lazy)
        done += lazy.nbytes
        if progress is not None:
            progress("reading", done, total)


def _compare(checkpoint: Checkpoint, state: Any, progress: Progress | None) -> int:
    """Read every array back and compare it with the source's, bit by bit."""
    total = sum(info.nbytes for info in checkpoint.arrays.values())
    done = count = 0
    for path in checkpoint.arrays:
        stored = np.asarray(checkpoint.lazy(path))
        source = np.asarray(tree.lookup(state, path))
        same = source.shape == stored.shape and _bytes(source) == _bytes(stored)
        if not same:
            raise IntegrityError(
                "what was stored differs from the source", path=path, url=checkpoint.url
            )
        count += 1
        done += stored.nbytes
        del stored, source  # before the next one is read
        if progress is not None:
            progress("comparing", done, total)
    return count


def _bytes(array: Any) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
