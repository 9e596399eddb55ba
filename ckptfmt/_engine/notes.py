"""Annotations: small records attached to a checkpoint after its commit (spec §8.6)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Catalog, Memory
from ckptfmt._engine.threads import side_by_side
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import ConflictError, FormatError, IntegrityError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.records import MAX_RECORD_NBYTES, RETENTION, Annotation, Intent, merge
from ckptfmt.format.summary import Summary

_log: Final = logging.getLogger("ckptfmt")

PINNED_TAG: Final = "pinned"
PINNED: Final = f"tags.{PINNED_TAG}"  # the annotation that protects a checkpoint from deletion
_TRIES: Final = 100


class Notes:
    """The annotations of one store; each record is read once, since it never changes."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, Annotation | FormatError] = {}

    def all(self) -> dict[str, dict[str, Any]]:
        """Return the fields in force, by checkpoint id; None hides what was saved.

        A damaged record is passed over with a warning.
        """
        by_id: dict[str, list[Annotation]] = {}
        for name, note in self._read_all():
            if isinstance(note, Annotation):
                by_id.setdefault(name, []).append(note)
        return {id_: merge(own) for id_, own in by_id.items()}

    def pinned(self) -> set[str]:
        """Return the ids of pinned checkpoints.

        One with a damaged record counts as pinned: the record may have said so.
        """
        fields = self.all()
        pinned = {id_ for id_, own in fields.items() if own.get(PINNED)}
        return pinned | {id_ for id_, n in self._read_all() if not isinstance(n, Annotation)}

    def holds(self) -> Callable[[Summary], bool]:
        """Return what tells whether a checkpoint is pinned, by its whole summary."""
        pinned, attached = self.pinned(), self.all()

        def held(summary: Summary) -> bool:
            # A tag of the save itself holds until an annotation removes it.
            own = attached.get(summary.id or "", {})
            return summary.id in pinned or (PINNED_TAG in summary.tags and PINNED not in own)

        return held

    def _read_all(self) -> Iterator[tuple[str, Annotation | FormatError]]:
        found = self._backend.list(layout.ANNOTATIONS)
        names = {key: name for key in found if (name := layout.parse_annotation_key(key))}
        new = [key for key in names if key not in self._known]
        tasks = [functools.partial(self._learn, found[key], names[key]) for key in new]
        side_by_side(tasks, self._backend.capabilities.requests)
        for key, name in names.items():
            known = self._known.get(key)
            if known is None:
                continue  # deleted since the listing
            if isinstance(known, FormatError):
                _log.warning("annotation %s is passed over: %s", key, known)
            yield name[1], known

    def _learn(self, entry: Entry, name: tuple[int, str, int]) -> None:
        with contextlib.suppress(NotFoundError):
            self._known[entry.key] = self._read(entry, name)

    def _read(self, entry: Entry, name: tuple[int, str, int]) -> Annotation | FormatError:
        if entry.nbytes > MAX_RECORD_NBYTES:
            return FormatError("annotation is too large", key=entry.key, found=entry.nbytes)
        try:
            found = Annotation.decode(self._backend.read(entry.key))
        except FormatError as error:
            return error
        if (found.number, found.id, found.n) != name:
            return IntegrityError("annotation lies under another name", key=entry.key)
        return found

    def attach(
        self,
        memory: Memory,
        number: int,
        checkpoint_id: str,
        fields: Mapping[str, Any],
        *,
        now: Callable[[], int],
        durable: bool,
    ) -> None:
        """Attach fields to a checkpoint; None removes one. Durable on return.

        Writes, then reads the leases, then the manifest again: a retention that began before
        is seen here, one that begins later sees the annotation.

        Raises:
            NotFoundError: the checkpoint is gone, or is being deleted and a tag came too late.
            ConflictError: too many writers annotate it at once, or it is being slimmed and a
                tag came too late.
        """
        for _ in range(_TRIES):
            taken = [
                name[2]
                for key in self._backend.list(layout.ANNOTATIONS)
                if (name := layout.parse_annotation_key(key)) and name[1] == checkpoint_id
            ]
            n = max(taken, default=0) + 1
            note = Annotation(number=number, id=checkpoint_id, n=n, time=now(), fields=fields)
            try:
                self._backend.create(
                    layout.annotation_key(number, checkpoint_id, n),
                    note.encode(),
                    durable=durable,
                )
            except ConflictError:
                continue
            break
        else:
            raise ConflictError("could not annotate: too many others do", number=number)
        tagged = any(name.startswith("tags.") and value for name, value in fields.items())
        leases = self._leases(number) if tagged else []
        view = catalog.scan(self._backend, memory)
        for lease in leases:
            _check_not_doomed(lease, view, number)
        row = view.listed(number)
        if row is None or row.summary is None or row.summary.id != checkpoint_id:
            raise NotFoundError("checkpoint was deleted meanwhile", number=number)

    def _leases(self, number: int) -> list[Intent]:
        """Return the leases of deletions and revisions of a checkpoint."""
        found = []
        for key in self._backend.list(layout.INTENTS):
            name = layout.parse_intent_key(key)
            if name is None or name[1] is not None:
                continue
            try:
                intent = Intent.decode(self._backend.read(key))
            except (NotFoundError, FormatError):
                continue
            if number in intent.numbers or (intent.number == number and intent.revision):
                found.append(intent)
        return found


