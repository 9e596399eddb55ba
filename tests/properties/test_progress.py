"""Runs of any batches, workers, crashes and changes: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ckptfmt.training import Due, Progress

TOTALS = st.integers(1, 500) | st.integers(1, 2**62)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int]:
    """Draw a total and a number of virtual epochs that fits it."""
    total = draw(TOTALS)
    return total, draw(st.integers(1, min(total, 100)))


@given(grids())
def test_edges_ascend_to_the_total_in_even_gaps(grid: tuple[int, int]) -> None:
    total, n = grid
    progress = Progress(total=total, virtual_epochs=n)

    edges = [progress.edge(k) for k in range(n + 1)]

    assert (edges[0], edges[-1], progress.virtual_epochs) == (0, total, n)
    assert edges == [k * total // n for k in range(n + 1)]
    gaps = {b - a for a, b in itertools.pairwise(edges)}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


@given(grids(), st.integers(1, 4), st.booleans(), st.lists(st.integers(1, 90), max_size=40))
def test_batches_that_are_counted_quickly_are_counted_as_all_others(
    grid: tuple[int, int], accumulation: int, stores: bool, sizes: list[int]
) -> None:
    """Where nothing falls due no record is made; a NumPy integer always makes one."""
    total, n = grid
    quick, slow = (
        Progress(
            total=total, virtual_epochs=n, accumulation=accumulation, stores_accumulators=stores
        )
        for _ in range(2)
    )
    for number, size in enumerate(sizes):
        assert quick.advance(size) == slow.advance(np.int64(size))
        if number % 7 == 6:
            quick.declare(global_batch=number)
            slow.declare(global_batch=number)
    assert quick.state() == slow.state()
    assert Progress.restore(quick.state()).state() == Progress.restore(slow.state()).state()


@given(grids(), st.integers(1, 2**40), st.data())
def test_a_plan_is_what_a_run_does(
    grid: tuple[int, int], batch: int, data: st.DataObject
) -> None:
    total, n = grid
    batch = max(batch, -(-total // 300))
    seen = data.draw(st.integers(0, total))
    progress = Progress(total=total, virtual_epochs=n, seen=seen)
    plan = progress.plan(batch)

    steps, stops = 0, []
    while progress.remaining:
        due = progress.advance(batch)
        steps += 1
        if due.checkpoint:
            stops.append((due.virtual_epoch, len(due.completed), steps, due.seen))

    assert plan.steps == steps
    assert [(s.virtual_epoch, s.completed, s.step, s.seen) for s in plan.stops()] == stops
    assert progress.seen - total == (plan.overshoot if steps else 0)
    assert plan.naive_shown + plan.naive_lost == total
    assert 0 <= plan.naive_lost < batch * n
    if steps:
        assert (steps - 1) * batch + plan.last_batch == total - seen


@given(
    grids(),
    st.lists(st.integers(1, 200), min_size=1, max_size=200),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.integers(0, 199), max_size=5),
)
def test_a_run_with_crashes_is_the_uninterrupted_one(
    grid: tuple[int, int], batches: list[int], accumulation: int, stores: bool, crashes: Any
) -> None:
    """Killed anywhere, it goes on from the last checkpoint; the batches come again."""
    total, n = grid
    setup: Any = {
        "total": total,
        "virtual_epochs": n,
        "accumulation": accumulation,
        "stores_accumulators": stores,
    }
    whole = Progress(**setup)
    expected = [due for size in batches if (due := whole.advance(size)).checkpoint]

    progress, found, saved, at = Progress(**setup), [], None, 0
    pending = sorted(set(crashes))
    step = 0
    while step < len(batches):
        if pending and step >= pending[0]:
            pending.pop(0)
            progress = Progress(**setup) if saved is None else Progress.restore(saved)
            step = at
            continue
        due = progress.advance(batches[step])
        step += 1
        if due.checkpoint:
            saved, at = progress.state(), step
            found.append(due)

    assert found == expected
    assert progress.state() == whole.state()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60)), max_size=200))
def test_asynchronous_counts_are_the_largest_of_each_worker(
    pushes: list[tuple[str, int]],
) -> None:
    """In any order, repeated or late; each edge fires once."""
    progress = Progress(total=100, virtual_epochs=20, consistency="async")
    completed: list[int] = []

    for worker, count in pushes:
        completed += progress.acknowledge(worker, count).completed

    largest = {w: max(c for v, c in pushes if v == w) for w, _ in pushes}
    assert progress.seen == sum(largest.values())
    assert completed == list(range(1, min(progress.seen, 100) * 20 // 100 + 1))


class Run(RuleBasedStateMachine):
    """A run whose batches, data, workers and stop point change, and which is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress(dataset_size=100, stop_point=10, virtual_epochs=10)
        self.saved = self.progress.state()
        self.sizes: list[int] = []  # of the batches in the weights
        self.kept = 0  # of these, at the last save
        self.edges: dict[int, int] = {0: 0}  # those reached: k to examples
        self.kept_edges: dict[int, int] = {0: 0}
        self.last_save = -1
        self.passes = Fraction(0)
        self.kept_passes = Fraction(0)

    def settle(self, due: Due) -> None:
        assert due.seen == sum(self.sizes)
        for k in due.completed:
            assert k not in self.edges, "an edge fired twice"
            self.edges[k] = self.progress.edge(k)
            assert self.edges[k] <= due.seen
        assert due.stop == (due.seen >= self.progress.total)
        if due.checkpoint:
            assert due.seen != self.last_save, "saved twice at the same weights"
            self.last_save = due.seen
            self.saved, self.kept = self.progress.state(), len(self.sizes)
            self.kept_edges, self.kept_passes = dict(self.edges), self.passes

    @rule(size=st.integers(1, 250))
    def step(self, size: int) -> None:
        self.sizes.append(size)
        self.passes += Fraction(size, self.progress.segments[-1].dataset_size or 0)
        self.settle(self.progress.advance(size))

    @rule(size=st.integers(50, 500), world=st.integers(1, 4))
    def declare(self, size: int, world: int) -> None:
        before = [self.progress.edge(k) for k in range(self.progress.virtual_epochs + 1)]
        self.progress.declare(dataset_size=size, world=world)
        after = [self.progress.edge(k) for k in range(self.progress.virtual_epochs + 1)]
        assert before == after

    @rule(total=st.integers(1, 2000))
    def extend(self, total: int) -> None:
        self.settle(self.progress.extend(total=total))
        assert self.progress.edge(self.progress.virtual_epochs) == total

    @rule(total=st.integers(1, 2000), more=st.integers(1, 10))
    def regrid(self, total: int, more: int) -> None:
        start = self.progress.seen
        if total - start >= more:
            n = self.progress.virtual_epoch + more
            self.settle(self.progress.extend(total=total, virtual_epochs=n, regrid=True))
            assert self.progress.virtual_epochs == n

    @rule()
    def crash(self) -> None:
        self.progress = Progress.restore(self.saved)
        del self.sizes[self.kept :]
        self.edges, self.passes = dict(self.kept_edges), self.kept_passes
        self.last_save = -1

    @rule()
    def restart(self) -> None:
        state = self.progress.state()
        self.progress = Progress.restore(state)
        assert self.progress.state() == state

    @invariant()
    def the_sum_is_exact(self) -> None:
        assert self.progress.seen == sum(self.sizes)
        assert self.progress.passes == self.passes

    @invariant()
    def edges_that_were_reached_do_not_move(self) -> None:
        n = self.progress.virtual_epochs
        total = self.progress.total
        for k, examples in self.edges.items():
            if k <= n and examples <= total:
                assert self.progress.edge(k) == examples

    @invariant()
    def edges_ascend(self) -> None:
        edges = [self.progress.edge(k) for k in range(self.progress.virtual_epochs + 1)]
        assert edges == sorted(set(edges))
        assert edges[-1] == self.progress.total

    @invariant()
    @precondition(lambda self: self.progress.remaining)
    def the_next_edge_is_ahead(self) -> None:
        assert self.progress.edge(self.progress.virtual_epoch + 1) > self.progress.seen
        assert self.progress.virtual_epoch <= self.progress.position


TestRun = Run.TestCase
