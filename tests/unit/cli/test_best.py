"""`ckptfmt best`, and exporting what it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ckptfmt
from ckptfmt import Store

Cli = Callable[..., Any]
LOSSES = [2.3, 1.2, 0.8, 0.5, 0.4, 0.33, 0.30, 0.40, 0.5, 0.6]


@pytest.fixture
def run(empty: Store) -> Store:
    """Return a store of ten checkpoints whose validation rises in the end."""
    for n, loss in enumerate(LOSSES, start=1):
        empty.save(
            {"model": {"w": np.full(3, loss)}},
            counters={"seen": 1000 * n},
            metrics={"val_loss": loss, "loss": 1 / n},
        )
    return empty


def test_the_best_ones_and_the_course(cli: Cli, run: Store) -> None:
    ran = cli("best", "run", "val_loss", "-n", "3", "--training", "loss")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "checkpoint   seen  val_loss",
        "----------  -----  --------",
        "         7  7,000       0.3",
        "         6  6,000      0.33",
        "         5  5,000       0.4",
        "",
        "course: validation rising",
        "  val_loss fell from 2.3 at 1,000 examples to 0.3 at 7,000",
        "  val_loss rose from 0.3 at 7,000 examples to 0.6 at 10,000",
        "  turns below 0.02 count as noise",
        "  loss went from 0.142857 to 0.1 since 7,000 examples: overfitting",
    ]


def test_json(cli: Cli, run: Store) -> None:
    document = json.loads(cli("best", "run", "val_loss", "--mode", "max", "--json").out)

    assert document["number"] == 1
    assert [row["value"] for row in document["checkpoints"]] == [2.3, 1.2, 0.8, 0.6, 0.5]
    assert document["course"]["kind"]
    assert document["deleted_best"] is None


def test_other_lineages_are_named(cli: Cli, run: Store) -> None:
    run.save({}, counters={"seen": 500}, metrics={"val_loss": 0.1}, parent=None)
    run.save({}, counters={"seen": 1000}, metrics={"val_loss": 0.2})

    ran = cli("best", "run", "val_loss")
    document = json.loads(cli("best", "run", "val_loss", "--json").out)
    every = cli("best", "run", "val_loss", "--lineage", "all")
    both = json.loads(cli("best", "run", "val_loss", "--lineage", "all", "--json").out)

    assert "10 checkpoints of other lineages left out, the best of them 7 with 0.3" in ran.out
    assert document["number"] == 11
    assert document["elsewhere"][:2] == [7, 6]
    assert "left out" not in every.out
    assert both["course"] == document["course"]  # two lineages side by side are none


def test_a_better_one_that_was_deleted_is_named(cli: Cli, run: Store) -> None:
    run.delete(7)

    ran = cli("best", "run", "val_loss")

    assert "a better one, 7 with 0.3, was deleted" in ran.out
    assert json.loads(cli("best", "run", "val_loss", "--json").out)["number"] == 6


def test_other_lineages(cli: Cli, run: Store) -> None:
    run.save({"model": {}}, counters={"seen": 1}, metrics={"val_loss": 9.0}, parent=None)

    assert json.loads(cli("best", "run", "val_loss", "--json").out)["number"] == 11
    everything = cli("best", "run", "val_loss", "--json", "--lineage", "all")
    assert json.loads(everything.out)["number"] == 7
    one = cli("best", "run", "val_loss", "--json", "--lineage", run[5].id)
    assert json.loads(one.out)["number"] == 5


def test_the_best_is_exported(cli: Cli, run: Store) -> None:
    ran = cli("export", "run@best:val_loss", "model.safetensors")

    assert ran.status == 0
    assert load_file("model.safetensors")["w"].tobytes() == np.full(3, 0.3).tobytes()
    assert ckptfmt.open("run").best("val_loss").number == 7


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("nothing",), 3, "known: 'loss', 'val_loss'"),
        (("val_loss", "-n", "0"), 2, "--count of at least 1"),
        (("val_loss", "--mode", "auto"), 2, "invalid choice"),
        (("val_loss", "--lineage", "zz"), 3, "no checkpoint has this id"),
    ],
)
def test_wrong_questions(
    cli: Cli, run: Store, words: tuple[str, ...], status: int, message: str
) -> None:
    ran = cli("best", "run", *words)

    assert (ran.status, ran.out) == (status, "")
    assert message in ran.err
