"""What a run's progress consists of, and its form as plain values in counters."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ckptfmt.errors import FormatError, NotFoundError, UsageError
from ckptfmt.training import segment as segments
from ckptfmt.training.exact import reason, whole
from ckptfmt.training.grid import Grid, Piece
from ckptfmt.training.segment import Segment

KEY: Final = "progress"  # counter that holds what no other tool needs
_COUNTS: Final = ("skipped", "updates", "waiting", "window", "completed_from", "due_seen")


AUTO: Final = "auto"
UPDATES: Final = (AUTO, "applied", "skipped", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What falls due after a step."""

    checkpoint: bool  # save now; never twice for the same weights
    virtual_epoch: int  # k: so many are complete
    completed: range  # those that this step completed; more than one when it skipped some
    stop: bool  # the stop point is reached
    seen: int  # examples in the weights


class Parent(NamedTuple):
    """The checkpoint a run was fine-tuned from."""

    id: str
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One moment of a run. seen = applied + skipped + waiting."""

    grid: Grid
    seen: int  # examples in the weights' lineage
    applied: int  # of these, used in updates
    skipped: int = 0  # of these, never to be used
    waiting: int = 0  # of these, in gradients that wait for an update
    window: int = 0  # batches that wait for an update
    updates: int = 0  # of the weights
    last: int  # k: number of the last edge that fell due
    completed_from: int  # first number that fell due together with it
    due_seen: int  # examples when a checkpoint last fell due
    stopped: bool = False  # the caller was told to stop
    segments: tuple[Segment, ...]  # ascending, at least one
    extensions: tuple[tuple[int, int, int], ...] = ()  # (seen, old total, new total)
    workers: Mapping[str, int] = field(default_factory=dict)  # examples of each, if async
    units: Mapping[str, int] = field(default_factory=dict)  # what else is counted
    stores_accumulators: bool
    stream: str
    parent: Parent | None

    def counted(self, examples: int, update: str, units: Mapping[str, int]) -> Record:
        """Return the record with one batch more, whose gradients became `update`."""
        if update not in UPDATES:
            raise UsageError(f"update must be one of {', '.join(UPDATES)}, got {update!r}")
        window = self.window + 1
        if update == AUTO:
            full = window >= self.segments[-1].accumulation
            update = "applied" if full else "none"
        waiting = self.waiting + examples
        used = waiting if update == "applied" else 0
        lost = waiting if update == "skipped" else 0
        return dataclasses.replace(
            self,
            seen=whole("seen", self.seen + examples),
            applied=self.applied + used,
            skipped=self.skipped + lost,
            updates=self.updates + (update == "applied"),
            waiting=waiting - used - lost,
            window=window if update == "none" else 0,
            units=_added(self.units, units) if units else self.units,
        )

    def pushed(self, worker: str, examples: int) -> Record:
        """Return the record with examples more of one worker."""
        return dataclasses.replace(
            self,
            seen=whole("seen", self.seen + examples),
            applied=self.applied + examples,
            updates=self.updates + 1,
            workers={**self.workers, worker: self.workers.get(worker, 0) + examples},
        )

    def settled(self) -> tuple[Record, Due]:
        """Return what falls due, and the record once that has been noted.

        While gradients wait and would be lost, nothing falls due.
        """
        if self.window and not self.stores_accumulators:
            return self, self._due(self, checkpoint=False)
        k = max(self.last, self.grid.reached(self.seen))
        stop = self.seen >= self.grid.total
        # A stop between two edges, after the stop point was lowered, has weights to save too.
        new = k > self.last or (stop and not self.stopped)
        due = new and self.seen > self.due_seen
        if not new and stop == self.stopped:
            return self, self._due(self, checkpoint=False)
        noted = dataclasses.replace(
            self,
            grid=self.grid.kept(k) if k > self.last else self.grid,
            last=k,
            completed_from=self.last + 1 if k > self.last else self.completed_from,
            due_seen=self.seen if due else self.due_seen,
            stopped=stop,
        )
        return noted, self._due(noted, checkpoint=due)

    def _due(self, noted: Record, *, checkpoint: bool) -> Due:
        return Due(
            checkpoint=checkpoint,
            virtual_epoch=noted.last,
            completed=range(self.last + 1, noted.last + 1),
            stop=noted.stopped,
            seen=self.seen,
        )

    def declared(self, segment: Segment) -> Record:
        """Return the record with another segment; one without examples is replaced."""
        old = self.segments[-1]
        if self.window and segment.accumulation != old.accumulation:
            raise UsageError(
                "gradients are waiting for an update: change the accumulation after it",
                batches=self.window,
            )
        if segment == dataclasses.replace(old, from_seen=self.seen, data_replay=False):
            return self  # nothing has changed
        empty = old.from_seen == self.seen
        if empty and old.data_replay:
            segment = dataclasses.replace(segment, data_replay=True)
        kept = self.segments[:-1] if empty else self.segments
        return dataclasses.replace(self, segments=(*kept, segment))

    def extended(self, grid: Grid) -> Record:
        """Return the record with the stop point moved."""
        moved = (self.seen, self.grid.total, grid.total)
        return dataclasses.replace(
            self,
            grid=grid,
            extensions=(*self.extensions, moved),
            stopped=self.stopped and self.seen >= grid.total,
        )

    def plain(self) -> dict[str, Any]:
        """Return it as plain values; what other tools ask for is at the top."""
        return {
            "seen": self.seen,
            "applied": self.applied,
            "total": self.grid.total,
            "virtual_epoch": self.last,
            "complete": self.seen == self.due_seen,
            "consistency": self.segments[-1].consistency,
            KEY: {
                **{name: getattr(self, name) for name in _COUNTS},
                "grid": [list(dataclasses.astuple(piece)) for piece in self.grid.pieces],
                "stopped": self.stopped,
                "segments": [segment.plain() for segment in self.segments],
                "extensions": [list(row) for row in self.extensions],
                "workers": dict(self.workers),
                "units": dict(self.units),
                "stores_accumulators": self.stores_accumulators,
                "stream": self.stream,
                "parent": None if self.parent is None else list(self.parent),
            },
        }


class Batches:
    """Batches with which nothing falls due, counted without a record for each.

    A training step may take 100 microseconds, and a record costs 20 of them.
    """

    __slots__ = (
        "_accumulation", "_applied", "_seen", "_until", "_updates", "_waiting", "_window",
        "count", "record",
    )  # fmt: skip

    def __init__(self, record: Record) -> None:
        last = record.segments[-1]
        told = record.stopped or record.last >= record.grid.n
        calm = not told and last.consistency != segments.ASYNC
        self.record = record  # to which they are added
        self._until = record.grid.edge(record.last + 1) if calm else 0  # below it is calm
        self._accumulation = last.accumulation
        self._seen, self._waiting, self._window = record.seen, record.waiting, record.window
        self._applied = self._updates = self.count = 0

    def counted(self, examples: int) -> Due | None:
        """Count a batch, or return None: it has to be looked at."""
        seen = self._seen + examples
        if seen >= self._until or examples < 1:
            return None
        self._seen = seen
        self._waiting += examples
        self._window += 1
        self.count += 1
        if self._window >= self._accumulation:
            self._applied += self._waiting
            self._updates += 1
            self._waiting = self._window = 0
        k = self.record.last
        none = range(k + 1, k + 1)
        return Due(checkpoint=False, virtual_epoch=k, completed=none, stop=False, seen=seen)

    def added(self) -> Record:
        """Return the record with them."""
        return dataclasses.replace(
            self.record,
            seen=self._seen,
            applied=self.record.applied + self._applied,
            waiting=self._waiting,
            window=self._window,
            updates=self.record.updates + self._updates,
        )


class Counting:
    """Holds a record, and the batches counted since it was made."""

    _since: Batches

    @property
    def _record(self) -> Record:
        if self._since.count:
            self._since = Batches(self._since.added())
        return self._since.record

    @_record.setter
    def _record(self, now: Record) -> None:
        self._since = Batches(now)


def _added(have: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {**have, **{n: whole(n, have.get(n, 0) + whole(n, v)) for n, v in more.items()}}


def segments_in(counters: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the segments in counters as manifests record them (spec §6.8.7), or None.

    Counters of others may have the same name: what is no progress of ours has none.
    """
    inner = counters.get(KEY)
    rows = inner.get("segments") if isinstance(inner, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return None
    return [{name: row.get(name) for name in segments.RECORDED} for row in rows]


def parse(counters: Mapping[str, Any]) -> Record:
    """Return the record that `plain` gave; other counters are left alone.

    Raises:
        NotFoundError: the counters hold no progress.
        FormatError: they do not fit together.
    """
    if KEY not in counters:
        raise NotFoundError(
            "these counters hold no progress: pass counters=progress.state() to save, or"
            " begin with Progress(seen=...)",
            counters=sorted(counters),
        )
    rest = counters[KEY]
    if not isinstance(rest, Mapping):
        raise FormatError("expected a map", at=KEY)
    try:
        found = _record(counters, rest)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:  # ours for bad counts is a ValueError
        raise FormatError("these counters are no progress", cause=reason(error)) from error
    _check(found, counters)
    if found.window and not found.stores_accumulators:
        return dataclasses.replace(
            found, skipped=found.skipped + found.waiting, waiting=0, window=0
        )
    return found


def _record(top: Mapping[str, Any], rest: Mapping[str, Any]) -> Record:
    pieces = tuple(
        Piece(whole("after", a), whole("start", b), whole("num", c, 1), whole("den", d, 1))
        for a, b, c, d in rest["grid"]
    )
    parent = rest["parent"]
    counts = {name: whole(name, rest[name]) for name in _COUNTS}
    return Record(
        **counts,
        grid=Grid(pieces, whole("total", top["total"], least=1)),
        seen=whole("seen", top["seen"]),
        applied=whole("applied", top["applied"]),
        last=whole("virtual_epoch", top["virtual_epoch"]),
        stopped=bool(rest["stopped"]),
        segments=tuple(
            segments.parse(row, f"{KEY}/segments/{n}") for n, row in enumerate(rest["segments"])
        ),
        extensions=tuple(
            (whole("seen", a), whole("total", b, 1), whole("total", c, 1))
            for a, b, c in rest["extensions"]
        ),
        workers={name: whole(name, count) for name, count in rest["workers"].items()},
        units={name: whole(name, count) for name, count in rest["units"].items()},
        stores_accumulators=bool(rest["stores_accumulators"]),
        stream=str(rest["stream"]),
        parent=None if parent is None else Parent(str(parent[0]), whole("parent", parent[1])),
    )


def _check(found: Record, counters: Mapping[str, Any]) -> None:
    """Check that the numbers fit together: nobody may go on from a wrong count."""
    pieces, rows = found.grid.pieces, found.segments
    starts = [row.from_seen for row in rows]
    fits = {
        "seen = applied + skipped + waiting": found.seen
        == found.applied + found.skipped + found.waiting,
        "workers have not pushed more than was seen": sum(found.workers.values()) <= found.seen,
        "the grid begins at 0": bool(pieces) and (pieces[0].after, pieces[0].start) == (0, 0),
        "the grid ascends": all(
            a.start <= b.start > 0 and a.after <= b.after and a != b
            for a, b in itertools.pairwise(pieces)
        ),
        "every gap has an example": all(p.num >= p.den for p in pieces),
        "a segment begins at 0": bool(rows) and starts[0] == 0,
        "segments ascend up to seen": starts == sorted(starts) and starts[-1:] <= [found.seen],
        "a checkpoint fell due within seen": found.due_seen <= found.seen,
        "`complete` is what `due_seen` says": counters.get("complete")
        == (found.seen == found.due_seen),
        "`consistency` is that of the last segment": bool(rows)
        and counters.get("consistency") == rows[-1].consistency,
    }
    broken = [name for name, holds in fits.items() if not holds]
    if broken:
        raise FormatError("these counters do not fit together", broken=broken)
