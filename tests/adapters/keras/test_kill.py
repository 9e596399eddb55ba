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
KILLS = 20  # by `make soak`; three by `make test`
STEPS = 24  # at most between two kills; 7 between two checkpoints


pytestmark = pytest.mark.timeout(900)  # minutes, where other work has the cores


def start(folder: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    return killing.start(SCRIPT, folder, *options)


def end(run: subprocess.Popen[str]) -> tuple[int, str]:
    return killing.end(run, 800)


@pytest.fixture(scope="module")
def length(soak: bool) -> list[str]:
    """Return options for a run that is long enough for all kills."""
    return ["--total", "32000", "--epochs", "64"] if soak else []


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, length: list[str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, errors = end(start(folder, *length))
    assert status == 0, errors
    return whole(folder)


def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path,
    expected: dict[str, Any],
    length: list[str],
    seed: int,
    soak: bool,
    backend: str,
) -> None:
    rng = random.Random(seed)
    print(f"\n{backend}, seed {seed}\n{'kill':>4} {'saves':>10} {'steps':>5} {'saved at':>8}")
    for number in range(KILLS if soak else 3):
        # Every second run saves in the background: the bits are the same.
        background = ["--background"] if number % 2 else []
        # The pause keeps it from being over before it is killed.
        run = start(tmp_path / "run", "--pause", "0.005", *length, *background)
        steps = lines(run, rng.randrange(8, STEPS))
        time.sleep(rng.random() * 0.02)  # a save takes some milliseconds: hit it, too
        run.kill()
        assert end(run)[0] == -signal.SIGKILL  # it was not over
        with ckptfmt.open(tmp_path / "run") as store:
            seen = store.latest().counters["seen"] if len(store) else 0
        way = "background" if background else "at once"
        print(f"{number + 1:>4} {way:>10} {steps:>5} {seen:>8}")
    status, errors = end(start(tmp_path / "run", *length))

    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
    with ckptfmt.open(tmp_path / "run") as store:
        assert store.latest().counters["seen"] == expected["seen"]
        assert all(checkpoint.verify().ok for checkpoint in store)
    print(f"ended at {expected['seen']} examples with the bits of the run that nobody killed")


def test_a_signal_saves_at_the_end_of_the_step(
    tmp_path: pathlib.Path, expected: dict[str, Any], length: list[str]
) -> None:
    run = start(tmp_path / "run", "--signals", *length)
    lines(run, 40)
    run.send_signal(signal.SIGUSR1)
    status, errors = end(run)
    assert status == 128 + signal.SIGUSR1, errors
    with ckptfmt.open(tmp_path / "run") as store:
        saved = store.latest().counters["seen"]

    status, errors = end(start(tmp_path / "run", "--signals", *length))

    assert saved >= 32 * 40
    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
