"""A second place for the checkpoints of a store, filled in the background.

Saves commit to the near store and return; one thread copies what is new to the far one, in
order. What the rules would drop nearby waits until the far commit can be read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import final

from ckptfmt._engine import catalog, notes
from ckptfmt._engine.catalog import Catalog
from ckptfmt._engine.copy import Copier
from ckptfmt._store import marker
from ckptfmt._store.pending import PendingSave
from ckptfmt._store.shelf import Shelf
from ckptfmt.errors import NotFoundError
from ckptfmt.options import WriteOptions


@dataclass(slots=True)
class _Worker:
    """What the thread and those who wake it share; under one lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    pid: int = field(default_factory=os.getpid)
    wanted: bool = False  # somebody asked since the last pass began
    running: bool = False
    work: PendingSave | None = None  # the last thread; keeps its failure until somebody saw it


@final
class Mirror:
    """Copies from a near store to a far one."""

    def __init__(
        self,
        near: Shelf,
        far: Shelf,
        *,
        options: WriteOptions,
        retain: Callable[[], None],
    ) -> None:
        self._near = near
        self._far = far
        self._options = options
        self._retain = retain  # applies the far store's own rules
        self._worker = _Worker()
        self.top = far.scan().top  # highest number known there: the next save goes above it

    def wake(self) -> None:
        """Copy what is new, in the background; returns at once.

        A failure that nobody has seen is kept: the next call on the store raises it, and the
        one after that tries again.
        """
        own = self._mine()
        with own.lock:
            own.wanted = True
            if own.running or (own.work is not None and own.work.failed_unseen()):
                return
            own.running = True
            own.work = PendingSave(self._run, lost="checkpoints were NOT copied to the mirror")
            own.work.start()

    def raise_unseen(self) -> None:
        """Raise the failure of the thread, if nobody has seen it."""
        if (work := self._mine().work) is not None:
            work.raise_unseen()

    def settle(self) -> None:
        """Wait until all is copied.

        Raises:
            Exception: it failed, and nobody has seen it.
        """
        if (work := self._mine().work) is not None:
            work.settle()

    def safe(self, numbers: Iterable[int]) -> set[int]:
        """Return those of the numbers whose far commit can be read, its files present.

        One that was deleted there was there: dropping it here loses nothing that the far
        store's own rules would keep.
        """
        chosen = sorted(numbers)
        far = self._far.scan() if chosen else None
        return {n for n in chosen if far is not None and self._is_safe(n, far)}

    def _is_safe(self, number: int, far: Catalog) -> bool:
        here, there = self._near.scan().listed(number), far.listed(number)
        if here is None or there is None or here.summary is None or there.summary is None:
            return False
        if here.summary.id != there.summary.id:
            return False
        return there.status == catalog.TOMBSTONE or self._far.complete(number)

    def _mine(self) -> _Worker:
        if self._worker.pid != os.getpid():  # a child: the thread is the parent's
            self._worker = _Worker()
        return self._worker

    def _run(self, cancelled: Callable[[], bool]) -> None:
        own = self._worker
        ended = False  # once it is, another thread may be running already
        try:
            while True:
                with own.lock:
                    if not own.wanted:
                        own.running = False
                        ended = True
                        return
                    own.wanted = False
                self._pass(cancelled)
        finally:
            if not ended:
                with own.lock:
                    own.running = False

    def _pass(self, cancelled: Callable[[], bool]) -> None:
        """Copy every checkpoint that the far store lacks, then annotations."""
        near, far = self._near.scan(), self._far.scan()
        todo = [row.number for row in near.live() if self._lacks(far, row)]
        if todo and not marker.check(self._far.backend):
            marker.leave(self._far.backend, durable=self._options.durable)
        for number in todo:
            copier = Copier(
                source=self._near.backend,
                target=self._far.backend,
                sources=self._options.sources,
                threads=self._options.threads,
                durable=self._options.durable,
                cancelled=cancelled,
            )
            with contextlib.suppress(NotFoundError):  # deleted here meanwhile
                copier.copy([number])
                self.top = max(self.top, number)
        self._annotate(far)
        if todo:
            self._retain()

    def _lacks(self, far: Catalog, row: catalog.Listed) -> bool:
        there = far.listed(row.number)
        if there is None or there.summary is None or row.summary is None:
            return True
        return there.summary.id != row.summary.id  # the copy says that it is a conflict

    def _annotate(self, far: Catalog) -> None:
        """Bring annotations that were attached after their checkpoint was copied."""
        here, there = notes.names(self._near.backend), notes.names(self._far.backend)
        alive = {row.summary.id for row in far.live() if row.summary is not None}
        for id_, names in here.items():
            if id_ in alive and not set(names) <= set(there.get(id_, ())):
                notes.transfer(
                    self._near.backend,
                    self._far.backend,
                    names,
                    there.get(id_, ()),
                    durable=self._options.durable,
                )
