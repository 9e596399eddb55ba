"""The grid by itself: stretches of edges at different gaps."""

from __future__ import annotations

from ckptfmt.training.grid import Grid


def divided() -> Grid:
    """Return a grid of hundreds whose rest was divided at 350, between two edges."""
    return Grid.of(1000, 10).divided(after=2, start=350, total=1000, n=5)


def test_edges_of_a_stretch_end_where_the_next_begins() -> None:
    grid = divided()

    assert [grid.edge(k) for k in range(6)] == [0, 100, 200, 566, 783, 1000]
    assert [grid.reached(seen) for seen in (0, 99, 100, 320, 349, 350, 566)] == [
        0, 0, 1, 2, 2, 2, 3,
    ]  # fmt: skip


def test_an_edge_that_was_reached_below_a_later_stretch_stays() -> None:
    lowered = divided().moved(300)
    assert (lowered.n, lowered.edge(3)) == (3, 300)

    raised = lowered.kept(3).moved(1000)

    assert [raised.edge(k) for k in range(4)] == [0, 100, 200, 300]


def test_an_edge_that_was_not_reached_moves_back() -> None:
    assert divided().moved(300).moved(1000) == divided()
