"""Where two runs part: is it the new data?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from ckptfmt.errors import UsageError
from ckptfmt.training import Point, Progress
from ckptfmt.training.curves import Node, Run
from ckptfmt.training.parting import Parting, part, verdict


def run(
    values: Mapping[int, float | None],
    *,
    name: str = "a",
    grown_at: int | None = None,
    recorded: bool = True,
) -> Run:
    progress = Progress(total=1000, virtual_epochs=10, global_batch=10, dataset_size=100)
    nodes: list[Node] = []
    for number, (seen, value) in enumerate(values.items(), 1):
        point = Point(
            number=number, id=f"{name}{number}", seen=seen, time=0, metrics={"loss": value}
        )
        nodes.append(Node(point=point, parent=nodes[-1].point.id if nodes else None))
    for _ in range(max(values) // 10):
        if progress.seen == grown_at:
            progress.declare(dataset_size=200)
        progress.advance(10)
    return Run(
        name=name,
        nodes=tuple(nodes),
        newest=nodes[-1].point.id,
        progress=progress if recorded else None,
    )


def named(found: list[Parting], name: str) -> Parting:
    (one,) = [row for row in found if row.name == name]
    return one


def test_metrics_part_after_the_data_grew() -> None:
    a = run({100: 0.9, 200: 0.8, 300: 0.7})
    b = run({100: 0.9, 200: 0.8, 300: 0.6}, name="b", grown_at=200)
    found = part(a, b)
    loss, data = named(found, "loss"), named(found, "dataset_size")

    assert (loss.compared, loss.last_equal, loss.first_different) == (3, 200, 300)
    assert (loss.a, loss.b) == (0.7, 0.6)
    assert (data.last_equal, data.first_different, data.a, data.b) == (200, 200, 100, 200)
    assert named(found, "global_batch").first_different is None
    assert verdict(found) == [
        "fed differently from 200 examples on: data set size 100 / 200",
        "loss parts first, at 300 examples, still equal at 200: after they were fed"
        " differently, so it may be that",
    ]


def test_metrics_that_part_before_cannot_come_from_it() -> None:
    a = run({100: 0.9, 200: 0.8, 300: 0.7})
    b = run({100: 0.9, 200: 0.81, 300: 0.6}, name="b", grown_at=200)

    assert verdict(part(a, b))[-1] == (
        "loss parts first, at 200 examples, still equal at 100:"
        " before they were fed differently, so it is not that"
    )


def test_runs_that_do_not_part() -> None:
    a, b = (run({100: math.nan, 200: 0.5}, name=name) for name in "ab")

    assert verdict(part(a, b)) == [
        "as far as was declared, both were fed alike",
        "every metric in common is equal up to 200 examples",
    ]


def test_a_change_beyond_what_both_have_seen_is_none() -> None:
    a, b = run({100: 0.5}), run({100: 0.5, 300: 0.1}, name="b", grown_at=200)

    assert named(part(a, b), "dataset_size").first_different is None


def test_nothing_is_interpolated() -> None:
    found = part(run({100: 0.9, 300: 0.7}), run({200: 0.8, 400: 0.1}, name="b"))

    assert named(found, "loss").compared == 0
    assert verdict(found)[-1] == "no metric was measured at the same examples in both"


def test_what_was_not_recorded_is_not_compared() -> None:
    found = part(run({100: 0.5}, recorded=False), run({100: None}, name="b"))

    assert [row.kind for row in found] == ["lineage"]
    assert verdict(found)[0] == "how they were fed is not recorded in both"


def test_a_fork_shares_checkpoints() -> None:
    a = run({100: 0.9, 200: 0.8, 300: 0.7})
    b = run({100: 0.9, 200: 0.8})
    found = named(part(a, b), "checkpoints")

    assert (found.compared, found.last_equal, found.first_different) == (2, 200, 300)
    assert verdict(part(a, b))[0] == "the same checkpoints up to 200 examples"


@pytest.mark.parametrize(("tolerance", "parts"), [(0.0, 100), (1e-3, 200), (0.5, None)])
def test_a_tolerance_is_relative(tolerance: float, parts: int | None) -> None:
    a, b = run({100: 1.0, 200: 1.0}), run({100: 1.0001, 200: 1.1}, name="b")

    assert named(part(a, b, tolerance=tolerance), "loss").first_different == parts


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_no_tolerance(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        part(run({100: 1.0}), run({100: 1.0}), tolerance=tolerance)
