"""One attempt to save: its number, its intent and its base; then its commit (spec §8.2.4).

Order: read base → intent → validate the base again … manifest → read back. What lies between,
the data files, is written by `save` or, for many ranks, by `ranks`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Listed, Memory
from ckptfmt._engine.commit import commit
from ckptfmt._engine.leases import Leases, discard
from ckptfmt._engine.lineage import Lineage
from ckptfmt._engine.request import Payload
from ckptfmt._engine.threads import side_by_side
from ckptfmt.backends.base import Backend
from ckptfmt.errors import (
    BackendError,
    CancelledError,
    CheckpointError,
    ConflictError,
    UsageError,
)
from ckptfmt.format import layout
from ckptfmt.format.manifest import Ancestor, Manifest
from ckptfmt.options import FENCE_SECONDS, WriteOptions
from ckptfmt.pause import gc_paused

_log: Final = logging.getLogger("ckptfmt")

NEW: Final = ""  # stands for the id of the save itself

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to save, and after what."""

    payload: Payload
    lineage: Lineage  # what it continues
    writer: Mapping[str, str]
    expected_top: int | None  # highest number the caller knows of; None: any
    above: int = 0  # highest number taken elsewhere, in a mirror
    last: str | None = None  # id of what this process saved last: it knows those bytes
    process: str | None = None  # id of the first checkpoint of this process, or NEW; not told
    late: Callable[[], Mapping[str, Mapping[str, Any]]] = dict  # reads the annotations, by id
    progress: Progress | None = None
    cancelled: Callable[[], bool] = lambda: False
    sending: Callable[[Manifest], None] = lambda manifest: None  # told just before the commit


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A save between its intent and its commit."""

    save_id: str
    number: int  # aimed at
    began: float  # by the monotonic clock
    history: Sequence[Ancestor] = ()  # what it continues, late metrics included
    base: Manifest | None = None  # whose unchanged chunks may be referenced
    sent: bool = False  # the manifest may have landed: then nothing may be removed


def begin(backend: Backend, memory: Memory, request: Request, options: WriteOptions) -> Attempt:
    """Choose number and base, announce the save, then validate the base (steps 1 to 3).

    Raises:
        ConflictError, UsageError, BackendError: as in `save`; no intent stays.
    """
    began = options.sources.monotonic()
    lineage = request.lineage
    tasks: list[Callable[[], Any]] = [lambda: catalog.scan(backend, memory)]
    if lineage.history:
        tasks.append(lambda: _late(request))  # beside the listing: no round trip of its own
    before, *late = side_by_side(tasks, backend.capabilities.requests)
    _check_alone(before, request.expected_top)
    base = _base(before, lineage.parent)
    save_id = options.sources.save_id()
    number = max(before.top, request.above) + 1
    if number > layout.MAX_NUMBER:
        raise UsageError("no number is left in this store: begin a new one", highest=before.top)
    own = Attempt(save_id=save_id, number=number, began=began, history=lineage.told(*late))
    leased = False
    try:
        Leases(backend=backend, sources=options.sources).save(
            save_id,
            number=number,
            base=None if base is None else (base[0].number, base[0].revision),
            reuse=() if base is None else [f.key for f in base[1].tables.files],
        )
        if base is not None and catalog.scan(backend, memory).shows(base[0]):
            own.base = base[1]  # else its files may go any moment
        leased = True
    finally:
        if not leased:
            discard(backend, [layout.intent_key(save_id)])
    return own


def publish(
    backend: Backend,
    own: Attempt,
    manifest: Manifest,
    request: Request,
    options: WriteOptions,
) -> bytes:
    """Create the manifest and read it back (steps 7 and 8); return its bytes.

    Raises:
        ConflictError, BackendError, CancelledError: as in `save`; `own.sent` says whether
            anything may be removed.
    """
    with gc_paused():
        data = manifest.encode()
    age = options.sources.monotonic() - own.began
    if age > FENCE_SECONDS / 2:
        raise ConflictError(
            "save took so long that its number may have been given up: save again",
            seconds=int(age),
            expected=FENCE_SECONDS // 2,
        )
    if request.cancelled():
        raise CancelledError("save was cancelled before its commit", number=own.number)
    request.sending(manifest)
    own.sent = True
    key = layout.manifest_key(own.number)
    commit(backend, key, data, save_id=own.save_id, lease=own.save_id, durable=options.durable)
    return data


def _late(request: Request) -> Mapping[str, Mapping[str, Any]]:
    """Return what was annotated; no save fails because that cannot be read."""
    try:
        return request.late()
    except BackendError as error:
        _log.warning("late metrics are left out of the history of this save: %s", error)
        return {}


def _check_alone(now: catalog.Catalog, expected_top: int | None) -> None:
    """Find out a second writer in the same store by numbers that nobody here has written."""
    if expected_top is None:
        return
    for number in range(now.top, expected_top, -1):
        row = now.listed(number)
        if row is not None and row.status != catalog.TOMBSTONE:
            raise ConflictError(
                "another writer committed to this store: two jobs share one folder, or this"
                " process opened it twice; reload the newest checkpoint, then save again",
                number=number,
                by=row.summary.save if row.summary else None,
                expected=expected_top,
            )


def _base(
    now: catalog.Catalog, parent: tuple[int, str] | None
) -> tuple[Listed, Manifest] | None:
    """Return the checkpoint whose unchanged chunks may be referenced: the parent if it lives,
    else the newest loadable one."""
    for row in _candidates(now, parent):
        try:
            manifest = now.manifest(row)
            manifest.summary.features.require("write", number=row.number)
        except CheckpointError as error:
            _log.debug("checkpoint %d is no base for reuse: %s", row.number, error)
            continue
        return row, manifest
    return None


def _candidates(now: catalog.Catalog, parent: tuple[int, str] | None) -> Iterator[Listed]:
    """Yield the parent, then what lives from the newest on; looks at no more than is taken."""
    first = None if parent is None else now.listed(parent[0])
    if parent and first and first.summary is not None and first.summary.id == parent[1]:
        if first.status == catalog.OK:
            yield first
    else:
        first = None
    for number in reversed(now.numbers):
        row = now.listed(number)
        if row is not None and row is not first and row.status == catalog.OK:
            yield row
