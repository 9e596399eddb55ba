"""A run as lines, edges, events and extremes."""

from __future__ import annotations

import math

import pytest

from ckptfmt.training import Point, Progress, curves
from ckptfmt.training.curves import Node, Run
from ckptfmt.training.scene import Scene


def node(
    number: int,
    parent: int | None = None,
    *,
    seen: int | None = -1,
    stored: bool = True,
    process: int | None = None,
    **metrics: float | None,
) -> Node:
    return Node(
        point=Point(
            number=number,
            id=f"{number:024x}",
            seen=100 * number if seen == -1 else seen,
            time=0,
            metrics=metrics,
            process=None if process is None else f"{process:024x}",
            stored=stored,
        ),
        parent=None if parent is None else f"{parent:024x}",
    )


def run(*nodes: Node, progress: Progress | None = None) -> Run:
    return Run(name="r", nodes=nodes, newest=nodes[-1].point.id, progress=progress)


def numbers(found: Run) -> list[tuple[bool, bool, list[int]]]:
    return [
        (line.main, line.forked, [n.point.number for n in line.nodes])
        for line in curves.lines(found)
    ]


def test_a_rollback_is_a_branch_that_begins_where_it_leaves() -> None:
    found = run(node(1), node(2, 1), node(3, 2), node(4, 2), node(5, 4))

    assert numbers(found) == [(True, False, [1, 2, 4, 5]), (False, True, [2, 3])]
    assert curves.events(found) == [(200, "resume", "checkpoint 4 continues 2")]


def test_a_new_process_that_goes_on_is_a_restart_unless_it_went_back() -> None:
    found = run(
        node(1, process=1),
        node(2, 1, process=1),
        node(3, 2, process=3, stored=False),
        node(4, 3),  # of a release that did not record it
        node(6, 4, process=6),
        node(7, 6, process=6),
    )

    assert curves.events(found) == [
        (200, "restart", "a new process goes on from checkpoint 2"),
        (400, "resume", "checkpoint 6 continues 4"),
    ]
    scene = Scene(runs=(found,), labels=("",), modes={})
    assert scene.restarts(found) == [200]
    assert [mark.x for mark in scene.marks()] == [400]  # a restart has no number
    assert "1 restart" in scene.titles[0]


def test_the_main_line_is_that_of_the_newest_one_named() -> None:
    nodes = (node(1), node(2, 1), node(3, 1))
    named = Run(name="r", nodes=nodes, newest=nodes[1].point.id)

    assert numbers(named) == [(True, False, [1, 2]), (False, True, [1, 3])]


def test_lineages_without_a_common_beginning() -> None:
    assert numbers(run(node(1), node(2), node(3, 2))) == [
        (True, False, [2, 3]),
        (False, False, [1]),
    ]


def test_no_checkpoints() -> None:
    nothing = Run(name="r")

    assert (curves.lines(nothing), curves.main_line(nothing), curves.events(nothing)) == (
        [],
        (),
        [],
    )
    assert curves.edges(None) == []


def test_what_was_declared_is_told_in_order() -> None:
    progress = Progress(total=1000, virtual_epochs=4, global_batch=100, parent=("ab" * 12, 77))
    progress.advance(100)
    progress.declare(global_batch=50, dataset_size=2000)
    progress.advance(100)
    progress.extend(total=2000)
    progress.advance(100)
    progress.declare(data_replay=True)

    assert curves.events(run(node(1), progress=progress)) == [
        (0, "origin", "begun from checkpoint abababab at 77"),
        (100, "segment", "batch 100 → 50, data set size ? → 2,000"),
        (200, "extension", "stop point 1,000 → 2,000"),
        (300, "segment", "position in the data lost"),
    ]


def test_edges_are_those_of_the_grid() -> None:
    progress = Progress(total=1003, virtual_epochs=4)

    assert curves.edges(progress) == [(1, 250), (2, 501), (3, 752), (4, 1003)]


def test_very_many_edges_are_thinned_and_end_at_the_total() -> None:
    found = curves.edges(Progress(total=2**62, virtual_epochs=2**40 + 1))

    assert len(found) <= curves.MAX_EDGES
    assert found[-1] == (2**40 + 1, 2**62)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"), ("val_loss", "min"), ("eval/token-error", "min"), ("acc", "max"),
        ("val/f1+averaged", "max"), ("lr", None), ("loss_score", None), ("glossy", None),
        ("+averaged", None), ("", None),
    ],
)  # fmt: skip
def test_a_name_says_which_way_it_improves_or_nothing(name: str, mode: str | None) -> None:
    assert curves.mode_of(name) == mode


def test_the_best_ever_and_the_best_that_can_be_loaded() -> None:
    found = run(
        node(1, loss=0.5),
        node(2, 1, loss=0.1, stored=False),
        node(3, 2, loss=math.nan),
        node(4, 3, loss=0.3),
    )
    best = curves.extremes(found, {"loss": "min", "acc": "max"})

    assert [(e.metric, e.point.number, e.point.stored) for e in best] == [
        ("loss", 2, False),
        ("loss", 4, True),
    ]


def test_metrics_of_one_quantity_share_a_panel() -> None:
    names = ["loss", "lr", "val_loss", "train/loss+averaged", "a+b"]

    assert curves.panels(names) == [
        ("loss", "val_loss", "train/loss+averaged"),
        ("lr",),
        ("a+b",),
    ]


def test_numbers_that_no_float_can_hold() -> None:
    assert curves.as_float(10**400) == math.inf
    assert curves.as_float(-(10**400)) == -math.inf
    assert curves.as_float(None) is None
    assert curves.place(node(1, seen=2**63).point) is None
    assert curves.place(node(1, seen=-5).point) is None


def test_without_counts_of_examples_the_axis_is_the_number() -> None:
    bare = run(node(1, seen=None, loss=0.5), node(2, 1, seen=None, loss=0.25))
    scene = Scene(runs=(bare,), labels=("",), panels=(("loss",),), modes={})

    assert scene.axis == "number"
    assert scene.table() == (
        ["number", "checkpoint", "loss"],
        [["1", "1", "0.5"], ["2", "2", "0.25"]],
    )


def test_what_cannot_be_placed_is_said() -> None:
    some = run(node(1, seen=None), node(2, 1))
    scene = Scene(runs=(some,), labels=("",), modes={})

    assert [n.point.number for line in scene.lines(some) for n in line.nodes] == [2]
    assert "1 not placed: they did not record `seen`" in scene.titles[0]
