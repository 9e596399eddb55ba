"""Structure → state tree; paths, lookup, filter."""

from __future__ import annotations

import pytest

from ckptfmt import tree
from ckptfmt.errors import NotFoundError
from ckptfmt.leaves import ArrayRef
from ckptfmt.testing.strategies import assert_same

STRUCTURE: tree.Structure = {
    "model": {"fc1.weight": ArrayRef(0), "a/b": ArrayRef(1), "": None},
    "optimizer": {"state": {0: {"m": ArrayRef(2)}, -1: 5}, "empty": {}, "none": []},
    "rng": (1, [ArrayRef(0), 2.5]),
    "step": 7,
}
PATHS = [
    ("model/fc1.weight", ArrayRef(0)),
    ("model/a~1b", ArrayRef(1)),
    ("model/", None),
    ("optimizer/state/0/m", ArrayRef(2)),
    ("optimizer/state/-1", 5),
    ("rng/0", 1),
    ("rng/1/0", ArrayRef(0)),
    ("rng/1/1", 2.5),
    ("step", 7),
]


def test_paths_are_in_pre_order() -> None:
    assert list(tree.paths(STRUCTURE)) == PATHS
    assert list(tree.paths({})) == []
    assert list(tree.paths([ArrayRef(0), {"": 1}])) == [("0", ArrayRef(0)), ("1/", 1)]


def test_unflatten_asks_for_every_reference_in_order() -> None:
    asked: list[tuple[str, int]] = []

    def array_of(path: str, row: int) -> object:
        asked.append((path, row))
        return f"array {row}"

    state = tree.unflatten(STRUCTURE, array_of)

    assert asked == [(path, leaf.row) for path, leaf in PATHS if isinstance(leaf, ArrayRef)]
    assert_same(
        state,
        {
            "model": {"fc1.weight": "array 0", "a/b": "array 1", "": None},
            "optimizer": {"state": {0: {"m": "array 2"}, -1: 5}, "empty": {}, "none": []},
            "rng": (1, ["array 0", 2.5]),
            "step": 7,
        },
    )


def test_unflatten_makes_new_containers() -> None:
    state = tree.unflatten(STRUCTURE, lambda path, row: None)

    assert state["optimizer"] is not STRUCTURE["optimizer"]
    assert tree.lookup(state, "optimizer/empty") is not tree.lookup(
        STRUCTURE, "optimizer/empty"
    )
    assert tree.lookup(state, "optimizer/none") is not tree.lookup(STRUCTURE, "optimizer/none")


@pytest.mark.parametrize(("path", "leaf"), PATHS)
def test_lookup_finds_leaves(path: str, leaf: object) -> None:
    assert tree.lookup(STRUCTURE, path) == leaf


@pytest.mark.parametrize("path", ["model", "optimizer/empty", "rng/1", "optimizer/state/0"])
def test_lookup_finds_containers(path: str) -> None:
    node: object = STRUCTURE
    for name in path.split("/"):
        node = node[int(name) if name.isdecimal() else name]  # type: ignore[index]

    assert tree.lookup(STRUCTURE, path) is node


@pytest.mark.parametrize(
    ("path", "inside", "near"),
    [
        ("modle", "the root", ["model"]),
        ("", "the root", []),
        ("model/fc1.wieght", "model", ["model/fc1.weight"]),
        ("model/a~1c", "model", ["model/a~1b"]),
        ("model/a/b", "model", ["model/a~1b"]),
        ("step/x", "step", []),
        ("step/0", "step", []),
        ("rng/2", "rng", []),
        ("rng/-1", "rng", ["rng/1"]),
        ("rng/01", "rng", ["rng/1", "rng/0"]),
        ("rng/1_0", "rng", ["rng/1", "rng/0"]),
        ("rng/+1", "rng", ["rng/1"]),
        ("rng/ 1", "rng", ["rng/1"]),
        ("rng/\u0661", "rng", []),
        ("optimizer/state/00", "optimizer/state", ["optimizer/state/0"]),
        ("optimizer/state/--1", "optimizer/state", ["optimizer/state/-1"]),
        ("optimizer/state/-0", "optimizer/state", ["optimizer/state/0", "optimizer/state/-1"]),
        ("optimizer/empty/0", "optimizer/empty", []),
        ("rng/" + "9" * 5000, "rng", []),
        ("model/~", "model", ["model/a~1b"]),
        ("MODEL", "the root", ["model"]),
        ("model/FC1.Weight", "model", ["model/fc1.weight"]),
    ],
)
def test_lookup_names_what_is_near(path: str, inside: str, near: list[str]) -> None:
    with pytest.raises(NotFoundError, match="no such path") as caught:
        tree.lookup(STRUCTURE, path)

    assert caught.value.where == {"path": path, "inside": inside, "near": near}


def test_one_path_has_one_spelling() -> None:
    with pytest.raises(NotFoundError):
        tree.lookup({"a~b": 1}, "a~b")
    assert tree.lookup({"a~b": 1}, "a~0b") == 1


@pytest.mark.parametrize("key", [2**64 - 1, -(2**63), 0, -1])
def test_lookup_finds_int_keys(key: int) -> None:
    assert tree.lookup({"a": {key: "found"}}, f"a/{key}") == "found"


@pytest.mark.timeout(30)
def test_lookup_is_quick_in_wide_containers() -> None:
    wide: dict[str, object] = {f"layer.{n}": n for n in range(50_000)}

    assert all(tree.lookup({"w": wide}, f"w/layer.{n}") == n for n in range(50_000))
    with pytest.raises(NotFoundError) as caught:
        tree.lookup({"w": wide}, "w/layer.49999x")
    assert "w/layer.49999" in caught.value.where["near"]  # type: ignore[operator]


FILTERED: list[tuple[list[str], object]] = [
    (["**"], STRUCTURE),
    ([], {}),
    (["step"], {"step": 7}),
    (["model/fc1.weight"], {"model": {"fc1.weight": ArrayRef(0)}}),
    (["optimizer/state"], {"optimizer": {"state": {0: {"m": ArrayRef(2)}, -1: 5}}}),
    (["optimizer/empty"], {"optimizer": {"empty": {}}}),
    (["optimizer/none"], {"optimizer": {"none": []}}),
    (["rng/0"], {"rng": {0: 1}}),
    (["rng/1"], {"rng": {1: [ArrayRef(0), 2.5]}}),
    (["rng/1/1"], {"rng": {1: {1: 2.5}}}),
    (["rng/0", "rng/1/0"], {"rng": (1, {0: ArrayRef(0)})}),
    (["rng"], {"rng": (1, [ArrayRef(0), 2.5])}),
    (["nothing"], {}),
]


@pytest.mark.parametrize(("patterns", "left"), FILTERED)
def test_filter_keeps_what_is_selected(patterns: list[str], left: object) -> None:
    # repr tells types, order and bits apart
    assert repr(tree.filter(STRUCTURE, tree.matcher(patterns))) == repr(left)


def test_filter_leaves_the_structure_alone() -> None:
    before = repr(STRUCTURE)

    tree.filter(STRUCTURE, tree.matcher("rng/0"))

    assert repr(STRUCTURE) == before
