"""`ckptfmt plan`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from ckptfmt.cli.plan import MAX_ROWS

Cli = Callable[..., Any]

ARTICLE = ("--dataset", "1000000", "--stop", "14.3", "--checkpoints", "15")


def test_the_run_of_the_article(cli: Cli, tmp_path: pathlib.Path) -> None:
    ran = cli("plan", *ARTICLE, "--batch", "100")

    lines = ran.out.splitlines()
    assert (ran.status, ran.err) == (0, "")
    assert lines[0] == "14,300,000 examples in 15 virtual epochs, batches of 100"
    assert lines[4] == "         1     953,333       9,534     953,400       67"
    assert lines[18] == "        15  14,300,000     143,000  14,300,000        0"
    assert lines[20:] == [
        "steps                 143,000, the last batch whole",
        "shown                 14,300,000, lost: 0",
        "total // (batch * n)  14,299,500 in 15 times 9,533 steps, lost: 500",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("batch", "lost"),
    [(50, 500), (64, 800), (128, 1_760), (512, 7_520), (4096, 45_920), (65536, 537_440)],
)
def test_what_the_usual_formula_loses(cli: Cli, batch: int, lost: int) -> None:
    document = json.loads(cli("plan", *ARTICLE, "--batch", str(batch), "--json").out)

    assert document["naive"]["lost"] == lost
    assert document["naive"]["shown"] + lost == document["total"] == 14_300_000
    assert document["checkpoints"][-1]["seen"] - document["overshoot"] == 14_300_000
    assert (document["steps"] - 1) * batch + document["last_batch"] == 14_300_000


def test_batches_larger_than_a_virtual_epoch(cli: Cli) -> None:
    ran = cli("plan", "--total", "1000", "--checkpoints", "15", "--batch", "128")

    assert "\n       2-3     200           2        256       56\n" in ran.out
    assert "8, the last batch cut to 104 to hit the total" in ran.out
    assert "0 steps an epoch: it would never end" in ran.out


def test_the_rest_of_a_run(cli: Cli) -> None:
    words = ("--total", "1000", "--checkpoints", "10", "--batch", "50", "--seen", "820")
    document = json.loads(cli("plan", *words, "--json").out)

    assert "batches of 50, after 820 seen" in cli("plan", *words).out
    assert [(c["virtual_epoch"], c["step"]) for c in document["checkpoints"]] == [
        (9, 2),
        (10, 4),
    ]


def test_nothing_is_left_of_a_run(cli: Cli) -> None:
    words = ("--total", "1000", "--checkpoints", "10", "--batch", "50", "--seen", "1000")

    assert "\nsteps                 0\n" in cli("plan", *words).out
    assert json.loads(cli("plan", *words, "--json").out)["checkpoints"] == []


def test_many_checkpoints_are_shown_when_asked_for(cli: Cli) -> None:
    words = ("--total", "1000", "--checkpoints", "100", "--batch", "1")

    few, every = cli("plan", *words).out, cli("plan", *words, "--all").out

    assert "(see --all)" in few
    assert f"\n{MAX_ROWS:10}  " in few
    assert f"\n{MAX_ROWS + 1:10}  " not in few
    assert "\n       100  " in every
    large = ("--total", str(2**62), "--checkpoints", str(2**61), "--batch", "1")
    assert "(see --all)" in cli("plan", *large).out
    for how in ("--all", "--json"):
        assert (cli("plan", *large, how).status, cli("plan", *large, how).out) == (2, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", "100"), "--checkpoints"),
        (("--checkpoints", "5"), "--batch"),
        (("--checkpoints", "5", "--batch", "1"), "--dataset and --stop"),
        (("--stop", "2", "--checkpoints", "5", "--batch", "1"), "--dataset and --stop"),
        (("--dataset", "9", "--checkpoints", "5", "--batch", "1"), "--dataset and --stop"),
        ((*ARTICLE, "--total", "9", "--batch", "1"), "--dataset and --stop"),
        (("--total", "0", "--checkpoints", "5", "--batch", "1"), "total must be"),
        ((*ARTICLE, "--batch", "0"), "batch_size must be an integer >= 1"),
        ((*ARTICLE, "--batch", "1.5"), "invalid int value"),
        ((*ARTICLE[:4], "--checkpoints", "99999999", "--batch", "1"), "largest=14300000"),
        ((*ARTICLE, "--batch", "1", "--seen", "99999999"), "stop point is below seen"),
        (("--dataset", "5", "--stop", "x", "--checkpoints", "5", "--batch", "1"), "a number"),
    ],
)
def test_wrong_plans_are_refused(cli: Cli, words: tuple[str, ...], message: str) -> None:
    ran = cli("plan", *words)

    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error[usage]: ")
    assert message in ran.err
