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
KILLS = 20  # by `make soak`, of each run; three in all by `make test`
STEPS = 40  # at most between two kills; 16 between two checkpoints


def start(folder: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    return killing.start(SCRIPT, folder, *options)


def end(run: subprocess.Popen[str]) -> tuple[int, str]:
    return killing.end(run, 800)  # alone it takes seconds; a machine may be busy


def into_a_save(run: subprocess.Popen[str], folder: pathlib.Path) -> None:
    """Wait until the run has announced one more save, or is over."""
    old = set(folder.glob("intents/[0-9a-f]*"))  # of a killed one: stays until the next save
    while run.poll() is None and set(folder.glob("intents/[0-9a-f]*")) <= old:
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def length(soak: bool) -> list[str]:
    """Return options for a run that is long enough for all kills."""
    return ["--total", "24000", "--epochs", "48"] if soak else []


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, length: list[str]) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    status, errors = end(start(folder, *length))
    assert status == 0, errors
    return whole(folder)


@pytest.mark.parametrize("background", [False, True])
def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path,
    expected: dict[str, Any],
    length: list[str],
    seed: int,
    soak: bool,
    background: bool,
) -> None:
    rng = random.Random(seed)
    options = [*length, "--background"] if background else length
    for number in range(KILLS if soak else 1 + background):
        run = start(tmp_path / "run", *options)
        lines(run, rng.randrange(8, STEPS))
        if number % 2 == background:
            into_a_save(run, tmp_path / "run")
        time.sleep(rng.random() * 0.005)  # a save takes some milliseconds
        run.kill()
        assert end(run)[0] == -signal.SIGKILL  # it was not over
    status, errors = end(start(tmp_path / "run", *options))

    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
    with ckptfmt.open(tmp_path / "run") as store:
        assert store.latest().counters["seen"] == expected["seen"]
        assert all(checkpoint.verify().ok for checkpoint in store)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_at_the_end_of_the_step(
    tmp_path: pathlib.Path, expected: dict[str, Any], length: list[str], name: str
) -> None:
    number = getattr(signal, name)
    run = start(tmp_path / "run", "--signals", *length)
    lines(run, 40)
    run.send_signal(number)
    status, errors = end(run)
    assert status == 128 + number, errors
    with ckptfmt.open(tmp_path / "run") as store:
        saved = store.latest().counters["seen"]

    status, errors = end(start(tmp_path / "run", "--signals", *length))

    assert saved >= 32 * 39
    assert saved % (3 * 32) == 0 or saved > 1797  # at an update of the weights
    assert status == 0, errors
    assert whole(tmp_path / "run") == expected
