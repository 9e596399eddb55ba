"""A whole run on a store: progress, sampler and weights, killed within its saves.

The weights are a digest of the order of all examples they have seen, so that an example lost,
repeated or out of order shows in the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import NotFoundError
from ckptfmt.testing import Crash, FaultyBackend
from ckptfmt.training import Progress, Sampler, agree

MODULUS = 2**61 - 1


def fold(weights: int, examples: list[int]) -> int:
    """Return the weights after a batch: every example and their order matter."""
    for example in examples:
        weights = (weights * 1_000_003 + example + 1) % MODULUS
    return weights


def train(
    backend: Any, *, size: int, total: int, epochs: int, batches: list[int], world: int
) -> ckptfmt.Checkpoint:
    """Train to the stop with so many workers, from wherever the store says the run was."""
    store = ckptfmt.open(backend, durable=False)
    try:
        saved = store.latest()
    except NotFoundError:
        weights = 0
        ranks = [Progress(total=total, virtual_epochs=epochs) for _ in range(world)]
        samplers = [Sampler(size, seed=3) for _ in range(world)]
    else:
        state = saved.load()
        weights = state["model"]["weights"]
        ranks = [Progress.restore(saved.counters) for _ in range(world)]
        samplers = [Sampler.restore(state["data"], size=size) for _ in range(world)]
    for progress in ranks:
        progress.declare(world=world)
    while ranks[0].remaining:
        # The size of the next batch depends on the place, as a schedule would have it.
        count = min(batches[ranks[0].seen % len(batches)], ranks[0].remaining)
        examples = np.empty(count, np.int64)
        for rank, sampler in enumerate(samplers):
            examples[rank::world] = sampler.take(count, rank=rank, world=world)
        weights = fold(weights, examples.tolist())
        dues = [progress.advance(count) for progress in ranks]
        assert len(set(map(repr, dues))) == 1
        if dues[0].checkpoint:
            agree(progress.state() for progress in ranks)
            store.save(
                {"model": {"weights": weights}, "data": samplers[0].state()},
                counters=ranks[0].state(),
            )
    return store.latest()


@settings(max_examples=30)
@given(
    size=st.integers(1, 60),
    total=st.integers(1, 200),
    epochs=st.integers(1, 12),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    lives=st.lists(st.tuples(st.integers(1, 25), st.booleans(), st.integers(1, 4)), max_size=5),
)
def test_a_killed_run_is_the_uninterrupted_one(
    size: int,
    total: int,
    epochs: int,
    batches: list[int],
    lives: list[tuple[int, bool, int]],
) -> None:
    run: dict[str, Any] = {
        "size": size, "total": total, "epochs": min(epochs, total), "batches": batches,
    }  # fmt: skip
    whole, disk = MemoryBackend(), MemoryBackend()
    expected = train(whole, **run, world=1)

    for (
        at,
        after,
        world,
    ) in lives:  # each life ends at some change of the store, or reaches the end
        try:
            train(FaultyBackend(disk, at=at, after=after), **run, world=world)
        except Crash:
            continue
    found = train(disk, **run, world=1)

    assert found.load() == expected.load()
    assert found.counters["seen"] == total
    edges = [c.counters["virtual_epoch"] for c in ckptfmt.open(disk)]
    assert edges == [c.counters["virtual_epoch"] for c in ckptfmt.open(whole)]
    assert [p.seen for p in ckptfmt.open(disk).history()] == [
        p.seen for p in ckptfmt.open(whole).history()
    ]


@pytest.mark.parametrize("forgotten", ["nothing", "progress", "data", "weights"])
def test_what_a_resume_forgets_shows_in_the_end(forgotten: str) -> None:
    """The comparison can fail: each part is needed."""
    run: dict[str, Any] = {"size": 30, "epochs": 4, "batches": [7], "world": 2}
    expected = train(MemoryBackend(), **run, total=100)
    store = ckptfmt.open(MemoryBackend())
    half = train(store.backend, **run, total=50)
    state, progress = half.load(), Progress.restore(half.counters)
    progress.extend(total=100)
    if forgotten == "progress":
        progress = Progress(total=100, virtual_epochs=4)
    elif forgotten == "data":
        state["data"] = Sampler(30, seed=3).state()
    elif forgotten == "weights":
        state["model"]["weights"] = 0
    store.save(state, counters=progress.state())

    same = train(store.backend, **run, total=100).load() == expected.load()
    assert same == (forgotten == "nothing")
