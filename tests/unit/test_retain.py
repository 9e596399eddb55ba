"""Retention as a store applies it: after a save, and when it is asked for."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt._engine import catalog
from ckptfmt.backends import MemoryBackend
from ckptfmt.format import layout
from ckptfmt.training.retention import Keep

LAST: Keep = ckptfmt.keep(last=1)


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": {"w": rng.standard_normal(50)},
        "optimizer": {"m": rng.standard_normal(100)},
    }


def numbers(store: Store) -> list[int]:
    return [checkpoint.number for checkpoint in store]


@pytest.fixture
def disk() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def store(disk: MemoryBackend) -> Store:
    """Return a store with 1 - 2 - 3 and a rollback 1 - 4 - 5."""
    store = ckptfmt.open(disk)
    first = store.save(state(1))
    for seed in (2, 3):
        store.save(state(seed))
    store.save(state(4), parent=first)
    store.save(state(5))
    return store


def test_the_newest_of_each_lineage_stays(store: Store, disk: MemoryBackend) -> None:
    with ckptfmt.open(disk, keep=LAST) as again:
        again.latest().load()
        again.save(state(6))

    assert numbers(store) == [3, 6]


def test_a_dry_run_tells_what_would_go_and_changes_nothing(
    store: Store, disk: MemoryBackend
) -> None:
    before = {folder: disk.list(folder) for folder in ("data", "manifests", "intents")}

    would = store.retain(LAST, dry_run=True)

    assert {folder: disk.list(folder) for folder in before} == before
    assert store.retain(LAST) == would
    assert would.numbers == (1, 2, 4)
    assert would.nbytes > 0
    assert numbers(store) == [3, 5]


def test_pinned_ones_stay(store: Store) -> None:
    store.tag(2, "pinned")

    assert store.retain(LAST).numbers == (1, 4)


def test_nothing_goes_while_one_cannot_be_read(
    store: Store, disk: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    key = layout.manifest_key(2)
    disk.replace(key, disk.read(key)[:-1])

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        done = store.retain(LAST)

    assert done.numbers == ()
    assert done.blocked
    assert "no checkpoint is deleted or slimmed while one cannot be read" in caplog.text
    assert numbers(store) == [1, 3, 4, 5]


def test_the_last_one_is_never_deleted(disk: MemoryBackend) -> None:
    with ckptfmt.open(disk) as store:
        store.save(state(1), metrics={"loss": float("nan")})

        assert store.retain(ckptfmt.keep(best=("loss", "min", 1))).numbers == ()
        assert numbers(store) == [1]


def test_manifests_of_deleted_checkpoints_are_forgotten(disk: MemoryBackend) -> None:
    """Each holds the history of the run: over a run their memory would grow with its square."""
    with ckptfmt.open(disk, keep=ckptfmt.keep(last=2)) as store:
        for seed in range(8):
            store.save(state(seed))

        assert numbers(store) == [7, 8]
        assert len(store._shelf.memory.manifests) <= 3


def test_the_memory_of_manifests_is_bounded(
    disk: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is deleted: still only the last ones stay in memory, and all can be read."""
    monkeypatch.setattr(catalog, "MEMORY_NBYTES", 10_000)
    with ckptfmt.open(disk) as store:
        for seed in range(30):
            store.save(state(seed))
            kept = [entry for entry, _ in store._shelf.memory.manifests.values()]
            assert sum(entry.nbytes for entry in kept) <= 10_000

        assert 1 < len(kept) < 15
        assert kept[-1].key == "manifests/0000000029-000.ckpt"
        assert [len(store[n].load()["model"]) for n in (1, 15, 30)] == [1, 1, 1]
