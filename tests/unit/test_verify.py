"""Verifying reads each stored byte once, and says of every checkpoint what is wrong with it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import plan
from ckptfmt.backends import MemoryBackend
from ckptfmt.reports import Seen


class Counting:
    """A backend that counts how often each byte of data is read, and in how many requests."""

    def __init__(self) -> None:
        self.inner = MemoryBackend()
        self.reads: Counter[tuple[str, int]] = Counter()
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        if key.startswith("data/"):
            self.requests += 1
            self.reads.update((key, at) for at in range(offset, offset + nbytes))
        return self.inner.map(key, offset, nbytes)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plan, "MISC_NBYTES", 100)
    backend: Any = Counting()
    store = ckptfmt.open(backend, threads=1)
    fixed = {f"layer{n}": np.full(20, float(n)) for n in range(30)}
    for seed in range(3):
        own = np.random.default_rng(seed).standard_normal(50)
        store.save({"model": fixed, "optimizer": {"m": own}})
    backend.reads.clear()
    backend.requests = 0
    return backend


def test_bytes_that_checkpoints_share_are_read_once(backend: Any) -> None:
    seen = Seen()
    reports = [c.verify(seen=seen) for c in ckptfmt.open(backend)]

    files = {e.key: e.nbytes for e in backend.list("data").values()}
    assert set(backend.reads.values()) == {1}
    assert len(backend.reads) == sum(files.values())
    assert all(report.ok for report in reports)
    assert len({report.nbytes for report in reports}) == 1
    assert [r.read_nbytes for r in reports] == [reports[0].nbytes, 400, 400]


def test_what_is_gone_was_not_read(backend: Any) -> None:
    for key in list(backend.list("data")):
        backend.inner.delete(key)

    reports = [c.verify() for c in ckptfmt.open(backend)]

    assert not any(report.ok for report in reports)
    assert [report.read_nbytes for report in reports] == [0, 0, 0]


def test_neighbours_are_read_in_one_request(backend: Any) -> None:
    checkpoint = ckptfmt.open(backend).latest()

    assert checkpoint.verify().ok
    assert backend.requests == len(checkpoint.manifest.tables.files)


def test_damage_in_shared_bytes_is_said_of_every_checkpoint(backend: Any) -> None:
    checkpoints = list(ckptfmt.open(backend))
    shared = checkpoints[0].manifest.tables.files[0].key
    assert shared in {f.key for f in checkpoints[2].manifest.tables.files}
    data = bytearray(backend.read(shared))
    data[-1] ^= 1
    backend.replace(shared, data)

    seen = Seen()
    reports = [c.verify(seen=seen) for c in checkpoints]

    for report in reports:
        (problem,) = report.problems
        assert (problem.key, problem.path) == (shared, "model/layer29")
        assert problem.offset == len(data) - 160
        assert problem.message.startswith("digest mismatch after reading 160 bytes [")
        assert problem.expected != problem.found
    assert set(backend.reads.values()) == {1}


def test_the_chunks_before_the_end_of_a_short_file_are_intact(backend: Any) -> None:
    checkpoint = ckptfmt.open(backend)[1]
    shared = checkpoint.manifest.tables.files[0].key
    data = backend.read(shared)
    backend.replace(shared, data[:-200])

    problems = checkpoint.verify().problems

    assert [p.path for p in problems] == [None, "model/layer28", "model/layer29"]
    assert "another length" in problems[0].message
    assert "ends too early" in problems[1].message
