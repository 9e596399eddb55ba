"""A store: a run's checkpoints at one URL."""

from __future__ import annotations

import dataclasses
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from ckptfmt import tree
from ckptfmt._engine import request
from ckptfmt._engine.catalog import Listed, Memory
from ckptfmt._engine.lineage import Lineage
from ckptfmt._engine.notes import Notes
from ckptfmt._store import marker
from ckptfmt._store.alter import Alterable
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.mirror import Mirror
from ckptfmt._store.pending import PendingSave
from ckptfmt._store.saving import AUTO, Auto, Job, Saving
from ckptfmt._store.shelf import Shelf
from ckptfmt.backends.base import Backend
from ckptfmt.checks.environment import Recorder
from ckptfmt.checks.probe import Probe
from ckptfmt.errors import StateError, UsageError
from ckptfmt.group import Group
from ckptfmt.options import Progress, WriteOptions, expect, expect_progress
from ckptfmt.training import retention
from ckptfmt.training.selection import Point

_log: Final = logging.getLogger("ckptfmt")


class Store(Alterable):
    """The checkpoints at one URL. Made by `ckptfmt.open`.

    One object belongs to one training process; other processes open their own. Methods may be
    called from several threads; saves then follow one another. After a fork the child can go on
    using it for reading; a save that was pending stays with the parent. Use it as a context
    manager, or call `close`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        options: WriteOptions,
        keep: retention.Keep | None = None,
        mirror: Store | None = None,
    ) -> None:
        self._recorder = Recorder()
        shelf = Shelf(
            backend=backend,
            memory=Memory(),
            notes=Notes(backend),
            url=backend.url,
            threads=options.threads,
            verified=set(),
            loaded=weakref.WeakMethod(self._told),
        )
        if mirror is not None:
            marker.check_apart(backend, mirror.backend)
            beyond = dataclasses.replace(mirror._shelf, loaded=shelf.loaded)
            shelf = dataclasses.replace(shelf, beyond=beyond)
        super().__init__(shelf, Saving(shelf, options, keep), options)
        self._saving.check_marker()
        if mirror is not None:
            own = Mirror(shelf, mirror._shelf, options=options, retain=mirror._saving.tidy)
            self._saving.mirror = own
            own.wake()  # goes on with what a killed process has not copied

    def _told(self, checkpoint: Checkpoint, whole: bool) -> None:
        if whole:
            self._saving.loaded(checkpoint)
        else:
            self._saving.filling()

    def __repr__(self) -> str:
        return f"<Store {self._shelf.url!r}>"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception:
            # The error that is already on its way out must not be replaced, nor this one lost.
            _log.exception("while leaving the store %s", self._shelf.url)

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self._shelf.url

    @property
    def backend(self) -> Backend:
        """The storage underneath, for those who know what they do."""
        return self._shelf.backend

    def close(self) -> None:
        """Wait for a pending save and for the mirror, and release their memory.

        Raises:
            Exception: one of them failed and nobody has seen it yet.
        """
        with self._saving.held():
            try:
                self._saving.finish()
            finally:
                self._saving.release()

    # ---- saving

    def check(self, state: Mapping[str, Any]) -> list[StateError]:
        """Return everything in a state tree that could not be stored; nothing is written.

        Ask at the first step of a run instead of learning it days in.
        """
        return tree.check(state)

    def save(
        self,
        state: Mapping[str, Any],
        *,
        counters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        hyperparameters: Any = None,
        architecture: Any = None,
        preprocessing: Any = None,
        artifacts: Mapping[str, bytes | os.PathLike[str]] | None = None,
        probe: Probe | None = None,
        environment: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        parent: Checkpoint | Auto | None = AUTO,
        progress: Progress | None = None,
        group: Group | None = None,
        timeout_seconds: float = 600.0,
        frozen: str | Iterable[str] = (),
        verify_frozen: bool = False,
    ) -> Checkpoint:
        """Commit one checkpoint and apply the retention rules.

        Atomic: a crash leaves the complete checkpoint or none. Durable on return (unless opened
        with `durable=False`). Chunks that did not change since the parent are referenced, not
        written. The arrays must not change until it returns.

        Args:
            state: Nested dict, list, tuple of arrays and plain values; str keys at the root.
            counters, metrics: Plain values, `seen` counts training examples; name to number.
            hyperparameters, architecture, preprocessing: Plain values.
            environment: The same, beside what is found out by itself; no secrets.
            artifacts, probe: File name to content or path; what a load is to be proven by.
            tags, progress: Names for people; called with (phase, done, total bytes).
            parent: The checkpoint this one continues: by default the one that was saved through
                this store or loaded whole from it, whichever came last; None begins a new
                lineage. Whoever begins one beside others without saying so is warned once.
            group: The processes that save together, each with its own part of the state; the
                rest is taken from rank 0. See docs/many-ranks.md.
            timeout_seconds: With a group: how long to wait for news from another rank.
            frozen: Globs over the paths of arrays that, on your word, did not change since the
                last save through this store, such as "model/backbone.*": they are referenced
                without a look. If one did change, its old bytes are stored. Looked at all the
                same: what that save had not under its path, dtype and shape; everything, after
                a save that failed, a load into memory, or with another parent.
            verify_frozen: Look at them nevertheless; the log names those that did change, and
                they are stored as they are.

        Raises:
            StateError: a value cannot be stored exactly; nothing was written.
            MismatchError: ranks disagree about a path; nothing was written.
            ConflictError: another writer uses this store; nothing of theirs was changed.
            BackendError: storage failed; the message says when the outcome is unknown.
        """
        described = hyperparameters, architecture, preprocessing, environment
        with self._saving.held():
            job = self._job(
                state, counters, metrics, tags, artifacts, probe, described, parent, progress,
                group, timeout_seconds, frozen, verify_frozen,
            )  # fmt: skip
            return self._saving.run(job)

    def save_async(
        self,
        state: Mapping[str, Any],
        *,
        counters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        hyperparameters: Any = None,
        architecture: Any = None,
        preprocessing: Any = None,
        artifacts: Mapping[str, bytes | os.PathLike[str]] | None = None,
        probe: Probe | None = None,
        environment: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        parent: Checkpoint | Auto | None = AUTO,
        progress: Progress | None = None,
        group: Group | None = None,
        timeout_seconds: float = 600.0,
        frozen: str | Iterable[str] = (),
        verify_frozen: bool = False,
    ) -> PendingSave:
        """Copy the state and commit it in the background; arguments as in `save`.

        Returns when the private copy is made: the arrays may change at once. One save is in
        flight at a time: a second call first waits for the one before, and raises its failure
        if nobody has seen it. The copy's memory is kept for the next save until `close`.

        Raises:
            StateError: a value cannot be stored exactly.
            Exception: the failure of the save before.
        """
        described = hyperparameters, architecture, preprocessing, environment
        with self._saving.held():
            job = self._job(
                state, counters, metrics, tags, artifacts, probe, described, parent, progress,
                group, timeout_seconds, frozen, verify_frozen,
            )  # fmt: skip
            return self._saving.begin(job)

    def _job(
        self,
        state: Mapping[str, Any],
        counters: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
        tags: Iterable[str],
        artifacts: Mapping[str, bytes | os.PathLike[str]] | None,
        probe: Probe | None,
        described: tuple[Any, Any, Any, Mapping[str, Any] | None],
        parent: Checkpoint | Auto | None,
        progress: Progress | None,
        group: Group | None,
        timeout_seconds: float,
        frozen: str | Iterable[str],
        verify_frozen: bool,
    ) -> Job:
        expect("probe", probe, Probe, type(None))
        expect_progress(progress)
        expect("environment", described[3], Mapping, type(None))
        names = "hyperparameters", "architecture", "preprocessing"
        metadata = dict(zip(names, described[:3], strict=True))
        if group is not None:
            _check_group(group)
        leads = group is None or group.rank == 0

        def payload(shards: bool) -> request.Payload:
            return request.payload(
                state,
                counters=counters,
                metrics=metrics,
                tags=tags,
                artifacts=artifacts,
                metadata={
                    **metadata,
                    "environment": self._recorder.capture(extra=described[3]),
                },
                probe=probe.tree() if probe is not None and leads else None,
                shards=shards,
                frozen=frozen,
                verify_frozen=verify_frozen,
            )

        return self._saving.prepare(payload, parent, progress, group, timeout_seconds)

    def commit(
        self,
        payload: request.Payload,
        lineage: Lineage | None = None,
        *,
        progress: Progress | None = None,
    ) -> Checkpoint:
        """Commit what was checked and flattened elsewhere; for code in this package."""
        with self._saving.held():
            self._saving.settle()
            after = lineage or self._saving.lineage(AUTO)
            once = lineage is not None
            job = Job(payload=payload, lineage=after, progress=progress, once=once)
            return self._saving.run(job)

    # ---- asking

    def latest(self) -> Checkpoint:
        """Return the newest checkpoint that is complete.

        Damaged ones, and those with missing data files, are passed over with a warning.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: the newest one needs a newer ckptfmt.
        """
        self._saving.raise_unseen()
        return self._shelf.latest()

    def best(self, metric: str, *, mode: str = "min", lineage: str | None = None) -> Checkpoint:
        """Return the checkpoint with the lowest (or highest) value of a metric.

        NaN is never best; of equal ones the earlier is. `lineage` is that of `history`.

        Raises:
            NotFoundError: no checkpoint has that metric.
            UsageError: mode is neither `min` nor `max`.
        """
        expect("metric", metric, str)
        self._saving.raise_unseen()
        return self._shelf.best(metric, mode, lineage)

    def at(self, *, examples: int, lineage: str | None = None) -> Checkpoint:
        """Return the newest checkpoint whose counter `seen` is at most `examples`.

        Raises:
            NotFoundError: all have seen more, or none has that counter.
            UsageError: several lineages have one; the message lists them.
        """
        self._saving.raise_unseen()
        return self._shelf.at(examples, lineage)

    def history(self, *, lineage: str | None = None) -> list[Point]:
        """Return the course of the run, oldest first: examples seen, metrics, time.

        Deleted checkpoints are in it (`stored` is False), late metrics too. `lineage` is None
        for `latest` and all it continues, the beginning of an id for that checkpoint and all
        it continues, or "all".
        """
        self._saving.raise_unseen()
        return self._shelf.history(lineage)

    def __getitem__(self, number: int) -> Checkpoint:
        """Return checkpoint `number`.

        Raises:
            NotFoundError: there is none, or it was deleted.
            FormatError: and its kinds, when it is damaged or too new.
        """
        self._saving.raise_unseen()
        return self._shelf.number(number)

    def __contains__(self, number: object) -> bool:
        """Tell whether checkpoint `number` is there and its head verifies."""
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            return False
        return self._shelf.has(int(number))

    def __iter__(self) -> Iterator[Checkpoint]:
        """Iterate over the checkpoints whose heads verify, oldest first."""
        return iter(self._shelf.all())

    def __len__(self) -> int:
        return len(self._shelf.all())

    def entries(self) -> list[Listed]:
        """Return every number of the store: loadable, damaged, too new, or deleted."""
        return self._shelf.scan().all()

    def resolve(self, address: str) -> Checkpoint:
        """Return what an address names: `12`, `latest`, `best:val_loss`, `best:acc:max`,
        `examples:1000000`, `tag:name` (the newest with that tag) or `id:0f3a`.

        Raises:
            UsageError: not an address.
            NotFoundError: it names nothing.
        """
        expect("address", address, str)
        self._saving.raise_unseen()
        return self._shelf.resolve(address)


def _check_group(group: Group) -> None:
    """Refuse what is no group before anybody waits for it."""
    rank, size = getattr(group, "rank", None), getattr(group, "size", None)
    if not (isinstance(rank, int) and isinstance(size, int) and 0 <= rank < size):
        reason = "expected a group of processes with 0 <= rank < size"
        raise UsageError(reason, argument="group", found=type(group), rank=rank, size=size)
