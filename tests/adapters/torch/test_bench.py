"""The benchmark of a PyTorch run still runs and still judges. No figure is looked at."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import pytest

from tests.bench import training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")
PEERS = {"torch_checkpointing"}  # it is no dependency


def run(samples: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {
        "samples": samples, "load": [[1.0]], "nbytes": 1, "rounds": 1, "quick": True,
        "began": "", "machine": {}, "versions": {}, "failures": [],
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_every_measure_is_taken_and_every_target_judged(tmp_path: pathlib.Path) -> None:
    samples: dict[str, dict[str, list[float]]] = {}
    for measure, acts in training.ACTS.items():
        for number, name in enumerate(acts.keys() - PEERS):
            folder = tmp_path / f"{measure}-{number}"
            folder.mkdir()
            for what, seconds in training._child(measure, name, folder, quick=True).items():
                samples.setdefault(measure, {})[what] = [seconds]

    found = training.report(run(samples))

    assert samples.keys() == training.TITLES.keys()
    assert all(seconds > 0 for rows in samples.values() for (seconds,) in rows.values())
    judged = found.count(" met") + found.count(" MISSED")
    assert judged == sum(theirs not in PEERS for _, _, theirs, _ in training.TARGETS)


def test_a_target_is_missed_by_a_slower_one_and_met_by_a_faster() -> None:
    samples = {"save": {"ckptfmt": [1.0, 3.0, 1.0], "torch.save + fsync": [2.0]}}

    assert "| 0.50 | ≤ 0.50 met |" in training.report(run(samples))
    samples["save"]["torch.save + fsync"] = [1.9]
    assert "| 0.53 | ≤ 0.50 MISSED |" in training.report(run(samples))
