"""Queries over a history: by metric and by examples seen."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.training.selection import MAX_NAMES, Number, Point, at, best, ranked

NAN = float("nan")


def point(number: int, seen: int | None = None, **metrics: Number | None) -> Point:
    return Point(number=number, id=f"{number:024x}", seen=seen, time=0, metrics=metrics)


def history(*losses: Number | None) -> list[Point]:
    return [point(number, loss=loss) for number, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(("mode", "number"), [("min", 2), ("max", 3)])
def test_best_follows_the_mode(mode: str, number: int) -> None:
    assert best(history(0.5, 0.25, 0.75), "loss", mode).number == number


def test_lower_is_better_unless_said_otherwise() -> None:
    assert best(history(0.5, 0.25, 0.75), "loss").number == 2


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("nothing", [NAN, -NAN, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_and_none_are_never_best(mode: str, nothing: float | None, place: int) -> None:
    values: list[float | None] = [0.5, 0.5]
    values.insert(place, nothing)

    chosen = best(history(*values), "loss", mode)

    assert chosen.metrics["loss"] == 0.5


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_point_without_the_metric_is_never_best(mode: str) -> None:
    points = [point(1, accuracy=1), point(2, loss=0.5), point(3)]

    assert best(points, "loss", mode).number == 2


@pytest.mark.parametrize("mode", ["min", "max"])
def test_ties_go_to_the_earlier_commit_in_any_order(mode: str) -> None:
    points = history(0.5, 0.5, 0.5)

    assert best(points, "loss", mode).number == 1
    assert best(reversed(points), "loss", mode).number == 1
    assert [p.number for p in ranked(reversed(points), "loss", mode)] == [1, 2, 3]


def test_infinity_is_an_ordinary_value() -> None:
    points = history(math.inf, 1.0, -math.inf)

    assert [p.number for p in ranked(points, "loss")] == [3, 2, 1]
    assert [p.number for p in ranked(points, "loss", "max")] == [1, 2, 3]


def test_large_integers_are_compared_exactly() -> None:
    assert best(history(2**53 + 1, 2**53), "loss", "min").number == 2
    assert best(history(2**53, 2**53 + 1), "loss", "max").number == 2


@pytest.mark.parametrize("mode", ["auto", "", "MIN", None])
def test_mode_is_min_or_max(mode: str) -> None:
    with pytest.raises(UsageError, match="mode must be 'min' or 'max', got "):
        best(history(1.0), "loss", mode)


def test_a_wrong_mode_is_found_on_an_empty_history() -> None:
    with pytest.raises(UsageError):
        best([], "loss", "auto")


def test_unknown_metric_names_known_and_near_ones() -> None:
    points = [point(1, val_loss=0.5), point(2, accuracy=1, val_loss=None)]

    with pytest.raises(NotFoundError) as caught:
        best(points, "val_los")

    assert str(caught.value) == (
        "no checkpoint has this metric; did you mean 'val_loss'? "
        "known: 'accuracy', 'val_loss' [metric='val_los']"
    )


def test_a_metric_that_resembles_none_is_not_guessed() -> None:
    with pytest.raises(NotFoundError) as caught:
        best(history(1.0), "zzz")

    assert str(caught.value) == ("no checkpoint has this metric; known: 'loss' [metric='zzz']")


def test_known_names_are_bounded_in_the_message() -> None:
    exactly = [point(1, **{f"metric{i:04}": 1 for i in range(MAX_NAMES)})]
    with pytest.raises(NotFoundError) as caught:
        best(exactly, "zzz")
    assert "more" not in str(caught.value)

    points = [point(1, **{f"metric{i:04}": 1 for i in range(1000)})]

    with pytest.raises(NotFoundError) as caught:
        best(points, "zzz")

    assert len(str(caught.value)) < 600
    assert "... and 980 more" in str(caught.value)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "there is no checkpoint to choose from"),
        ([point(1), point(2)], "no checkpoint has any metric"),
        (history(NAN, None), "no checkpoint has a comparable value"),
    ],
)
def test_nothing_to_choose_says_why(points: list[Point], reason: str) -> None:
    with pytest.raises(NotFoundError, match=reason) as caught:
        best(points, "loss")

    assert caught.value.where["metric"] == "loss"


@pytest.mark.parametrize(
    ("examples", "number"), [(100, 1), (199, 1), (200, 2), (201, 2), (10**18, 3)]
)
def test_at_is_the_newest_that_has_not_seen_more(examples: int, number: int) -> None:
    points = [point(1, 100), point(2, 200), point(3, 300)]

    assert at(points, examples=examples).number == number


def test_at_after_a_rollback_prefers_the_later_commit_of_the_same_seen() -> None:
    points = [point(1, 100), point(2, 200), point(3, 100), point(4, 150)]

    assert at(points, examples=120).number == 3
    assert at(reversed(points), examples=120).number == 3
    assert at(points, examples=500).number == 2


def test_at_zero_examples_is_the_start_of_a_run() -> None:
    assert at([point(1, 0), point(2, 1)], examples=0).number == 1


def test_at_passes_over_points_without_examples() -> None:
    assert at([point(1, 0), point(2, None)], examples=5).number == 1


def test_at_names_the_earliest_when_all_have_seen_more() -> None:
    with pytest.raises(NotFoundError, match="at most 99 examples, the earliest has seen 100"):
        at([point(2, 200), point(1, 100)], examples=99)


def test_at_without_any_count_says_how_to_record_it() -> None:
    with pytest.raises(NotFoundError, match="counters="):
        at([point(1)], examples=1)


@pytest.mark.parametrize("examples", [-1, 1.5, "1", None, True])
def test_at_takes_counts_only(examples: int) -> None:
    with pytest.raises(UsageError, match="examples must be an integer"):
        at([point(1, 0)], examples=examples)


@given(
    st.lists(st.none() | st.integers(-3, 3) | st.floats(width=16), min_size=1),
    st.sampled_from(["min", "max"]),
    st.randoms(),
)
def test_ranking_agrees_with_a_plain_search(values, mode, random) -> None:  # type: ignore[no-untyped-def]
    points = history(*values)
    random.shuffle(points)
    usable = [
        p
        for p in points
        if p.metrics["loss"] is not None and p.metrics["loss"] == p.metrics["loss"]
    ]
    sign = 1 if mode == "min" else -1

    ranking = ranked(points, "loss", mode)

    assert ranking == sorted(usable, key=lambda p: (sign * p.metrics["loss"], p.number))
