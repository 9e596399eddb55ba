"""Finding checkpoints in a store: by number, newest, by metric, by examples, by address."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptfmt._engine import catalog
from ckptfmt._engine.catalog import Catalog, Listed, Memory
from ckptfmt._engine.lineage import with_late
from ckptfmt._engine.notes import Notes
from ckptfmt._engine.source import Place
from ckptfmt._engine.threads import side_by_side
from ckptfmt._store.checkpoint import Checkpoint
from ckptfmt._store.facts import Origin
from ckptfmt.backends.base import Backend, Entry
from ckptfmt.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptfmt.format import layout
from ckptfmt.format.manifest import Ancestor, Head, Manifest, decode_head
from ckptfmt.format.tables import FileRow
from ckptfmt.options import expect
from ckptfmt.training import retention, selection

_log: Final = logging.getLogger("ckptfmt")

ALL: Final = "all"  # lineages


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The reading half of a store; `Store` documents what its methods promise."""

    backend: Backend
    memory: Memory
    notes: Notes
    url: str
    threads: int
    verified: set[tuple[str, int]]  # chunks that mapped arrays have verified already
    loaded: Callable[[], Callable[[Checkpoint, bool], None] | None]  # see `Origin.loaded`
    beyond: Shelf | None = None  # of a mirror: has what is not here any more, or not yet

    def scan(self) -> Catalog:
        """List the manifests."""
        return catalog.scan(self.backend, self.memory)

    def all(self) -> list[Checkpoint]:
        """Return the loadable checkpoints, oldest first; those of a mirror, too."""
        own = self.own()
        if self.beyond is None:
            return own
        here = {checkpoint.number for checkpoint in own}
        own += [far for far in self.beyond.all() if far.number not in here]
        return sorted(own, key=lambda checkpoint: checkpoint.number)

    def own(self) -> list[Checkpoint]:
        """Return the loadable checkpoints of this store alone, oldest first."""
        now, attached = self._together(self.scan, self.notes.all)
        return [self._of(now, row, attached) for row in now.live()]

    def has(self, number: int) -> bool:
        """Tell whether a checkpoint is here or in a mirror, and its head verifies."""
        row = self.scan().listed(number)
        if row is not None and row.status == catalog.OK:
            return True
        return self.beyond is not None and self.beyond.has(number)

    def number(self, number: Any) -> Checkpoint:
        """Return checkpoint `number`, or raise what is wrong with it."""
        expect("number", number, int, np.integer)
        now, attached = self._together(lambda: self._scan_for(int(number)), self.notes.all)
        found = now.readable(int(number))
        if found is None and self.beyond is not None:
            return self.beyond.number(number)
        if found is None:
            known = now.listed(int(number)) is not None
            raise NotFoundError(
                "checkpoint was deleted" if known else "no such checkpoint",
                number=number,
                url=self.url,
                present=[r.number for r in now.live()][-10:],
            )
        return self._of(now, found[0], attached)

    def _scan_for(self, number: int | None) -> Catalog:
        """List the manifests and fetch one of them, the newest by default."""
        now = self.scan()
        now.fetch(now.top if number is None else number)
        return now

    def _together(self, *tasks: Callable[[], Any]) -> list[Any]:
        return side_by_side(tasks, self.backend.capabilities.requests)

    def latest(self) -> Checkpoint:
        """Return the newest complete checkpoint, here or in a mirror."""
        if self.beyond is None:
            return self._latest()
        found: list[Checkpoint] = []
        for look in (self.beyond.latest, self._latest):
            with contextlib.suppress(NotFoundError):
                found.append(look())
        if not found:
            raise NotFoundError("no loadable checkpoint", url=self.url, mirror=self.beyond.url)
        return max(reversed(found), key=lambda checkpoint: checkpoint.number)

    def complete(self, number: int) -> bool:
        """Tell whether a checkpoint can be read and has all its data files, now."""
        try:
            found = self.scan().readable(number)
            if found is not None:
                _check_files(found[1], self._data_files())
        except FormatError:
            return False
        return found is not None

    def _latest(self) -> Checkpoint:
        """Return the newest complete checkpoint here; damaged ones are passed over, aloud."""
        now, attached, present = self._together(
            lambda: self._scan_for(None), self.notes.all, self._data_files
        )
        damaged: list[int] = []
        for number in reversed(now.numbers):
            try:
                found = now.readable(number)
                if found is None:
                    continue
                if _missing(found[1], present) is not None:
                    # A commit may be younger than that listing: only a later one can tell.
                    present = self._data_files()
                _check_files(found[1], present)
            except UnsupportedError:
                raise
            except FormatError as error:
                row = now.listed(number)
                if row is not None and row.head is not None and self.changed(row.head):
                    return self._latest()  # deleted or slimmed since the listing
                _log.warning("checkpoint %d is damaged and passed over: %s", number, error)
                damaged.append(number)
                continue
            return self._of(now, found[0], attached)
        raise NotFoundError(
            "no loadable checkpoint" if damaged else "no checkpoint yet",
            url=self.url,
            damaged=damaged,
        )

    def _data_files(self) -> dict[str, Entry]:
        return self.backend.list(layout.DATA)

    def history(self, lineage: str | None = None) -> list[selection.Point]:
        """Return the points of a lineage, deleted ones included, oldest first."""
        expect("lineage", lineage, str, type(None))
        present = self.all()
        if lineage == ALL:
            newest = self._newest_of_each(present)
        else:
            newest = [self.latest() if lineage is None else self._of_id(present, lineage)]
        loadable = {checkpoint.id: checkpoint for checkpoint in present}
        gone = any(row.id not in loadable for end in newest for row in end.history)
        attached = self.notes.all() if gone else {}  # also to what was deleted since
        found: dict[str, selection.Point] = {}
        for end in newest:
            for row in end.history:
                if row.id not in found:
                    at = loadable.get(row.id)
                    late = with_late(row, attached.get(row.id, {}))
                    found[row.id] = _past(late) if at is None else point(at)
            found[end.id] = point(loadable.get(end.id, end))
        if lineage == ALL:
            return sorted(found.values(), key=lambda one: one.number)
        return list(found.values())

    def _newest_of_each(self, present: list[Checkpoint]) -> list[Checkpoint]:
        found = {checkpoint.number: checkpoint for checkpoint in present}
        points = [point(checkpoint) for checkpoint in present]
        ends = retention.tips(points, lambda n: [row.id for row in found[n].history])
        return [found[number] for number in sorted(ends)]

    def _of_id(self, present: list[Checkpoint], prefix: str) -> Checkpoint:
        fitting = [checkpoint for checkpoint in present if checkpoint.id.startswith(prefix)]
        if not prefix or not fitting:
            raise NotFoundError("no checkpoint has this id", id=prefix, url=self.url)
        if len(fitting) > 1:
            raise ambiguous(fitting, id=prefix)
        return fitting[0]

    def stored(self, lineage: str | None = None) -> list[selection.Point]:
        """Return those points of a lineage that can be loaded."""
        return [one for one in self.history(lineage) if one.stored]

    def resolve(self, address: str) -> Checkpoint:
        """Return what an address names."""
        match address.split(":"):
            case ["latest"]:
                return self.latest()
            case [number] if number.isascii() and number.isdecimal():
                return self.number(int(number))
            case ["best", metric]:
                return self.best(metric, "min")
            case ["best", *metric, ("min" | "max") as mode]:
                return self.best(":".join(metric), mode)
            case ["examples", n] if n.isascii() and n.isdecimal():
                return self.at(int(n))
            case ["id", prefix]:
                return self._of_id(self.all(), prefix)
            case ["tag", *name]:
                tag = ":".join(name)
                tagged = [c for c in self.all() if tag in c.tags]
                if not tagged:
                    raise NotFoundError("no checkpoint has this tag", tag=tag, url=self.url)
                return tagged[-1]
        raise UsageError(
            "expected a number, latest, best:METRIC[:max], examples:N, tag:NAME or id:PREFIX",
            found=address,
        )

    def best(self, metric: str, mode: str, lineage: str | None = None) -> Checkpoint:
        """Return the best checkpoint by a metric."""
        try:
            return self.number(selection.best(self.stored(lineage), metric, mode).number)
        except NotFoundError as error:
            every = [] if lineage else [point(checkpoint) for checkpoint in self.all()]
            if not (others := selection.ranked(every, metric, mode)):
                raise
            raise _elsewhere("has a value of this metric", others, metric=metric) from error

    def at(self, examples: int, lineage: str | None = None) -> Checkpoint:
        """Return the newest checkpoint that has seen at most so many examples."""
        try:
            found = selection.all_at(self.stored(lineage), examples=examples)
        except NotFoundError as error:
            every = [] if lineage else [point(checkpoint) for checkpoint in self.all()]
            others = [one for one in every if one.seen is not None and one.seen <= examples]
            if not others:
                raise
            raise _elsewhere("has seen so few", others, examples=examples) from error
        chosen = self.number(found[-1].number)
        line = {row.id for row in chosen.history} | {chosen.id}
        if any(one.id not in line for one in found):
            raise ambiguous([self.number(one.number) for one in found], examples=examples)
        return chosen

    def committed(self, data: bytes, manifest: Manifest) -> Checkpoint:
        """Return the checkpoint whose manifest was just written."""
        return Checkpoint(decode_head(data), self._origin(lambda: manifest, {}))

    def _of(
        self, now: Catalog, row: Listed, attached: Mapping[str, Mapping[str, Any]]
    ) -> Checkpoint:
        if row.head is None:
            raise FormatError(str(row.reason), number=row.number)
        fields = attached.get(row.head.summary.id or "", {})
        return Checkpoint(row.head, self._origin(lambda: now.manifest(row), fields))

    def _origin(self, manifest: Callable[[], Manifest], attached: Mapping[str, Any]) -> Origin:
        return Origin(
            backend=self.backend,
            url=self.url,
            manifest=manifest,
            places=_places,
            attached=attached,
            threads=self.threads,
            verified=self.verified,
            loaded=self.loaded,
            changed=self.changed,
        )

    def changed(self, head: Head) -> NotFoundError | None:
        """Return why data of a checkpoint may be gone: who looks again finds it deleted or
        revised (spec §8.2.7); None when it is as it was."""
        number = head.summary.number
        now = self.scan().listed(number)
        if now is None or now.status == catalog.TOMBSTONE:
            return NotFoundError(
                "checkpoint was deleted meanwhile", number=number, url=self.url
            )
        if now.summary is None or now.revision == head.summary.revision:
            return None
        return NotFoundError(
            "checkpoint was slimmed meanwhile: ask the store for what is left of it",
            number=number,
            revision=now.revision,
            dropped=now.summary.dropped,
            url=self.url,
        )


