"""Examples are the clock of a run: what was seen, what falls due, and where it stops.

    progress = Progress(dataset_size=1_000_000, stop_point=14.3, virtual_epochs=15)
    due = progress.advance(len(batch))      # after each step, over all workers
    if due.checkpoint:
        store.save(state, counters=progress.state())
    if due.stop:
        ...

Steps and epochs change their meaning with the batch size, the data and the number of workers;
examples do not. The rules: docs/virtual-epochs.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ckptfmt.errors import UsageError
from ckptfmt.training import record
from ckptfmt.training.exact import total_of, whole
from ckptfmt.training.grid import Grid
from ckptfmt.training.plan import Plan, plan
from ckptfmt.training.record import AUTO, Counting, Due, Parent, Record
from ckptfmt.training.segment import ASYNC, SYNC, Segment, passes


class Progress(Counting):
    """The examples a run has seen, on a grid of virtual epochs.

    Pure bookkeeping: no clock, no files, no framework. One object belongs to one stream of
    data; several models trained on one stream share it. `state` is a plain tree that belongs
    into the counters of each checkpoint, `restore` brings it back: work that was lost in a
    crash is not counted. Not safe to be changed from several threads at once.

    Args:
        virtual_epochs: Into how many pieces, each ending with a checkpoint, `total` is cut.
        total: Examples at which the run stops.
        dataset_size, stop_point: Instead of `total`: examples in the data set, and how often
            they are passed over, in exact decimals; the product is rounded half to even.
        dataset: What identifies the data, such as a digest or a version.
        global_batch, world, accumulation: How the run is fed, for the record; the edges do
            not depend on them. With `accumulation` > 1 a checkpoint and the stop wait until
            the optimizer has used the gradients, unless `stores_accumulators`.
        consistency: `async` when workers push on their own: see `acknowledge`.
        stores_accumulators: Gradients that wait for the update are part of the checkpoints.
        stream: Name of the stream of data, where there are several.
        parent: (id, seen) of the checkpoint this run was fine-tuned from; save the first
            checkpoint with `parent=None`, since a new lineage begins.
        seen: Examples in the weights of a run that began without this bookkeeping.

    Raises:
        UsageError: a count is not an integer or out of range, neither or both of `total` and
            `stop_point` are given, there are more virtual epochs than examples (the message
            has the largest number), or `seen` is beyond the total.
    """

    def __init__(
        self,
        *,
        virtual_epochs: int,
        total: int | None = None,
        dataset_size: int | None = None,
        stop_point: object = None,
        dataset: str | None = None,
        global_batch: int | None = None,
        world: int = 1,
        accumulation: int = 1,
        consistency: str = SYNC,
        stores_accumulators: bool = False,
        stream: str = "train",
        parent: tuple[str, int] | None = None,
        seen: int = 0,
    ) -> None:
        n = whole("virtual_epochs", virtual_epochs, least=1)
        begun = whole("seen", seen)
        grid = Grid.of(total_of(total, dataset_size, stop_point), n)
        if begun > grid.total:
            raise UsageError("the stop point is below seen", total=grid.total, seen=begun)
        segment = Segment(
            from_seen=0,
            global_batch=global_batch,
            dataset_size=dataset_size,
            dataset=dataset,
            world=world,
            accumulation=accumulation,
            consistency=consistency,
        )
        k = grid.reached(begun)
        self._record = Record(
            grid=grid,
            seen=begun,
            applied=begun,
            last=k,
            completed_from=k,
            due_seen=begun,
            segments=(segment,),
            stores_accumulators=stores_accumulators,
            stream=stream,
            parent=None if parent is None else Parent(parent[0], whole("parent", parent[1])),
        )

    @classmethod
    def restore(cls, counters: Mapping[str, Any]) -> Progress:
        """Return the progress that was saved in a checkpoint's counters.

        Batches after that checkpoint will be shown again to its weights and are counted
        then. Micro-batches whose gradients waited for an update that never came, and were not
        stored, count as seen and as skipped.

        Raises:
            NotFoundError: the counters hold none.
            FormatError: they do not fit together.
        """
        found = cls.__new__(cls)
        found._record = record.parse(counters)
        return found

    def state(self) -> dict[str, Any]:
        """Return everything as plain values, to be saved as counters."""
        return self._record.plain()

    def __repr__(self) -> str:
        return (
            f"<Progress {self.seen:,} of {self.total:,} examples, "
            f"virtual epoch {float(self.position):.2f} of {self.virtual_epochs}>"
        )

    # ---- asking

    @property
    def seen(self) -> int:
        """Examples in the weights' lineage: the real sizes of all batches, all workers."""
        return self._record.seen

    @property
    def applied(self) -> int:
        """Examples that went into an update of the weights."""
        return self._record.applied

    @property
    def skipped(self) -> int:
        """Examples whose update was skipped or lost; seen = applied + skipped + waiting."""
        return self._record.skipped

    @property
    def updates(self) -> int:
        """Updates of the weights, informational; compare it with the optimizer's own count."""
        return self._record.updates

    @property
    def total(self) -> int:
        """Examples at which the run stops."""
        return self._record.grid.total

    @property
    def virtual_epochs(self) -> int:
        """n: number of virtual epochs, and of the last edge."""
        return self._record.grid.n

    @property
    def virtual_epoch(self) -> int:
        """k: how many virtual epochs are complete."""
        return self._record.last

    @property
    def position(self) -> Fraction:
        """The place in virtual epochs, exact: 14.5 is half-way from edge 14 to edge 15."""
        return self._record.grid.position(self.seen)

    @property
    def fraction(self) -> float:
        """seen / total, for schedules that must not depend on the batch size."""
        return self.seen / self.total

    @property
    def passes(self) -> Fraction | None:
        """How often the data was passed over, or None when its size was not declared."""
        return passes(self.segments, self.seen)

    @property
    def remaining(self) -> int:
        """Examples to the stop; `min(batch, remaining)` trims the last batch to hit it."""
        return max(0, self.total - self.seen)

    @property
    def complete(self) -> bool:
        """Whether these weights are those of an edge; False in the middle of an epoch."""
        return self.seen == self._record.due_seen

    @property
    def segments(self) -> tuple[Segment, ...]:
        """How the run was fed, oldest first."""
        return self._record.segments

    @property
    def extensions(self) -> tuple[tuple[int, int, int], ...]:
        """Where the stop point moved: (examples seen then, old total, new total)."""
        return self._record.extensions

    @property
    def parent(self) -> Parent | None:
        """The checkpoint this run was fine-tuned from."""
        return self._record.parent

    @property
    def stream(self) -> str:
        """Name of the stream of data."""
        return self._record.stream

    @property
    def units(self) -> Mapping[str, int]:
        """What else was counted, such as tokens."""
        return dict(self._record.units)

    def edge(self, k: int) -> int:
        """Return the examples at which virtual epoch `k` ends; edge(n) is the total.

        Raises:
            UsageError: there is no such edge.
        """
        if whole("k", k) > self.virtual_epochs:
            raise UsageError("no such virtual epoch", k=k, virtual_epochs=self.virtual_epochs)
        return self._record.grid.edge(k)

    def acknowledged(self, worker: str) -> int:
        """Return the count of a worker that is in `seen`: where it goes on after a restart."""
        return self._record.workers.get(worker, 0)

    def plan(self, batch_size: int) -> Plan:
        """Return the steps that are left with batches of this size, and their edges.

        Raises:
            UsageError: the batch size is no integer >= 1.
        """
        return plan(self._record.grid, self.seen, whole("batch_size", batch_size, least=1))

    def fit_arguments(self, batch_size: int) -> dict[str, int]:
        """Return epochs, steps_per_epoch and initial_epoch for Keras' `fit`; see `Plan`.

        Raises:
            UsageError: the batch size is no integer >= 1.
        """
        return self.plan(batch_size).fit_arguments()

    # ---- counting

    def advance(
        self,
        batch_examples: int,
        *,
        update: str = AUTO,
        units: Mapping[str, int] | None = None,
    ) -> Due:
        """Count one batch, and tell what falls due.

        Args:
            batch_examples: Its real size over all workers: the last batch of a pass is often
                smaller, and what a loader dropped was not seen. Weights, masks and
                augmentation do not change it.
            update: What became of the gradients: `auto` (an update after as many batches as
                `accumulation` says), or `applied`, `skipped` (not finite, say) or `none`
                (they wait) where the loop decides for itself.
            units: What else to count, by name, such as `{"tokens": 8192}`.

        Raises:
            UsageError: the size is no integer >= 1, or the run is asynchronous.
        """
        if update is AUTO and units is None and type(batch_examples) is int:
            due = self._since.counted(batch_examples)
            if due is not None:
                return due
        now = self._record
        if now.segments[-1].consistency == ASYNC:
            raise UsageError(
                "workers of an asynchronous run are counted with acknowledge(worker, count)"
            )
        examples = whole("batch_examples", batch_examples, least=1)
        return self._settle(now.counted(examples, update, units or {}))

    def acknowledge(self, worker: str, count: int) -> Due:
        """Count what a worker of an asynchronous run has pushed, and tell what falls due.

        `seen` is the sum of the workers' counts. Call it where the gradient is applied,
        with the count that came with it. Repeated and late messages change nothing; a worker
        that was restarted goes on from `acknowledged(worker)`.

        Args:
            worker: Its name, which stays when it is restarted.
            count: All examples it has ever pushed, this push included.

        Raises:
            UsageError: the run is not asynchronous, or the count is no integer >= 0.
        """
        now = self._record
        if now.segments[-1].consistency != ASYNC:
            raise UsageError(
                "only an asynchronous run acknowledges: pass consistency='async', or count"
                " the global batch with advance()"
            )
        if not isinstance(worker, str) or not worker:
            raise UsageError(f"a worker is named by a str, got {worker!r}")
        new = whole("count", count) - self.acknowledged(worker)
        return self._settle(now.pushed(worker, new) if new > 0 else now)

    def _settle(self, now: Record) -> Due:
        """Take over what was counted, and find what falls due with it."""
        self._record, due = now.settled()
        return due

    # ---- declaring

    def declare(
        self,
        *,
        global_batch: int | None = None,
        dataset_size: int | None = None,
        dataset: str | None = None,
        world: int | None = None,
        accumulation: int | None = None,
        consistency: str | None = None,
        data_replay: bool = False,
    ) -> Segment:
        """Record that the run is fed differently from here on; no edge moves.

        What is not given stays as it is. Training on grown data with the old total is such a
        change; a new total is `extend`.

        Args:
            data_replay: The position in the data was lost, examples may come twice.

        Raises:
            UsageError: a value is out of range, or gradients are waiting for an update.
        """
        now = self._record
        given: dict[str, Any] = {
            "global_batch": global_batch,
            "dataset_size": dataset_size,
            "dataset": dataset,
            "world": world,
            "accumulation": accumulation,
            "consistency": consistency,
        }
        segment = dataclasses.replace(
            now.segments[-1],
            from_seen=now.seen,
            data_replay=data_replay,
            **{name: value for name, value in given.items() if value is not None},
        )
        self._record = now.declared(segment)
        return self._record.segments[-1]

    def extend(
        self,
        *,
        total: int | None = None,
        stop_point: object = None,
        virtual_epochs: int | None = None,
        regrid: bool = False,
    ) -> Due:
        """Move the stop point, and tell what falls due with it.

        New edges go on at the old gap and the last one is the new total, so that old numbers
        keep their meaning. A stop point below `seen` stops the run at once; nothing is
        deleted.

        Args:
            total: Examples at which the run stops.
            stop_point: Instead of it: passes over a data set of the size declared last.
            virtual_epochs, regrid: With `regrid=True`, what is left is divided evenly so
                that the last edge has this number.

        Raises:
            UsageError: neither or both of total and stop_point are given, the number of
                virtual epochs would change without `regrid=True`, or nothing is left.
        """
        now = self._record
        wanted = total_of(total, now.segments[-1].dataset_size, stop_point)
        if regrid:
            n = self.virtual_epochs if virtual_epochs is None else virtual_epochs
            grid = now.grid.divided(
                after=now.last,
                start=max(now.seen, now.grid.edge(now.last)),
                total=wanted,
                n=whole("virtual_epochs", n, least=1),
            )
        else:
            grid = now.grid.moved(wanted)
            if virtual_epochs is not None and virtual_epochs != grid.n:
                raise UsageError(
                    "at the old gap there are more or fewer virtual epochs: pass regrid=True"
                    " to change the gap",
                    expected=grid.n,
                    found=virtual_epochs,
                )
        return self._settle(now.extended(grid))
