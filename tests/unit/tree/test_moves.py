"""Rename: where leaves go, what containers become, and what is refused."""

from __future__ import annotations

import pytest

from ckptfmt import tree
from ckptfmt.errors import UsageError
from ckptfmt.leaves import MAX_DEPTH, MAX_PATH_NBYTES, ArrayRef
from ckptfmt.testing.strategies import assert_same

W, B, M = ArrayRef(0), ArrayRef(1), ArrayRef(2)
STRUCTURE: tree.Structure = {
    "model": {"fc": {"w": W, "b": B}, "list": [1, (2, 3)]},
    "opt": {0: {"m": M}, "empty": {}},
    "step": 7,
}
OPT = {"opt": {0: {"m": M}, "empty": {}}}
LIST = {"list": [1, (2, 3)]}

RENAMED: dict[str, tuple[dict[str, str], object]] = {
    "nothing": ({}, STRUCTURE),
    "a leaf": (
        {"step": "counters/step"},
        {"model": STRUCTURE["model"], **OPT, "counters": {"step": 7}},
    ),
    "a section": (
        {"model": "net"},
        {"net": STRUCTURE["model"], **OPT, "step": 7},
    ),
    "a container": (
        {"model/fc": "model/linear"},
        {"model": {"linear": {"w": W, "b": B}, **LIST}, **OPT, "step": 7},
    ),
    "the longest prefix wins": (
        {"model": "net", "model/fc/w": "top/kernel"},
        {"top": {"kernel": W}, "net": {"fc": {"b": B}, **LIST}, **OPT, "step": 7},
    ),
    "a swap": (
        {"model/fc/w": "model/fc/b", "model/fc/b": "model/fc/w"},
        {"model": {"fc": {"b": W, "w": B}, **LIST}, **OPT, "step": 7},
    ),
    "a prefix away": (
        {"model": ""},
        {"fc": {"w": W, "b": B}, **LIST, **OPT, "step": 7},
    ),
    "two into one": (
        {"opt": "model"},
        {"model": {"fc": {"w": W, "b": B}, **LIST, "0": {"m": M}, "empty": {}}, "step": 7},
    ),
    "one into another's container": (
        {"opt/0": "model/fc"},
        {"model": {"fc": {"w": W, "b": B, "m": M}, **LIST}, "opt": {"empty": {}}, "step": 7},
    ),
    "a leaf into a container that stays": (
        {"step": "opt/0/step"},
        {"model": STRUCTURE["model"], "opt": {0: {"m": M, "step": 7}, "empty": {}}},
    ),
    "an empty container": (
        {"opt/empty": "opt/state"},
        {"model": STRUCTURE["model"], "opt": {"0": {"m": M}, "state": {}}, "step": 7},
    ),
    "an element": (
        {"model/list/0": "first"},
        {
            "model": {"fc": {"w": W, "b": B}, "list": {"1": (2, 3)}},
            "first": 1,
            **OPT,
            "step": 7,
        },
    ),
    "a prefix that never is the longest": (
        {"model/fc": "x", "model/fc/w": "w", "model/fc/b": "b"},
        {"w": W, "b": B, "model": LIST, **OPT, "step": 7},
    ),
    "to an escaped name": (
        {"model/fc/w": "model/fc/a~1b~0"},
        {"model": {"fc": {"a/b~": W, "b": B}, **LIST}, **OPT, "step": 7},
    ),
}


@pytest.mark.parametrize(("names", "expected"), RENAMED.values(), ids=RENAMED)
def test_rename_by_mapping(names: dict[str, str], expected: dict[str, object]) -> None:
    before = repr(STRUCTURE)

    renamed = tree.rename(STRUCTURE, names)

    assert dict(tree.paths(renamed)) == dict(tree.paths(expected))
    assert_same(ordered(renamed), ordered(expected))
    assert repr(STRUCTURE) == before


