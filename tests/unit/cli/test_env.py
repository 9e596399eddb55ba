"""`ckptfmt env`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptfmt import Store

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what is set here on purpose, should it be set already."""
    for name in ("XLA_FLAGS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_no_difference(cli: Cli, store: Store) -> None:
    ran = cli("env", "run@2")

    assert ran.out.startswith("environment of checkpoint 2 of @/run\npython ")
    assert ran.out.endswith("\ndifferences\nnone\n")
    assert (ran.status, ran.err) == (0, "")


def test_a_difference_that_matters(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump=1")  # graded as a warning

    ran = cli("env", "run@2")
    document = json.loads(cli("env", "run@2", "--json").out)

    assert ran.status == 1
    assert "warning   XLA_FLAGS  -      --xla_dump=1  this environment variable" in ran.out
    (finding,) = document["findings"]
    assert (finding["severity"], finding["name"]) == ("warning", "XLA_FLAGS")
    assert (finding["saved"], finding["now"]) == (None, "--xla_dump=1")
    assert document["environment"]["numpy"]["version"] == np.__version__


def test_a_difference_in_rounding_is_no_problem(
    cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # graded as information

    ran = cli("env", "run@2")

    assert ran.status == 0
    assert "info      OMP_NUM_THREADS" in ran.out


def test_two_checkpoints(cli: Cli, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump=1")
    store.save({})

    assert cli("env", "run@1", "run@2").status == 0
    ran = cli("env", "run@1", "run@4")
    assert ran.status == 1
    assert "checkpoint 1  checkpoint 4" in ran.out


def test_the_whole_record(cli: Cli, store: Store) -> None:
    brief, full = cli("env", "run@1").out, cli("env", "run@1", "--full").out

    assert "distributions/numpy" not in brief
    assert "distributions/numpy" in full
