"""How often storage is asked, and how many questions wait for the answer to another one.

Each request takes 50 ms here, as across a country: what counts is round trips, not bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from tests.remote.bucket import Bucket, Request, rounds
from tests.remote.many import commit_many

NUMBERS = itertools.count()
DELAY = 0.05
MANY = 1000
TRIES = 5  # a machine that is busy can delay what should have begun together, never hasten it


def place() -> str:
    return f"s3://b/rounds-{next(NUMBERS)}"


def measured(bucket: Bucket, action: Callable[[], Any], most: int) -> list[Request]:
    """Return the requests of an action once they took no more than `most` rounds."""
    for _ in range(TRIES):
        bucket.ask("set", delay=DELAY)
        bucket.log()
        action()
        requests = bucket.log()
        bucket.ask("set")
        if rounds(requests) <= most:
            return requests
    pytest.fail(f"{rounds(requests)} round trips: {requests}")


def saved(bucket: Bucket, state: dict[str, Any], **how: Any) -> str:
    url = place()
    with ckptfmt.open(url, storage_options=bucket.options) as store:
        for _ in range(3):
            store.save(state, **how)
        store.annotate(2, {"note": 1})
        store.tag(3, "good")
    return url


@pytest.mark.parametrize("arrays", [1, 3000], ids=["small manifest", "large manifest"])
def test_the_latest_checkpoint_takes_three_round_trips(bucket: Bucket, arrays: int) -> None:
    url = saved(bucket, {"model": {f"w{n}": np.arange(5) + n for n in range(arrays)}})

    def latest() -> None:
        found = ckptfmt.open(url, storage_options=bucket.options).latest()
        assert found.number == 3
        assert len(found.arrays) == arrays
        assert "good" in found.tags

    requests = measured(bucket, latest, 3)

    assert len(requests) == 7  # marker; listings of three folders; manifest, two annotations


def test_one_array_costs_its_bytes(bucket: Bucket) -> None:
    """Of 320 MB, once the checkpoint is at hand: chunks side by side, nothing small."""
    state = {f"w{n}": np.full(20 * 2**20, n, np.float32) for n in range(4)}
    url = place()
    with ckptfmt.open(url, storage_options=bucket.options) as store:
        store.save({"model": state})
    found = ckptfmt.open(url, storage_options=bucket.options).latest()
    want = state["w2"]

    def load() -> None:
        assert np.asarray(found["model/w2"]).tobytes() == want.tobytes()

    requests = measured(bucket, load, 1)
    assert {r.method for r in requests} == {"GET"}
    assert sum(r.nbytes for r in requests) == want.nbytes

    def part() -> None:
        assert found["model/w2"][-(2**20) :].tobytes() == want[-(2**20) :].tobytes()

    assert sum(r.nbytes for r in measured(bucket, part, 1)) <= 2 * 16 * 2**20

    def from_nothing() -> None:
        again = ckptfmt.open(url, storage_options=bucket.options).latest()
        np.asarray(again["model/w2"])

    requests = measured(bucket, from_nothing, 4)
    small = [r for r in requests if r.nbytes < 2**20]
    assert sum(r.nbytes for r in requests) - sum(r.nbytes for r in small) == want.nbytes


@pytest.fixture(scope="module")
def many(running: Bucket) -> str:
    """Return a store of a thousand checkpoints; the bytes of one, under other numbers."""
    running.ask("set")
    url = place()
    with ckptfmt.open(url, storage_options=running.options) as store:
        commit_many(store, MANY)
    return url


def test_a_listing_is_read_once(bucket: Bucket, many: str) -> None:
    """One listing and one small read each, side by side; the second time the listing alone.

    `python -m tests.bench.remote` says how long that takes.
    """
    store = ckptfmt.open(many, storage_options=bucket.options)

    def metrics() -> None:
        assert [c.metrics["loss"] for c in store] == [1.0 / n for n in range(1, MANY + 1)]

    bucket.ask("set", delay=DELAY)
    bucket.log()
    metrics()
    first = bucket.log()
    metrics()
    again = bucket.log()

    assert rounds(first) < MANY / 16
    reads = [r for r in first if r.key]
    assert len(reads) == MANY
    assert len({r.key for r in reads}) == MANY
    assert max(r.nbytes for r in reads) < 2**15
    assert len([r for r in first if "manifests" in r.query]) == 1
    assert not [r for r in again if r.key]