def ordered(node: object) -> object:
    """Sort dicts by key text: which of two merged containers comes first is of no interest."""
    if isinstance(node, dict):
        return {key: ordered(node[key]) for key in sorted(node, key=str)}
    if isinstance(node, (list, tuple)):
        return type(node)(map(ordered, node))
    return repr(node)


def test_rename_by_function_sees_every_leaf() -> None:
    seen: list[str] = []

    def name(path: str) -> str:
        seen.append(path)
        return path.replace("fc/", "dense/").removeprefix("model/")

    renamed = tree.rename(STRUCTURE, name)

    assert seen == [
        "model/fc/w", "model/fc/b", "model/list/0", "model/list/1/0", "model/list/1/1",
        "opt/0/m", "opt/empty", "step",
    ]  # fmt: skip
    assert_same(
        ordered(renamed), ordered({"dense": {"w": W, "b": B}, **LIST, **OPT, "step": 7})
    )


def test_order_of_leaves_stays() -> None:
    renamed = tree.rename({"a": 1, "b": {"c": 2, "d": 3}, "e": 4}, {"b": "x/y", "a": "z"})

    assert list(tree.paths(renamed)) == [("z", 1), ("x/y/c", 2), ("x/y/d", 3), ("e", 4)]


def test_a_leaf_may_take_the_name_of_its_container() -> None:
    renamed = tree.rename({"p": {"a": {"x": 1}}}, {"p/a/x": "q/a"})

    assert renamed == {"q": {"a": 1}}


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "two leaves": ({"model/fc/w": "step"}, "two leaves get the same path"),
    "two moved leaves": (
        {"model/fc/w": "x", "model/fc/b": "x"},
        "two leaves get the same path",
    ),
    "a leaf over a container": ({"step": "model"}, "one inside the other"),
    "a leaf below a leaf": ({"step": "model/fc/w/x"}, "one inside the other"),
    "a container over a leaf": ({"model/fc": "step"}, "one inside the other"),
    "a list over a dict": ({"model/list": "opt"}, "one inside the other"),
    "a dict over a list": ({"opt": "model/list"}, "one inside the other"),
    "into a list that stays": ({"step": "model/list/2"}, "one inside the other"),
    "int key and text": ({"model/fc": "opt", "model/fc/w": "opt/0"}, "the same path"),
    "merged leaves": ({"opt/0": "model/fc", "model/fc/w": "model/fc/m"}, "the same path"),
    "bad escape": ({"step": "a~b"}, "'~' that is not '~0' or '~1'"),
    "no path left": ({"step": ""}, "cannot lose its whole path"),
    "unknown": ({"modle": "model"}, "name nothing"),
    "half a component": ({"mod": "x"}, "name nothing"),
    "too deep": ({"step": "a/" * MAX_DEPTH + "b"}, "too deep or too long"),
    "too long": ({"step": "a" * (MAX_PATH_NBYTES + 1)}, "too deep or too long"),
    "not Unicode": ({"step": "\ud800"}, "not Unicode"),
}


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_rename_refuses(names: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tree.rename(STRUCTURE, names)


def test_a_function_that_returns_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="expected a path"):
        tree.rename(STRUCTURE, lambda path: None)  # type: ignore[arg-type,return-value]


def test_limits_are_inclusive() -> None:
    deep = "a/" * (MAX_DEPTH - 1) + "b"
    long = "ü" * (MAX_PATH_NBYTES // 2)

    renamed = tree.rename({"x": 1, "y": 2}, {"x": deep, "y": long})

    assert list(tree.paths(renamed)) == [(deep, 1), (long, 2)]


@pytest.mark.parametrize("names", [{"m": "a/" * (MAX_DEPTH - 2) + "b"}, {"m": "k" * 8185}])
def test_what_moves_along_counts_for_the_limits(names: dict[str, str]) -> None:
    structure: tree.Structure = {"m": {"inner": {"leaf": 1}}}

    with pytest.raises(UsageError, match="too deep or too long"):
        tree.rename(structure, names)