def _missing(manifest: Manifest, present: Mapping[str, Entry]) -> FileRow | None:
    """Return the first data file that a listing does not show in its full length."""
    for file in manifest.tables.files:
        entry = present.get(file.key)
        if entry is None or entry.nbytes != file.nbytes:
            return file
    return None


def _check_files(manifest: Manifest, present: Mapping[str, Entry]) -> None:
    file = _missing(manifest, present)
    if file is not None:
        entry = present.get(file.key)
        raise IntegrityError(
            "data file is missing or has another length",
            file=file.key,
            expected=file.nbytes,
            found=None if entry is None else entry.nbytes,
        )


def _places(manifest: Manifest) -> list[Place]:
    return [Place(f.key, 8 + f.header_nbytes) for f in manifest.tables.files]


def point(checkpoint: Checkpoint) -> selection.Point:
    """Return a checkpoint as a point on the axis of its run."""
    seen = checkpoint.counters.get("seen")
    return selection.Point(
        number=checkpoint.number,
        id=checkpoint.id,
        seen=seen if type(seen) is int else None,
        time=checkpoint.time_us,
        metrics=checkpoint.metrics,
        process=checkpoint.writer.get("process"),
    )


def _past(row: Ancestor) -> selection.Point:
    return selection.Point(
        number=row.number,
        id=row.id,
        seen=row.seen,
        time=row.time,
        metrics=row.metrics,
        process=row.process,
        stored=False,
    )


def _elsewhere(what: str, others: list[selection.Point], **asked: object) -> NotFoundError:
    """Return the error of a question that only other lineages can answer."""
    return NotFoundError(
        f"no checkpoint that the newest one continues {what}, others have: pass lineage='all'",
        **asked,
        others=[one.number for one in others][:10],
    )


def ambiguous(candidates: list[Checkpoint], **asked: object) -> UsageError:
    """Return the error of an address that names several checkpoints."""
    return UsageError(
        "several checkpoints fit; name one of them by number",
        **asked,
        candidates=[(found.number, found.id) for found in candidates],
    )
