"""Which arrays are reported to share memory."""

from __future__ import annotations

import numpy as np
import pytest

from ckptfmt import tree
from ckptfmt.tree import overlap

W = np.arange(24, dtype="f4")
M = W.reshape(4, 6)

SHARE: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "prefix": (W, W[:1]),
    "last byte": (W.view("u1"), W.view("u1")[-1:]),
    "window": (W[:10], W[9:]),
    "reversed": (W[::-1], W[:1]),
    "end of a reversed": (W[::-1], W[-1:]),
    "column": (M, M[:, 1]),
    "transposed": (M, M.T[1:]),
    "strided that meet": (W[::2], W[::3]),
    "broadcast": (np.broadcast_to(W[3:4], (5,)), W[:4]),
    "half of an item": (W[1:2], W.view("i2")[3:4]),
}
DISJOINT: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "neighbours": (W[:10], W[10:]),
    "neighbours, reversed": (W[9::-1], W[:9:-1]),
    "columns": (M[:, 0], M[:, 1]),
    "even and odd": (W[::2], W[1::2]),
    "complex parts": (W.view("c8").real, W.view("c8").imag),
    "empty inside": (W, W[3:3]),
    "copies": (W, W.copy()),
}


@pytest.mark.parametrize(("a", "b"), SHARE.values(), ids=SHARE)
def test_arrays_that_share_a_byte_are_reported(a: np.ndarray, b: np.ndarray) -> None:
    assert tree.flatten({"a": a, "b": b}).overlaps == (("a", "b"),)
    assert tree.flatten({"a": b, "b": a}).overlaps == (("a", "b"),)


@pytest.mark.parametrize(("a", "b"), DISJOINT.values(), ids=DISJOINT)
def test_arrays_that_share_none_are_not_reported(a: np.ndarray, b: np.ndarray) -> None:
    assert tree.flatten({"a": a, "b": b}).overlaps == ()
    assert tree.flatten({"a": b, "b": a}).overlaps == ()


def test_every_pair_is_reported_in_row_order() -> None:
    state: dict[str, object] = {"d": W[9:], "c": W[:10], "b": W, "a": W[:1], "tied": W[:1]}

    assert tree.flatten(state).overlaps == (
        ("d", "c"), ("d", "b"), ("c", "b"), ("c", "a"), ("b", "a"),
    )  # fmt: skip


def test_arrays_that_are_passed_cost_nothing() -> None:
    memory = np.zeros(4000, "u1")
    state: dict[str, object] = {f"{i}": memory[i : i + 1] for i in range(3990)}
    state |= {"a": memory[3990:], "b": memory[3995:]}

    assert tree.flatten(state).overlaps == (("a", "b"),)


def hard(seed: int) -> np.ndarray:
    """Return a view whose overlap with another such is a hard problem."""
    sides = np.random.default_rng(seed).integers(2, 5, 20)
    strides = np.random.default_rng(seed + 100).integers(1000, 100_000, 20) | 1
    memory = np.zeros(int(strides @ (sides - 1)) + 1, "u1")
    return np.lib.stride_tricks.as_strided(memory, sides, strides)


def test_a_pair_that_is_too_hard_to_decide_is_reported() -> None:
    a = hard(1)
    b = np.lib.stride_tricks.as_strided(
        a[..., 1], a.shape[:-1], [s * 2 for s in a.strides[:-1]]
    )
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(a, b, max_work=overlap.EFFORT)

    assert tree.flatten({"a": a, "b": b}).overlaps == (("a", "b"),)


@pytest.mark.timeout(30)  # 0.1 s, unless every pair is looked at
@pytest.mark.parametrize(
    "views",
    [
        [M[:, i % 6] for i in range(600)],
        list(np.zeros((50, 2000), "u1").T),
        [W[: i % 24] for i in range(20_000)],
        [np.zeros(100_000, "u1")[i:] for i in range(2000)],
    ],
    ids=["tied columns", "interleaved columns", "tied prefixes", "nested suffixes"],
)
def test_many_views_take_bounded_time(views: list[np.ndarray]) -> None:
    assert len(tree.flatten({"views": views}).overlaps) <= overlap.MAX_PAIRS


def test_only_so_many_pairs_are_looked_at() -> None:
    memory = np.zeros(4000, "u1")
    views = {f"{i}": memory[i:] for i in range(2000)}

    pairs = tree.flatten(views).overlaps

    assert 0.9 * overlap.MAX_PAIRS < len(pairs) <= overlap.MAX_PAIRS


BASE = np.zeros((4, 6))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (BASE, False),
        (BASE.T, False),
        (BASE[::2, ::-3], False),
        (BASE[:1], False),
        (np.lib.stride_tricks.as_strided(BASE, (1, 3), (0, 8)), False),
        (np.lib.stride_tricks.as_strided(BASE, (2, 3), (0, 8)), True),
        (np.lib.stride_tricks.as_strided(BASE, (4, 3), (8, 8)), True),
        (np.lib.stride_tricks.as_strided(BASE, (2, 3), (16, 8)), True),
        (np.lib.stride_tricks.as_strided(BASE, (2,), (4,)), True),
        (np.zeros((0, 3)), False),
        (np.zeros(()), False),
    ],
)
def test_arrays_whose_elements_share_memory_are_told(array: np.ndarray, expected: bool) -> None:
    assert overlap.folds(array) == expected
