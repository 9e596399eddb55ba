"""The course of a run, described with its evidence."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfmt.errors import UsageError
from ckptfmt.training import Point, describe
from ckptfmt.training.shape import RISING, ROSE_AND_FELL, UNDECIDED, WELL_BEHAVED

NAN = float("nan")
INF = float("inf")
FALL = [2.3, 1.2, 0.8, 0.5, 0.4, 0.33, 0.30]


def course(values: list[float | None], training: list[float] | None = None) -> list[Point]:
    return [
        Point(
            number=n,
            id=f"{n:024x}",
            seen=n * 1000,
            time=0,
            metrics={"val_loss": value} | ({"loss": training[n - 1]} if training else {}),
        )
        for n, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("values", "kind", "since"),
    [
        (FALL, WELL_BEHAVED, 1000),
        ([*FALL, 0.30, 0.301, 0.299], WELL_BEHAVED, 1000),  # a plateau
        ([*FALL, 0.40, 0.5, 0.6], RISING, 7000),
        ([*FALL, 0.6], UNDECIDED, 7000),  # one value alone
        ([*FALL, 0.40, 0.5, 0.6, 0.45, 0.3, 0.25], ROSE_AND_FELL, 10_000),
        ([*FALL, 0.40, 0.5, 0.6, 0.4, 0.2, 0.3, 0.4], RISING, 12_000),
        ([*FALL, 0.6, 0.30], ROSE_AND_FELL, 8000),
        ([0.5, 0.5, 0.5, 0.5, 0.5], UNDECIDED, None),
        ([2.0, 1.0, 0.5], UNDECIDED, None),  # too few
        ([], UNDECIDED, None),
        ([None, None, None, None], UNDECIDED, None),
        ([*FALL, NAN, NAN], UNDECIDED, 8000),
        ([*FALL[:3], NAN, *FALL[3:]], WELL_BEHAVED, 1000),
        ([*FALL, INF, INF], RISING, 7000),
        ([INF, *FALL], WELL_BEHAVED, 1000),
    ],
)
def test_the_course_is_described(
    values: list[float | None], kind: str, since: int | None
) -> None:
    found = describe(course(values))

    assert (found.kind, found.since) == (kind, since), found.evidence
    assert found.evidence


def test_the_evidence_has_the_numbers() -> None:
    found = describe(course([*FALL, 0.40, 0.5, 0.6]))

    assert found.evidence == (
        "val_loss fell from 2.3 at 1,000 examples to 0.3 at 7,000",
        "val_loss rose from 0.3 at 7,000 examples to 0.6 at 10,000",
        "turns below 0.02 count as noise",
    )
    assert found.best is not None
    assert found.best.number == 7


def test_what_is_better_when_it_is_higher_is_described_so() -> None:
    values: list[float | None] = [-value for value in [*FALL, 0.40, 0.5, 0.6]]
    found = describe(course(values), mode="max")

    assert found.kind == RISING
    assert found.evidence[1] == "val_loss fell from -0.3 at 7,000 examples to -0.6 at 10,000"


def test_the_training_metric_tells_overfitting_from_divergence() -> None:
    values: list[float | None] = [*FALL, 0.40, 0.5, 0.6]
    falling = [2.0 - 0.2 * n for n in range(10)]
    rising = [*falling[:7], 1.0, 1.5, 2.5]

    over = describe(course(values, falling), training="loss")
    apart = describe(course(values, rising), training="loss")
    unknown = describe(course(values), training="loss")

    assert over.evidence[-1].endswith("since 7,000 examples: overfitting")
    assert apart.evidence[-1].endswith(": not overfitting, the training itself")
    assert "too few values" in unknown.evidence[-1]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_rise(seed: int) -> None:
    """On a falling course with noise of a tenth of each step nothing rises."""
    chance = random.Random(seed)
    values: list[float | None] = [2.0 * 0.8**n + chance.uniform(-0.01, 0.01) for n in range(25)]

    assert describe(course(values)).kind == WELL_BEHAVED


@given(st.lists(st.floats(-1e6, 1e6) | st.none() | st.just(NAN), max_size=40))
def test_any_course_can_be_described(values: list[float | None]) -> None:
    found = describe(course(values))

    assert found.kind in (WELL_BEHAVED, RISING, ROSE_AND_FELL, UNDECIDED)
    assert found.noise >= 0
    good = [value for value in values if value is not None and value == value]
    assert (None if found.best is None else found.best.metrics["val_loss"]) == min(
        good, default=None
    )


def test_points_that_know_less_are_passed_over() -> None:
    history = course([*FALL, 0.40, 0.5, 0.6])
    silent = [
        Point(number=99, id="f" * 24, seen=None, time=0, metrics={"val_loss": 9.0}),
        Point(number=98, id="e" * 24, seen=5, time=0, metrics={}),
    ]

    assert describe([*silent, *history]) == describe(history)


def test_the_mode_is_min_or_max() -> None:
    with pytest.raises(UsageError):
        describe([], mode="auto")
