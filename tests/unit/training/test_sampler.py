"""The sampler: one global order, cut in any way."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import FormatError, MismatchError, UnsupportedError, UsageError
from ckptfmt.training import Sampler
from ckptfmt.training.permutation import Permutation

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**62)
GOLDEN = [1, 6, 0, 9, 7, 8, 5, 3, 2, 4, 5, 3, 4, 7, 2, 0, 8, 6, 1, 9]
GOLDEN_LARGE = [435467891270, 457777502829, 940085066888]


def order(sampler: Sampler, count: int, batch: int = 7) -> list[int]:
    """Take so many examples in small batches."""
    found: list[int] = []
    while count:
        found += sampler.take(min(batch, count)).tolist()
        count -= min(batch, count)
    return found


@given(st.integers(1, 5000), SEEDS, st.integers(0, 1000))
def test_each_pass_is_a_permutation(size: int, seed: int, number: int) -> None:
    found = Sampler(size, seed=seed, position=size * number).take(size)

    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(size))


@given(SIZES, SEEDS, st.lists(st.integers(1, 100), min_size=1, max_size=20), st.data())
def test_resumed_is_uninterrupted(
    size: int, seed: int, batches: list[int], data: st.DataObject
) -> None:
    whole = Sampler(size, seed=seed)
    expected = [whole.take(batch).tolist() for batch in batches]

    resumed, found = Sampler(size, seed=seed), []
    for batch in batches:
        if data.draw(st.booleans()):
            resumed = Sampler.restore(resumed.state(), size=size)
        found.append(resumed.take(batch).tolist())

    assert found == expected
    assert resumed.state() == whole.state()


@given(SIZES, SEEDS, st.lists(st.tuples(st.integers(1, 100), st.integers(1, 9)), max_size=9))
def test_any_workers_cover_the_same_examples_in_the_same_order(
    size: int, seed: int, batches: list[tuple[int, int]]
) -> None:
    """The number of workers may change from batch to batch."""
    alone = Sampler(size, seed=seed)
    workers = [Sampler(size, seed=seed) for _ in range(9)]

    for count, world in batches:
        shares = [w.take(count, rank=r, world=world) for r, w in enumerate(workers[:world])]
        together = np.empty(count, np.int64)
        for rank, share in enumerate(shares):
            together[rank::world] = share
        assert together.tolist() == alone.take(count).tolist()
        for worker in workers[world:]:
            worker.skip(count)
    assert {w.position for w in workers} == {alone.position}


@given(SIZES, SEEDS, st.integers(0, 2**61))
def test_skipping_ahead_is_taking_and_throwing_away(size: int, seed: int, far: int) -> None:
    near = far % 500
    taken, skipped = Sampler(size, seed=seed), Sampler(size, seed=seed)
    if near:
        taken.take(near)
    skipped.skip(near)
    assert taken.take(20).tolist() == skipped.take(20).tolist()

    begun = Sampler(size, seed=seed, position=far)  # a hundred years of training
    other = Sampler(size, seed=seed, position=far - far % size)
    other.skip(far % size)
    assert begun.take(20).tolist() == other.take(20).tolist()


def test_the_order_is_this_one_for_ever() -> None:
    """On every machine and in every release: a resumed run must not see another order."""
    assert Sampler(10, seed=7).take(20).tolist() == GOLDEN
    assert Sampler(2**40, seed=2**60, position=2**50).take(3).tolist() == GOLDEN_LARGE


def test_passes_and_seeds_differ() -> None:
    first = Sampler(1000, seed=1).take(2000)
    other = Sampler(1000, seed=2).take(1000)

    assert first[:1000].tolist() != first[1000:].tolist()
    assert first[:1000].tolist() != other.tolist()
    assert np.mean(first[:1000] == first[1000:]) < 0.01


@pytest.mark.parametrize("size", [2, 3, 5, 8, 31])
def test_every_example_comes_about_as_often_at_every_place(size: int) -> None:
    counts = np.zeros((size, size))
    for seed in range(400 * size):
        counts[np.arange(size), Permutation.of(size, seed, 0).at(np.arange(size))] += 1

    expected = 400.0
    chi_squared = ((counts - expected) ** 2 / expected).sum() / size
    assert chi_squared < (size - 1) + 4 * (2 * (size - 1)) ** 0.5


def test_neighbours_are_torn_apart() -> None:
    found = Sampler(100_000, seed=3).take(100_000)

    correlation = np.corrcoef(np.arange(len(found)), found)[0, 1]
    steps = np.corrcoef(found[:-1], found[1:])[0, 1]
    assert abs(correlation) < 0.02
    assert abs(steps) < 0.02


def test_grown_data_begins_a_new_pass() -> None:
    sampler = Sampler(10, seed=7)
    sampler.take(13)

    sampler.resize(15)

    assert (sampler.pass_number, sampler.left_in_pass) == (2, 15)
    assert sorted(sampler.take(15).tolist()) == list(range(15))
    again = Sampler.restore(sampler.state())
    assert again.take(40).tolist() == sampler.take(40).tolist()
    assert again.position == 13 + 15 + 40


def test_grown_data_at_the_end_of_a_pass_skips_no_number() -> None:
    sampler = Sampler(10, seed=7)
    sampler.take(20)
    sampler.resize(10)
    assert sampler.state()["begun_at"] == 0
    sampler.resize(15)

    assert sampler.pass_number == 2


def test_a_batch_can_stay_within_its_pass() -> None:
    sampler = Sampler(10, seed=7)
    sizes = [len(sampler.take(min(4, sampler.left_in_pass))) for _ in range(6)]

    assert sizes == [4, 4, 2, 4, 4, 2]


def test_it_comes_back_through_a_store() -> None:
    store = ckptfmt.open(MemoryBackend())
    sampler = Sampler(1000, seed=7)
    sampler.take(1234)

    store.save({"model": {}, "data": sampler.state()})

    restored = Sampler.restore(store.latest().load()["data"], size=1000)
    assert restored.take(50).tolist() == sampler.take(50).tolist()
    assert repr(restored) == "<Sampler at 1,284, pass 1 over 1,000>"


def test_a_data_set_of_another_size_is_an_error_with_the_way_out() -> None:
    with pytest.raises(MismatchError, match="resize") as caught:
        Sampler.restore(Sampler(10).state(), size=11)

    assert caught.value.where == {"expected": 10, "found": 11}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"algorithm": "another"}, UnsupportedError),
        ({"size": 0}, FormatError),
        ({"position": -1}, FormatError),
        ({"seed": 1.5}, FormatError),
        ({"begun_at": 99}, FormatError),
        ({"position": "5"}, FormatError),
    ],
)
def test_a_state_that_is_none_is_refused(change: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Sampler.restore({**Sampler(10).state(), **change})
    for name in Sampler(10).state():
        state = copy.copy(Sampler(10).state())
        del state[name]
        with pytest.raises(FormatError, match=f"no state of a sampler .*'{name}' is missing"):
            Sampler.restore(state)
    with pytest.raises(FormatError, match="no state of a sampler"):
        Sampler.restore(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.take(0), "count must be an integer >= 1"),
        (lambda s: s.take(2.0), "count must be an integer, got 2.0"),
        (lambda s: s.take(5, rank=2, world=2), "rank must be below world"),
        (lambda s: s.take(5, rank=-1, world=2), "rank must be an integer >= 0"),
        (lambda s: s.take(5, world=0), "world must be an integer >= 1"),
        (lambda s: s.skip(-1), "examples must be an integer >= 0"),
        (lambda s: s.resize(0), "size must be an integer >= 1"),
        (lambda s: Sampler(0), "size must be an integer >= 1"),
        (lambda s: Sampler(5, seed=-1), "seed must be an integer >= 0"),
    ],
)
def test_wrong_numbers_are_refused_and_change_nothing(call: Any, message: str) -> None:
    sampler = Sampler(10, seed=7, position=3)
    before = sampler.state()

    with pytest.raises(UsageError) as caught:
        call(sampler)

    assert message in str(caught.value)
    assert sampler.state() == before


def test_a_worker_may_get_nothing() -> None:
    sampler = Sampler(10, seed=7)

    assert sampler.take(2, rank=3, world=4).shape == (0,)
    assert sampler.position == 2
