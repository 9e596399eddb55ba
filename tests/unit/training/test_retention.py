"""Rules of retention: a union, stable, and never below one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfmt.errors import UsageError
from ckptfmt.training.retention import Keep, keep, survivors, tips
from ckptfmt.training.selection import Number, Point

HOUR = 3_600_000_000
NAN = float("nan")


def point(
    number: int, *, seen: int | None = None, hour: float = 0, **metrics: Number | None
) -> Point:
    time = round(hour * HOUR)
    return Point(number=number, id=f"{number:024x}", seen=seen, time=time, metrics=metrics)


def losses(*values: Number | None) -> list[Point]:
    return [point(number, loss=value) for number, value in enumerate(values, start=1)]


def test_last_keeps_the_highest_numbers_in_any_order() -> None:
    points = [point(4), point(1), point(7), point(3)]

    assert survivors(points, keep(last=2)) == {4, 7}


def test_last_larger_than_the_history_keeps_all() -> None:
    assert survivors([point(1), point(2)], keep(last=100)) == {1, 2}


def test_newest_stays_although_no_rule_wants_it() -> None:
    assert survivors(losses(0.1, 0.2, 0.3), keep(best=("loss", "min", 1))) == {1, 3}


def test_nothing_survives_of_nothing() -> None:
    assert survivors([], keep(last=1), pinned=[1]) == set()


def test_best_keeps_so_many_of_the_metric() -> None:
    points = losses(0.4, 0.1, 0.3, 0.2, 0.9)

    assert survivors(points, keep(best=("loss", "min", 2))) == {2, 4, 5}
    assert survivors(points, keep(best=("loss", "max", 2))) == {1, 5}


def test_best_never_keeps_nan() -> None:
    assert survivors(losses(NAN, None, 0.5, 0.7, NAN), keep(best=("loss", "max", 5))) == {
        3,
        4,
        5,
    }


def test_best_of_several_metrics_is_a_union() -> None:
    points = [point(1, loss=0.1, acc=0.2), point(2, loss=0.3, acc=0.9), point(3, loss=1, acc=0)]

    rules = keep(best=[("loss", "min", 1), ("acc", "max", 1)])

    assert survivors(points, rules) == {1, 2, 3}
    assert survivors(points, keep(best=[("loss", "min", 1)])) == {1, 3}


@pytest.mark.parametrize("metric", ["val_loss", "los"])
def test_a_metric_that_nobody_has_deletes_nothing(metric: str) -> None:
    points = losses(0.3, 0.2, 0.1)

    assert survivors(points, keep(last=1, best=(metric, "min", 1))) == {1, 2, 3}


def test_a_metric_that_is_nan_everywhere_is_known() -> None:
    assert survivors(losses(NAN, NAN, NAN), keep(best=("loss", "min", 2))) == {3}


def test_every_examples_keeps_the_first_of_each_window() -> None:
    seen = [0, 90, 100, 110, 199, 350, 399, 400]
    points = [point(number, seen=value) for number, value in enumerate(seen)]

    assert survivors(points, keep(every_examples=100)) == {0, 2, 5, 7}


def test_every_examples_is_not_displaced_by_a_rollback() -> None:
    points = [point(1, seen=150), point(2, seen=250), point(3, seen=110), point(4, seen=120)]

    assert survivors(points, keep(every_examples=100)) == {1, 2, 4}


def test_every_examples_passes_over_points_without_examples() -> None:
    points = [point(1), point(2, seen=5), point(3, seen=6)]

    assert survivors(points, keep(every_examples=100)) == {2, 3}


def test_every_hours_goes_by_recorded_time() -> None:
    hours = [0.0, 1.5, 1.999, 2.0, 3.99, 7.5, 7.6]
    points = [point(number, hour=value) for number, value in enumerate(hours)]

    assert survivors(points, keep(every_hours=2)) == {0, 3, 5, 6}


def test_every_hours_takes_fractions() -> None:
    points = [point(number, hour=number / 4) for number in range(5)]

    assert survivors(points, keep(every_hours=0.5)) == {0, 2, 4}


def test_a_clock_set_back_displaces_nothing() -> None:
    points = [point(1, hour=10.5), point(2, hour=10.1), point(3, hour=10.9), point(4, hour=-3)]

    assert survivors(points, keep(every_hours=1)) == {1, 4}


def test_a_tiny_span_of_hours_is_legal() -> None:
    assert survivors([point(1), point(2)], keep(every_hours=1e-300)) == {1, 2}


def test_pinned_numbers_stay_and_unknown_ones_are_left_out() -> None:
    points = [point(number) for number in range(1, 6)]

    assert survivors(points, keep(last=1), pinned={2, 99}) == {2, 5}
    assert survivors(points, keep(last=1), iter([3])) == {3, 5}


def test_rules_are_a_union() -> None:
    points = [
        point(1, seen=10, hour=0, loss=0.9),
        point(2, seen=20, hour=0, loss=0.1),
        point(3, seen=110, hour=0, loss=0.8),
        point(4, seen=120, hour=1, loss=0.8),
        point(5, seen=130, hour=1, loss=0.8),
        point(6, seen=140, hour=1, loss=0.8),
        point(7, seen=150, hour=1, loss=0.8),
    ]
    rules = keep(last=1, best=("loss", "min", 1), every_examples=100, every_hours=1)

    assert survivors(points, rules, pinned=[6]) == {1, 2, 3, 4, 6, 7}


@pytest.mark.parametrize("name", ["last", "every_examples"])
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3"])
def test_counts_are_positive_integers(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} must be an integer >= 1, got "):
        keep(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 0.0, NAN, float("inf"), True, "3"])
def test_hours_are_positive_and_finite(value: float) -> None:
    with pytest.raises(UsageError, match="every_hours must be "):
        keep(every_hours=value)


@pytest.mark.parametrize(
    ("best", "reason"),
    [
        (("loss", "auto", 1), "mode must be 'min' or 'max', got 'auto'"),
        (("loss", "min", 0), "best count of 'loss' must be an integer >= 1, got 0"),
        (("loss", "min", True), "must be an integer >= 1, got True"),
        (("loss", "min"), r"best must be \(metric, mode, n\)"),
        (("", "min", 1), r"best must be \(metric, mode, n\)"),
        ("loss", r"best must be \(metric, mode, n\)"),
        (3, r"best must be \(metric, mode, n\)"),
        ([("loss", "min", 1), ("acc", 1)], r"best must be \(metric, mode, n\)"),
        ([7], r"best must be \(metric, mode, n\)"),
    ],
)
def test_best_is_validated(best: object, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        keep(best=best)  # type: ignore[arg-type]


@pytest.mark.parametrize("best", [None, [], ()])
def test_no_rule_at_all_is_refused(best: list[tuple[str, str, int]] | None) -> None:
    with pytest.raises(
        UsageError, match="at least one rule; to keep everything, pass keep=None"
    ):
        keep(best=best)


def test_rules_are_validated_however_they_are_built() -> None:
    with pytest.raises(UsageError):
        Keep(last=0)


def test_spellings_of_best_are_equal() -> None:
    assert keep(best=("loss", "min", 1)) == keep(best=[("loss", "min", 1)])
    assert keep(best=[["loss", "min", 1]]) == keep(best=("loss", "min", 1))  # type: ignore[list-item]
    assert keep(best=["loss", "min", 1]) == keep(best=("loss", "min", 1))  # type: ignore[list-item]


POINTS = st.lists(
    st.builds(
        lambda seen, hour, loss: (seen, hour, loss),
        st.none() | st.integers(0, 500),
        st.floats(-5, 50),
        st.none() | st.floats(width=16),
    ),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        point(number, seen=seen, hour=hour, loss=loss)
        for number, (seen, hour, loss) in enumerate(rows)
    ]
)
RULES = st.builds(
    keep,
    last=st.integers(1, 5),
    best=st.none() | st.just(("loss", "min", 2)),
    every_examples=st.none() | st.integers(1, 200),
    every_hours=st.none() | st.floats(0.1, 20),
)


@given(POINTS, RULES, st.sets(st.integers(0, 40)))
def test_survivors_survive_again(points: list[Point], rules: Keep, pinned: set[int]) -> None:
    staying = survivors(points, rules, pinned)

    assert points[-1].number in staying
    assert staying <= {p.number for p in points}
    assert survivors([p for p in points if p.number in staying], rules, pinned) == staying


@given(POINTS, RULES)
def test_deciding_after_every_save_or_once_at_the_end_keeps_the_same_for_ever(
    points: list[Point], rules: Keep
) -> None:
    left: list[Point] = []
    for new in points:
        left.append(new)
        staying = survivors(left, rules)
        left = [p for p in left if p.number in staying]

    assert {p.number for p in left} == survivors(points, rules)


# 1 - 2 - 4 - 7, a branch 2 - 5 and another 1 - 3 - 6; 8 began a new lineage.
PARENTS = {1: None, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4, 8: None}


def ancestors(number: int) -> list[str]:
    parent = PARENTS[number]
    return [] if parent is None else [*ancestors(parent), f"{parent:024x}"]


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (range(1, 9), {5, 6, 7, 8}),
        ([1, 3, 7], {3, 7}),  # 1 is known from 7, although 2 and 4 are gone
        ([2, 3], {2, 3}),
        ([7, 1, 6], {6, 7}),
        ([], set()),
    ],
)
def test_tips_are_what_no_other_continues(present: list[int], found: set[int]) -> None:
    assert tips([point(number) for number in present], ancestors) == found


def test_only_tips_are_asked_for_their_ancestors() -> None:
    """Each answer costs a read of a manifest."""
    asked = []

    tips(map(point, PARENTS), lambda n: (asked.append(n), ancestors(n))[1])

    assert asked == [8, 7, 6, 5]