def names(backend: Backend) -> dict[str, list[tuple[int, str, int]]]:
    """Return the names of all annotations by checkpoint id: (number, id, n)."""
    found: dict[str, list[tuple[int, str, int]]] = {}
    for name in map(layout.parse_annotation_key, backend.list(layout.ANNOTATIONS)):
        if name is not None:
            found.setdefault(name[1], []).append(name)
    return found


def transfer(
    source: Backend,
    target: Backend,
    here: Iterable[tuple[int, str, int]],
    there: Iterable[tuple[int, str, int]],
    *,
    durable: bool,
) -> int:
    """Copy the annotations of one checkpoint that the target lacks; return how many.

    Each keeps its name and its bytes. Where the target has another record of that name, its
    fields are attached anew behind those: nothing is overwritten and nothing is lost.

    Args:
        here, there: The names at the source and at the target.
    """
    own, others = list(_read_named(source, here)), list(_read_named(target, there))
    same = {(note.time, repr(note.fields)) for note, _ in others}
    taken = max((note.n for note, _ in others), default=0)
    moved = 0
    for note, data in own:
        if (note.time, repr(note.fields)) in same:
            continue
        for n in range(max(note.n, taken + 1), max(note.n, taken + 1) + _TRIES):
            stored = data if n == note.n else dataclasses.replace(note, n=n).encode()
            key = layout.annotation_key(note.number, note.id, n)
            try:
                target.create(key, stored, durable=durable)
            except ConflictError:
                if target.read(key) != stored:  # else our own, and its reply was lost
                    continue
            moved, taken = moved + 1, n
            break
        else:
            raise ConflictError("could not annotate: too many others do", number=note.number)
    return moved


def _read_named(
    backend: Backend, names: Iterable[tuple[int, str, int]]
) -> Iterator[tuple[Annotation, bytes]]:
    """Yield the readable annotations among `names` in order of n, with their bytes."""
    for name in sorted(names):
        key = layout.annotation_key(*name)
        try:
            data = backend.read(key)
            yield Annotation.decode(data), data
        except NotFoundError:
            continue
        except FormatError as error:
            _log.warning("annotation %s is passed over: %s", key, error)


def _check_not_doomed(lease: Intent, view: Catalog, number: int) -> None:
    """Refuse a tag that may come too late: who holds the lease may have looked before."""
    if lease.kind == RETENTION:
        raise NotFoundError(
            f"checkpoint is being deleted by process {lease.pid} on {lease.host}, so that"
            " the tag may come too late; if that process is dead, `collect` with"
            " break_lease removes its lease when it is a week old",
            number=number,
        )
    if not view.has(number, lease.revision):
        raise ConflictError(
            f"checkpoint is being slimmed by process {lease.pid} on {lease.host}, so that the"
            " tag may come too late: look at what is left of it, then tag it again; if that"
            " process is dead, slim it again or `collect` with break_lease",
            number=number,
        )
