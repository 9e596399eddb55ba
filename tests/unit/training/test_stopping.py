"""Early stopping over a history, and what a metric's name says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfmt.errors import FormatError, UsageError
from ckptfmt.training import EarlyStopping, Metric, Point

NAN = float("nan")
Values = list[float | None]


def course(*values: float | None, every: int = 100) -> list[Point]:
    """Return a history with one value every so many examples."""
    return [
        Point(number=n, id=f"{n:024x}", seen=n * every, time=0, metrics={"loss": value})
        for n, value in enumerate(values, start=1)
    ]


RULE = EarlyStopping(monitor="loss", patience=200)


@pytest.mark.parametrize(
    ("values", "stop", "best", "waited"),
    [
        ([], False, None, 0),
        ([None], False, None, 0),
        ([3, 2, 1], False, 3, 0),
        ([3, 1, 2], False, 2, 100),
        ([3, 1, 2, 2], True, 2, 200),
        ([3, 1, 2, None], False, 2, 100),  # not measured: nothing was waited for
        ([3, 1, NAN, NAN], True, 2, 200),
        ([NAN, NAN, NAN, NAN], False, None, 0),
        ([NAN, 2, 1], False, 3, 0),
        ([1, 1, 1], True, 1, 200),  # equal is no improvement
        ([3, 1, 2, 2, 0.5], False, 5, 0),
    ],
)
def test_it_stops_after_the_patience(
    values: Values, stop: bool, best: int | None, waited: int
) -> None:
    verdict = RULE.judge(course(*values))

    assert (verdict.stop, verdict.waited) == (stop, waited)
    assert (None if verdict.best is None else verdict.best.number) == best
    assert verdict.reason


def test_the_reason_has_the_numbers() -> None:
    assert RULE.judge(course(3, 1.5, 2, 2)).reason == (
        "loss was best at 200 examples (1.5), 200 ago; patience is 200"
    )
    assert RULE.judge([]).reason == "no loss yet"
    assert RULE.judge(course(NAN)).reason == "loss was always NaN"


def test_patience_counts_examples_not_checkpoints() -> None:
    values: Values = [3, 1, 2, 2, 2, 2]

    assert not RULE.judge(course(*values, every=10)).stop
    assert RULE.judge(course(*values, every=50)).stop


def test_small_steps_add_up_to_an_improvement() -> None:
    rule = EarlyStopping(monitor="loss", patience=1000, min_delta=0.25)

    assert rule.judge(course(1.0, 0.9, 0.8, 0.7)).best == course(1.0, 0.9, 0.8, 0.7)[3]
    assert rule.judge(course(1.0, 0.9, 0.8, 0.75)).best == course(1.0)[0]


def test_max_is_the_other_way_round() -> None:
    rule = EarlyStopping(monitor="loss", mode="max", patience=200, min_delta=0.1)
    verdict = rule.judge(course(0.5, 0.7, 0.75, 0.6))

    assert verdict.stop
    assert verdict.best is not None
    assert verdict.best.number == 2


def test_patience_zero_stops_at_the_first_value_that_is_no_better() -> None:
    rule = EarlyStopping(monitor="loss", patience=0)

    assert not rule.judge(course(3, 2)).stop
    assert rule.judge(course(3, 3)).stop


@given(st.lists(st.floats(0, 10) | st.none() | st.just(NAN), max_size=30), st.integers(0, 30))
def test_a_restarted_run_gets_the_verdict_of_an_uninterrupted_one(
    values: Values, cut: int
) -> None:
    """The rule comes back from a checkpoint, the history from the store: nothing else."""
    before = RULE.judge(course(*values[:cut]))
    restored = EarlyStopping.restore(RULE.state())

    assert restored == RULE
    assert restored.judge(course(*values)) == RULE.judge(course(*values))
    assert restored.judge(course(*values[:cut])) == before


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_the_best_is_the_best_of_the_history(values: Values) -> None:
    verdict = RULE.judge(course(*values))

    assert verdict.best is not None
    assert verdict.best.metrics["loss"] == min(value for value in values if value is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": ""}, "monitor must be the name"),
        ({"mode": "auto"}, "'min' or 'max'"),
        ({"patience": -1}, "patience must be an integer >= 0"),
        ({"patience": 2.5}, "patience must be an integer"),
        ({"min_delta": -0.1}, "min_delta must be finite and >= 0"),
        ({"min_delta": NAN}, "min_delta must be finite and >= 0"),
        ({"min_delta": "1"}, "min_delta must be a number"),
        ({"min_delta": True}, "min_delta must be a number"),
    ],
)
def test_wrong_rules_are_refused(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"monitor": "loss", "patience": 5}

    with pytest.raises(UsageError) as caught:
        EarlyStopping(**{**good, **arguments})
    assert message in str(caught.value)
    with pytest.raises(FormatError, match="no early stopping"):
        EarlyStopping.restore({**good, **arguments})
    with pytest.raises(FormatError, match="no early stopping"):
        EarlyStopping.restore({"what": 1})


# ---- names of metrics


@pytest.mark.parametrize(
    ("text", "metric"),
    [
        ("loss", Metric(name="loss")),
        ("val_loss", Metric(name="loss", split="val")),
        ("val/loss", Metric(name="loss", split="val")),
        ("val_", Metric(name="val_")),
        ("test/top/5+averaged", Metric(name="top/5", split="test", averaged=True)),
        ("loss+train-mode", Metric(name="loss", train_mode=True)),
        (
            "train/loss+averaged+train-mode",
            Metric(name="loss", split="train", averaged=True, train_mode=True),
        ),
    ],
)
def test_a_name_says_how_it_was_measured(text: str, metric: Metric) -> None:
    assert Metric.parse(text) == metric
    assert Metric.parse(str(metric)) == metric


@pytest.mark.parametrize("text", ["", "/loss", "val/", "+averaged", "a+b", "loss+ema"])
def test_names_that_say_something_else_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Metric.parse(text)


def test_a_split_is_one_word() -> None:
    with pytest.raises(UsageError, match="a split has no '/'"):
        Metric(name="loss", split="a/b")
