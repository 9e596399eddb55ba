"""A store: a run's checkpoints at one URL."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

from ckptfmt._engine import catalog, request, save
from ckptfmt._engine.catalog import Listed, Memory
from ckptfmt._engine.collect import Collected, Collector, Deleted
from ckptfmt._engine.commit import TombstoneConflictError
from ckptfmt._engine.notes import Notes
from ckptfmt._engine.read import Place
from ckptfmt._engine.stage import Arena
from ckptfmt._engine.threads import Threads
from ckptfmt.backends import open_backend
from ckptfmt.backends.base import Backend
from ckptfmt.checkpoint import Checkpoint, Origin
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import (
    BackendError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptfmt.format import codec as codecs
from ckptfmt.format import digest as digests
from ckptfmt.format import layout
from ckptfmt.format.features import MARKER_VERSION
from ckptfmt.format.manifest import Manifest, decode_head
from ckptfmt.options import Progress, Sources, WriteOptions
from ckptfmt.pending import PendingSave
from ckptfmt.training import retention, selection

_log: Final = logging.getLogger("ckptfmt")

VERSION: Final = "0.1.0"
_ABOUT: Final = (
    "A ckptfmt store: training checkpoints as plain safetensors files in data/, committed by"
    " the manifests in manifests/. Copy data/ first, manifests/ after it, never intents/."
)


class _Auto:
    """The checkpoint the run was last saved to or resumed from."""

    def __repr__(self) -> str:
        return "AUTO"


AUTO: Final = _Auto()


class Store:
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
        name: str | None = None,
    ) -> None:
        self._backend = backend
        self._options = options
        self._keep = keep
        self._url = name or backend.url
        self._memory = Memory()
        self._notes = Notes(backend)
        self._recorder = Recorder()
        self._collector = Collector(
            backend=backend,
            memory=self._memory,
            sources=options.sources,
            writer=_writer(),
            durable=options.durable,
        )
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._arena = Arena()
        self._pending: PendingSave | None = None
        self._top: int | None = None  # highest number we know of; None before the first save
        self._parent: Manifest | None = None
        self._marked = False
        self._warned = False
        self._check_marker()

    def __repr__(self) -> str:
        return f"<Store {self._url!r}>"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception:
            # The error that is already on its way out must not be replaced, nor this one lost.
            _log.exception("while leaving the store %s", self._url)

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self._url

    @property
    def backend(self) -> Backend:
        """The storage underneath, for those who know what they do."""
        return self._backend

    def close(self) -> None:
        """Wait for a pending save and release its memory.

        Raises:
            Exception: the pending save failed and nobody has seen it yet.
        """
        with self._held():
            try:
                self._settle()
            finally:
                self._arena = Arena()

    # ---- saving

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
        tags: Iterable[str] = (),
        parent: Checkpoint | _Auto | None = AUTO,
        progress: Progress | None = None,
    ) -> Checkpoint:
        """Commit one checkpoint and apply the retention rules.

        Atomic: a crash at any moment leaves either the complete checkpoint or none. Durable on
        return (unless opened with `durable=False`). Chunks that did not change since the
        parent are referenced, not written. The arrays must not change until it returns.

        Args:
            state: Nested dict, list, tuple of arrays and plain values; str keys at the root.
            counters: Plain values; `seen` is the number of training examples.
            metrics: Name to number; None for "not measured".
            hyperparameters, architecture, preprocessing: Plain values.
            artifacts: File name to content, or to the path of a file.
            tags: Short names for people.
            parent: The checkpoint this one continues. By default the last one saved through
                this store; before that, the last one loaded whole from it; None begins a
                new lineage.
            progress: Called with (phase, done, total bytes).

        Raises:
            StateError: a value cannot be stored exactly; nothing was written.
            ConflictError: another writer uses this store; nothing of theirs was changed.
            BackendError: storage failed; the message says when the outcome is unknown.
        """
        metadata = {
            "hyperparameters": hyperparameters,
            "architecture": architecture,
            "preprocessing": preprocessing,
        }
        with self._held():
            self._settle()
            payload = self._payload(state, counters, metrics, tags, artifacts, metadata)
            return self._save(payload, self._parent_of(parent), progress, lambda: False)

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
        tags: Iterable[str] = (),
        parent: Checkpoint | _Auto | None = AUTO,
        progress: Progress | None = None,
    ) -> PendingSave:
        """Copy the state and commit it in the background; arguments as in `save`.

        Returns when the private copy is made: the arrays may change at once. One save is in
        flight at a time: a second call first waits for the one before, and raises its failure
        if nobody has seen it. The copy's memory is kept for the next save until `close`.

        Raises:
            StateError: a value cannot be stored exactly.
            Exception: the failure of the save before.
        """
        metadata = {
            "hyperparameters": hyperparameters,
            "architecture": architecture,
            "preprocessing": preprocessing,
        }
        with self._held():
            self._settle()
            payload = self._payload(state, counters, metrics, tags, artifacts, metadata)
            ancestor = self._parent_of(parent)
            with Threads(self._options.threads, "ckptfmt-stage") as threads:
                private = self._arena.copy(payload.flat.leaves, threads)
            payload = request.with_leaves(payload, private)
            self._pending = PendingSave(
                lambda cancelled: self._save(payload, ancestor, progress, cancelled)
            )
            self._pending.start()
            return self._pending

    def _payload(
        self,
        state: Mapping[str, Any],
        counters: Mapping[str, Any] | None,
        metrics: Mapping[str, Any] | None,
        tags: Iterable[str],
        artifacts: Mapping[str, bytes | os.PathLike[str]] | None,
        metadata: Mapping[str, Any],
    ) -> request.Payload:
        return request.payload(
            state,
            counters=counters,
            metrics=metrics,
            tags=tags,
            artifacts=artifacts,
            metadata={**metadata, "environment": self._recorder.capture()},
        )

    def _save(
        self,
        payload: request.Payload,
        parent: Manifest | None,
        progress: Progress | None,
        cancelled: Callable[[], bool],
    ) -> Checkpoint:
        self._mark()
        what = save.Request(
            payload=payload,
            parent=parent,
            writer=_writer(),
            expected_top=self._top,
            progress=progress,
            cancelled=cancelled,
        )
        try:
            saved = save.save(self._backend, self._memory, what, self._options)
        except TombstoneConflictError:
            # Somebody broke the lease, thinking this job dead: once more, under a new save id.
            saved = save.save(self._backend, self._memory, what, self._options)
        self._top = saved.manifest.summary.number
        self._parent = saved.manifest
        self._retain()
        head = decode_head(saved.data)
        return Checkpoint(head, self._origin(lambda: saved.manifest, dict))

    def _parent_of(self, parent: Checkpoint | _Auto | None) -> Manifest | None:
        if isinstance(parent, _Auto):
            return self._parent
        return None if parent is None else parent.manifest

    def _loaded(self, checkpoint: Checkpoint) -> None:
        """Remember what the run was resumed from, until it saves."""
        if self._top is None:
            self._parent = checkpoint.manifest

    def _retain(self) -> None:
        """Apply the rules, and clean up after crashed saves; the commit stands in any case."""
        try:
            victims: set[int] = set()
            if self._keep is not None:
                points = [_point(c) for c in self]
                pinned = {c.number for c in self if "pinned" in c.tags}
                stay = retention.survivors(points, self._keep, pinned)
                victims = {p.number for p in points} - stay
            if victims or self._backend.list(layout.INTENTS):
                self._collector.retire(victims, skip_pinned=True)
        except (BackendError, ConflictError, FormatError, NotFoundError) as error:
            _log.warning("retention will be tried again after the next save: %s", error)

    # ---- asking

    def latest(self) -> Checkpoint:
        """Return the newest checkpoint that is complete.

        Damaged ones, and those with missing data files, are passed over with a warning.

        Raises:
            NotFoundError: there is none.
            UnsupportedError: the newest one needs a newer ckptfmt.
        """
        self._raise_unseen()
        now = catalog.scan(self._backend, self._memory)
        data = None
        damaged = []
        for number in reversed(now.numbers):
            row = now.listed(number)
            if row is None or row.status == catalog.TOMBSTONE:
                continue
            try:
                manifest = self._open_row(now, row)
                data = self._backend.list(layout.DATA) if data is None else data
                for file in manifest.tables.files:
                    if file.key not in data or data[file.key].nbytes != file.nbytes:
                        raise IntegrityError(
                            "data file is missing or has another length",
                            file=file.key,
                            expected=file.nbytes,
                            found=data[file.key].nbytes if file.key in data else None,
                        )
            except UnsupportedError:
                raise
            except FormatError as error:
                _log.warning("checkpoint %d is damaged and passed over: %s", number, error)
                damaged.append(number)
                continue
            return self._checkpoint(now, row)
        raise NotFoundError(
            "no loadable checkpoint" if damaged else "no checkpoint yet",
            url=self._url,
            damaged=damaged,
        )

    def best(self, metric: str, *, mode: str = "min") -> Checkpoint:
        """Return the checkpoint with the lowest (or highest) value of a metric.

        NaN is never best; of equal ones the earlier is.

        Raises:
            NotFoundError: no checkpoint has that metric.
            UsageError: mode is neither `min` nor `max`.
        """
        return self[selection.best(self._points(), metric, mode).number]

    def at(self, *, examples: int) -> Checkpoint:
        """Return the newest checkpoint whose counter `seen` is at most `examples`.

        Raises:
            NotFoundError: all have seen more, or none has that counter.
        """
        return self[selection.at(self._points(), examples=examples).number]

    def __getitem__(self, number: int) -> Checkpoint:
        self._raise_unseen()
        now = catalog.scan(self._backend, self._memory)
        row = now.listed(number) if isinstance(number, int) else None
        if row is None or row.status == catalog.TOMBSTONE:
            raise NotFoundError(
                "no such checkpoint" if row is None else "checkpoint was deleted",
                number=number,
                url=self._url,
                present=[r.number for r in now.live()][-10:],
            )
        self._open_row(now, row)
        return self._checkpoint(now, row)

    def __contains__(self, number: object) -> bool:
        now = catalog.scan(self._backend, self._memory)
        row = now.listed(number) if isinstance(number, int) else None
        return row is not None and row.status == catalog.OK

    def __iter__(self) -> Iterator[Checkpoint]:
        """Iterate over the loadable checkpoints, oldest first."""
        now = catalog.scan(self._backend, self._memory)
        return iter([self._checkpoint(now, row) for row in now.live()])

    def __len__(self) -> int:
        return len(catalog.scan(self._backend, self._memory).live())

    def entries(self) -> list[Listed]:
        """Return every number of the store: loadable, damaged, too new, or deleted."""
        return catalog.scan(self._backend, self._memory).all()

    def resolve(self, address: str) -> Checkpoint:
        """Return what an address names: `12`, `latest`, `best:val_loss`, `best:acc:max`,
        `examples:1000000` or `tag:name` (the newest with that tag).

        Raises:
            UsageError: not an address.
            NotFoundError: it names nothing.
        """
        match address.split(":"):
            case ["latest"]:
                return self.latest()
            case [number] if number.isdecimal():
                return self[int(number)]
            case ["best", metric]:
                return self.best(metric)
            case ["best", *metric, ("min" | "max") as mode]:
                return self.best(":".join(metric), mode=mode)
            case ["examples", n] if n.isdecimal():
                return self.at(examples=int(n))
            case ["tag", *name]:
                tag = ":".join(name)
                tagged = [c for c in self if tag in c.tags]
                if not tagged:
                    raise NotFoundError("no checkpoint has this tag", tag=tag, url=self._url)
                return tagged[-1]
        raise UsageError(
            "expected a number, latest, best:METRIC[:max], examples:N or tag:NAME",
            found=address,
        )

    # ---- changing what is there

    def delete(self, numbers: int | Iterable[int], *, dry_run: bool = False) -> Deleted:
        """Delete checkpoints, and the data that only they reference.

        Other checkpoints are not hurt, whatever they share. The numbers are not reused.

        Raises:
            NotFoundError: no such checkpoint.
            UsageError: it is pinned, or damaged (see `collect`).
        """
        with self._held():
            self._settle()
            chosen = {numbers} if isinstance(numbers, int) else set(numbers)
            return self._collector.retire(chosen, dry_run=dry_run)

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
            UsageError: a number in `forget` is not damaged.
        """
        with self._held():
            self._settle()
            return self._collector.sweep(
                dry_run=dry_run,
                older_than_seconds=older_than_seconds,
                break_lease=break_lease,
                forget=tuple(forget),
            )

    def annotate(self, number: int, fields: Mapping[str, Any]) -> Checkpoint:
        """Attach fields to a committed checkpoint; None removes one.

        `metrics.<name>` adds a late metric, `tags.<name>` a tag; other names are free.

        Raises:
            NotFoundError: no such checkpoint, or it is being deleted.
            StateError: a value is not plain.
        """
        found = self[number]
        checked = request.annotation(fields)
        self._notes.attach(
            self._memory,
            number,
            found.id,
            checked,
            now=self._options.sources.now,
            durable=self._options.durable,
        )
        return self[number]

    def tag(self, number: int, *tags: str) -> Checkpoint:
        """Attach tags. `pinned` protects a checkpoint from deletion and retention."""
        return self.annotate(number, {f"tags.{request.check_tag(t)}": True for t in tags})

    def untag(self, number: int, *tags: str) -> Checkpoint:
        """Remove tags that were attached with `tag`."""
        return self.annotate(number, {f"tags.{request.check_tag(t)}": None for t in tags})

    # ---- inside

    def _points(self) -> list[selection.Point]:
        self._raise_unseen()
        return [_point(checkpoint) for checkpoint in self]

    def _open_row(self, now: catalog.Catalog, row: Listed) -> Manifest:
        """Return the manifest of a row, or raise what is wrong with it."""
        if row.status in (catalog.DAMAGED, catalog.NEWER):
            now.head(row.number, row.revision)
        return now.manifest(row)

    def _checkpoint(self, now: catalog.Catalog, row: Listed) -> Checkpoint:
        head = row.head
        if head is None:
            raise FormatError(str(row.reason), number=row.number)
        id_ = head.summary.id or ""
        return Checkpoint(
            head,
            self._origin(lambda: now.manifest(row), lambda: self._notes.all().get(id_, {})),
        )

    def _origin(
        self,
        manifest: Callable[[], Manifest],
        attached: Callable[[], Mapping[str, Any]],
    ) -> Origin:
        return Origin(
            backend=self._backend,
            url=self._url,
            manifest=manifest,
            places=_places,
            attached=attached,
            threads=self._options.threads,
            loaded=self._loaded,
        )

    def _held(self) -> threading.RLock:
        if self._pid != os.getpid():  # a child: the lock and the save are the parent's
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._pending = None
            self._arena = Arena()
        return self._lock

    def _settle(self) -> None:
        """Wait for the pending save; raise its failure unless somebody has seen it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.settle()

    def _raise_unseen(self) -> None:
        if self._pending is not None and self._pending.belongs_here():
            self._pending.raise_unseen()

    def _check_marker(self) -> None:
        """Refuse a folder that is something else, or a store of another format version."""
        try:
            found = json.loads(self._backend.read(layout.MARKER))
        except NotFoundError:
            return
        except ValueError as error:
            raise FormatError(
                "not a ckptfmt store: its marker is no JSON", url=self._url
            ) from error
        if not isinstance(found, dict) or found.get("format") != "ckptfmt":
            raise FormatError("not a ckptfmt store", url=self._url, found=found)
        if found.get("version") != MARKER_VERSION:
            raise UnsupportedError(
                "store has another format version: upgrade ckptfmt",
                url=self._url,
                expected=MARKER_VERSION,
                found=found.get("version"),
            )
        self._marked = True

    def _mark(self) -> None:
        """Leave the marker, and say once what this backend cannot promise."""
        if not self._backend.capabilities.create_if_absent and not self._warned:
            self._warned = True
            _log.warning(
                "%s cannot create a file only if it is absent: only ONE writer at a time is"
                " safe here",
                self._url,
            )
        if self._marked:
            return
        marker = {"format": "ckptfmt", "version": MARKER_VERSION, "about": _ABOUT}
        try:
            self._backend.create(
                layout.MARKER,
                json.dumps(marker, indent=1).encode() + b"\n",
                durable=self._options.durable,
            )
        except ConflictError:
            self._check_marker()
        self._marked = True


def open(
    url: str | os.PathLike[str] | Backend,
    *,
    keep: retention.Keep | None = None,
    durable: bool = True,
    digest: str | None = None,
    codec: str = codecs.RAW,
    threads: int | None = None,
    storage_options: dict[str, object] | None = None,
    sources: Sources | None = None,
) -> Store:
    """Open the store at a URL; nothing is created before the first save.

    Args:
        url: A path, any URL fsspec knows, or a `Backend`.
        keep: Retention rules, applied after each save; None keeps everything.
        durable: False skips every fsync: faster, and a power cut may then take the newest
            checkpoints (not a killed process: that never does).
        digest: `xxh3-128` (default for a new lineage) or `sha256`; None inherits.
        codec: `raw` or `zstd`.
        threads: For digests, copies and reads; None: by the number of cores.
        storage_options: For the fsspec filesystem of the URL.
        sources: Clock and randomness, for tests.

    Raises:
        UsageError: an argument is out of range.
        FormatError: something else lies there.
        UnsupportedError: a store of another format version.
        BackendError: storage failed.
    """
    options = WriteOptions(
        durable=durable,
        digest=None if digest is None else digests.chosen(digest).name,
        codec=codecs.chosen(codec),
        threads=threads or max(1, min(4, os.cpu_count() or 1)),
        sources=sources or Sources(),
    )
    if isinstance(url, str | os.PathLike):
        backend = open_backend(url, storage_options=storage_options)
    else:
        backend = url
    return Store(backend, options=options, keep=keep)


def _writer() -> dict[str, str]:
    return {"name": "ckptfmt", "version": VERSION, "python": platform.python_version()}


def _places(manifest: Manifest) -> list[Place]:
    return [Place(f.key, 8 + f.header_nbytes) for f in manifest.tables.files]


def _point(checkpoint: Checkpoint) -> selection.Point:
    seen = checkpoint.counters.get("seen")
    return selection.Point(
        number=checkpoint.number,
        id=checkpoint.id,
        seen=seen if type(seen) is int else None,
        time=int(checkpoint.time.timestamp() * 1e6),
        metrics=checkpoint.metrics,
    )
