"""The measurement of a migration still runs, and tells a missed target."""

from __future__ import annotations

import pathlib

import pytest

from tests.bench import migrating


def test_a_migration_is_measured(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch", reason="the file is made, and the peers read it, with PyTorch")
    samples = migrating.measured(1, tmp_path, quick=True)

    assert samples.keys() == migrating.ACTS.keys()
    assert all(one["seconds"] > 0 for found in samples.values() for one in found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "memory", "met"), [(1.0, 1e6, True), (2.1, 1e6, False), (1.0, 1e9, False)]
)
def test_a_missed_target_is_told(seconds: float, memory: float, met: bool) -> None:
    one = {"seconds": 2.0, "processor": 1.0, "others": 0.0, "memory": 1e9}
    samples = {name: [one] for name in migrating.ACTS}
    samples[migrating.OURS] = [{**one, "seconds": seconds, "memory": memory}]

    assert migrating.met(samples) is met
    assert migrating.report(samples).endswith("met" if met else "MISSED")
