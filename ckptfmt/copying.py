"""Checkpoints of one store, copied into another: the same numbers, the same identities."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckptfmt._engine.copy import Copied, Copier
from ckptfmt._store import marker
from ckptfmt._store.bundle import SUFFIX
from ckptfmt._store.store import Store
from ckptfmt.api import open, split_address
from ckptfmt.backends import open_backend
from ckptfmt.backends.base import Backend
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.options import (
    Progress,
    Sources,
    default_threads,
    expect,
    expect_numbers,
    expect_progress,
)


def copy(
    source: str | os.PathLike[str] | Store,
    target: str | os.PathLike[str] | Store,
    *,
    numbers: Iterable[int] | None = None,
    dry_run: bool = False,
    read_back: bool = True,
    durable: bool = True,
    threads: int | None = None,
    source_options: dict[str, object] | None = None,
    target_options: dict[str, object] | None = None,
    sources: Sources | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy checkpoints to another store, with their annotations; from any URL to any URL.

    Each keeps its number and every byte of its manifest, so also its identity. Data goes first,
    then the manifest, in order of the numbers: what is visible at the target is complete. Data
    files that are there are not moved again: a copy that was stopped, killed too, goes on where
    it was. What is deleted on one side is neither deleted nor brought back on the other. Both
    stores may be in use meanwhile; what is not committed is not copied.

    Args:
        source: A store, or an address such as `runs/a@12` or `runs/a@best:val_loss`.
        target: Another store; it may be new, or hold other checkpoints.
        numbers: Only these; None is all that can be read, others are passed over, aloud.
        dry_run: Only tell what would be copied.
        read_back: Digest what the target gives back. Without, only what the source gave is
            digested, and at the target lengths are compared.
        durable: False skips every fsync at the target.
        source_options, target_options: For the fsspec file systems of the URLs.
        threads, sources: As in `open`.
        progress: Called with ("checkpoint N", done, total bytes of that checkpoint).

    Raises:
        NotFoundError: no store there, or no such checkpoint.
        ConflictError: the target has, or got meanwhile, another checkpoint under a number;
            nothing of it was changed.
        IntegrityError: a chunk of the source is damaged, or the target returns others; names
            path, file and offset. The checkpoint is not visible.
        FormatError: a checkpoint in `numbers` cannot be read.
        BackendError: storage failed; calling again goes on where it stopped.
    """
    chosen = None if numbers is None else expect_numbers("numbers", numbers)
    expect_progress(progress)
    own, number = _source(source, source_options)
    if number is not None and numbers is not None:
        raise UsageError("the address names one checkpoint: give no numbers", found=number)
    there = _target(target, target_options)
    copier = Copier(
        source=own,
        target=there,
        sources=sources or Sources(),
        threads=_threads(threads),
        durable=durable,
        read_back=read_back,
        progress=progress,
    )
    _prepare(own, there, dry_run=dry_run, durable=durable)
    return copier.copy(chosen if number is None else [number], dry_run=dry_run)


def _threads(count: int | None) -> int:
    expect("threads", count, int, type(None))
    if count is not None and count < 1:
        raise UsageError("expected threads >= 1", argument="threads", found=count)
    return count or default_threads()


def _prepare(source: Backend, target: Backend, *, dry_run: bool, durable: bool) -> None:
    """Refuse a target that is something else, or the source; make a new one a store."""
    marker.check_apart(source, target)
    marked = marker.check(target)
    if not dry_run:
        marker.warn_of_limits(target)
        if not marked:
            marker.leave(target, durable=durable)


def _source(
    source: str | os.PathLike[str] | Store, options: dict[str, object] | None
) -> tuple[Backend, int | None]:
    """Return the backend of a store that exists, and the number that an address names."""
    if isinstance(source, Store):
        _without_options(source, options)
        return source.backend, None
    expect("source", source, str, os.PathLike, Store)
    url, which = split_address(os.fspath(source))
    store = open(_no_bundle(url), storage_options=options)
    if which is not None:
        return store.backend, store.resolve(which).number
    if not store.entries() and not marker.check(store.backend):
        raise NotFoundError("no store here", url=store.url)
    return store.backend, None


def _target(
    target: str | os.PathLike[str] | Store, options: dict[str, object] | None
) -> Backend:
    if isinstance(target, Store):
        _without_options(target, options)
        return target.backend
    expect("target", target, str, os.PathLike, Store)
    return open_backend(_no_bundle(os.fspath(target)), storage_options=options)


def _without_options(store: Store, options: dict[str, object] | None) -> None:
    if options:
        raise UsageError("a store has its storage options already", options=sorted(options))


def _no_bundle(url: str) -> str:
    if url.endswith(SUFFIX):
        raise UsageError("a bundle is one file: use pack and unpack", found=url)
    return url
