"""A training that is killed again and again ends with the bits of one that was not."""

from __future__ import annotations

import pathlib
import random
import signal
import subprocess
import time
from typing import Any

import pytest

import ckptfmt
from tests.adapters import killing
from tests.adapters.killing import lines, whole

SCRIPT = pathlib.Path(__file__).parent / "digits.py"
STEPS = 94  # of the whole run


pytestmark = pytest.mark.timeout(900)  # minutes, where other work has the cores


def start(folder: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    return killing.start(SCRIPT, folder, *options)


def end(run: subprocess.Popen[str]) -> tuple[int, str]:
    return killing.end(run, 800)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, errors = end(start(folder))
    assert status == 0, errors
    return whole(folder)


def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path, expected: dict[str, Any], seed: int, soak: bool
) -> None:
    rng = random.Random(seed)
    kills = 20 if soak else 3
    for number in range(kills):
        # Every second run saves in the background: the bits are the same.
        run = start(tmp_path / "run", *(["--background"] if number % 2 else []))
        lines(run, rng.randrange(8, max(12, STEPS // (kills + 1))))
        time.sleep(rng.random() * 0.02)  # a save takes some milliseconds: hit it, too
        run.kill()
        run.communicate()
    status, errors = end(start(tmp_path / "run"))

    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
    with ckptfmt.open(tmp_path / "run") as store:
        assert store.latest().counters["seen"] == expected["seen"]
        assert all(checkpoint.verify().ok for checkpoint in store)


def test_a_signal_saves_at_the_end_of_the_step(
    tmp_path: pathlib.Path, expected: dict[str, Any]
) -> None:
    run = start(tmp_path / "run", "--signals")
    lines(run, 40)
    run.send_signal(signal.SIGUSR1)
    status, errors = end(run)
    assert status == 128 + signal.SIGUSR1, errors
    with ckptfmt.open(tmp_path / "run") as store:
        saved = store.latest().counters["seen"]

    status, errors = end(start(tmp_path / "run", "--signals"))

    assert saved >= 32 * 40
    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
