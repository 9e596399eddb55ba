"""What holds for every state tree: it comes back, has one encoding, and keeps its paths."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfmt import tree
from ckptfmt.errors import FormatError, StateError, UsageError
from ckptfmt.format import _msgpack, values
from ckptfmt.leaves import ArrayRef
from ckptfmt.testing import strategies
from ckptfmt.testing.strategies import Array, State, assert_same


def stored(flat: tree.Flat) -> list[Array]:
    """Return what a store would give back: own memory, little-endian, C order."""
    return [
        np.frombuffer(bytearray(to_bytes(leaf)), leaf.dtype.numpy).reshape(leaf.array.shape)
        for leaf in flat.leaves
    ]


def to_bytes(leaf: tree.Leaf) -> bytes:
    return leaf.array.astype(leaf.dtype.numpy, copy=False).tobytes()


@given(strategies.trees())
def test_a_tree_comes_back(state: State) -> None:
    flat = tree.flatten(state)
    arrays = stored(flat)

    node = _msgpack.unpack(_msgpack.pack(values.encode(flat.structure)), "$")
    structure = values.decode(node, arrays=len(arrays))
    loaded = tree.unflatten(structure, lambda path, row: arrays[row])

    assert_same(loaded, state)
    assert structure == flat.structure or "nan" in repr(structure)


@given(strategies.trees())
def test_rows_are_named_by_their_references(state: State) -> None:
    flat = tree.flatten(state)

    references: dict[int, list[str]] = {}
    for path, leaf in tree.paths(flat.structure):
        if isinstance(leaf, ArrayRef):
            references.setdefault(leaf.row, []).append(path)

    assert list(references) == list(range(len(flat.leaves)))
    assert [[leaf.path, *leaf.aliases] for leaf in flat.leaves] == list(references.values())


def nodes() -> st.SearchStrategy[object]:
    """Draw what msgpack may hand to the decoder: sometimes a node, mostly nearly one."""
    names = st.sampled_from(["F32", "BOOL", "I4", "F99", "", "2026-11-20T17:42:53"])
    bits = st.sampled_from(
        [b"", b"\0", b"\1", b"\2", b"\0\0\0\0", b"\0" * 9, b"\1" + b"\0" * 8]
    )
    atoms = st.one_of(st.none(), st.booleans(), st.integers(-1, 9), st.floats(), names, bits)
    keys = st.lists(st.sampled_from(["a", "1", 1, "", None, True, 2**70]), max_size=2)

    def containers(node: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        children = st.lists(node, max_size=2)
        return st.one_of(
            st.builds(lambda a, b: [0, a, b], keys, children),
            st.builds(lambda tag, a: [tag, a], st.sampled_from([1, 2, 1.0, True]), children),
            st.builds(lambda row: [3, row], st.integers(-1, 4)),
            st.builds(lambda tag, *rest: [tag, *rest], st.integers(3, 8), atoms, atoms),
            st.builds(lambda tag, atom: [tag, atom], st.integers(3, 8), atoms),
            st.lists(node, max_size=4),
        )

    return st.recursive(atoms, containers, max_leaves=8)


@given(nodes())
def test_a_node_is_refused_or_is_the_only_one_of_its_value(node: object) -> None:
    root = [0, ["a"], [node]]
    try:
        structure = values.decode(root, arrays=4)
    except FormatError as error:
        assert error.where["at"] == "$.tree"  # noqa: PT017
        return

    assert _msgpack.pack(values.encode(structure)) == _msgpack.pack(root)


@given(strategies.trees(), st.data())
def test_a_damaged_node_is_refused_or_read_as_it_stands(
    state: State, data: st.DataObject
) -> None:
    flat = tree.flatten(state)
    packed = bytearray(_msgpack.pack(values.encode(flat.structure)))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        node = _msgpack.unpack(bytes(packed), "$")
        structure = values.decode(node, arrays=len(flat.leaves))
    except FormatError:
        return

    assert _msgpack.pack(values.encode(structure)) == _msgpack.pack(node)


BAD = st.sampled_from(
    [{1}, range(3), np.str_("x"), np.array(["x"]), object(), b"".join, "\ud800"]
)


@given(strategies.trees(), st.lists(st.tuples(st.integers(0, 9), BAD), max_size=3))
def test_check_finds_what_flatten_refuses(state: State, bad: list[tuple[int, object]]) -> None:
    spoilt = state | {f"bad{n}": [{"x": value}] for n, value in bad}
    problems = tree.check(spoilt)

    assert [error.where["path"] for error in problems] == [f"bad{n}/0/x" for n in dict(bad)]
    if problems:
        with pytest.raises(StateError) as caught:
            tree.flatten(spoilt)
        assert str(caught.value) == str(problems[0])


@given(strategies.trees())
def test_every_path_is_found_again(state: State) -> None:
    structure = tree.flatten(state).structure
    found = list(tree.paths(structure))

    assert len({path for path, _ in found}) == len(found)
    assert all(tree.lookup(structure, path) is leaf for path, leaf in found)


@given(strategies.trees(), st.data())
def test_filter_keeps_the_wanted_leaves_and_their_paths(
    state: State, data: st.DataObject
) -> None:
    structure = tree.flatten(state).structure
    everything = [path for path, _ in tree.paths(structure)]
    wanted = data.draw(st.sets(st.sampled_from(everything)) if everything else st.just(set()))

    left = tree.filter(structure, lambda path: path in wanted)

    assert [path for path, _ in tree.paths(left)] == [p for p in everything if p in wanted]
    assert all(tree.lookup(structure, path) is leaf for path, leaf in tree.paths(left))


@given(strategies.trees())
def test_rename_to_the_same_paths_changes_nothing(state: State) -> None:
    structure = tree.flatten(state).structure

    same = tree.rename(structure, lambda path: path)

    assert repr(same) == repr(structure)


@given(strategies.trees())
def test_rename_moves_a_container_as_it_is(state: State) -> None:
    structure = tree.flatten(state | {"old": [state, (1, {2: 3})]}).structure

    moved = tree.rename(structure, {"old": "far/away/new"})

    assert repr(tree.lookup(moved, "far/away/new")) == repr(structure["old"])
    assert "old" not in moved


@given(strategies.trees(), st.data())
def test_rename_loses_no_leaf(state: State, data: st.DataObject) -> None:
    structure = tree.flatten(state).structure
    names = st.sampled_from(["a", "b", "c/d", "0", "1", "a/0", "weight/x"])
    new = {path: data.draw(names | st.just(path)) for path, _ in tree.paths(structure)}

    try:
        renamed = tree.rename(structure, lambda path: new.get(path, path))
    except UsageError:
        return

    expected = {new[path]: repr(leaf) for path, leaf in tree.paths(structure)}
    assert {path: repr(leaf) for path, leaf in tree.paths(renamed)} == expected
    assert len(expected) == len(new)


def fits(pattern: list[str], path: list[str]) -> bool:
    """Say in the plainest way what a pattern of several components means."""
    if not pattern:
        return not path
    first, *rest = pattern
    if first == "**":
        return any(fits(rest, path[n:]) for n in range(len(path) + 1))
    regex = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in first)
    return bool(path) and bool(re.fullmatch(regex, path[0], re.DOTALL)) and fits(rest, path[1:])


@given(
    st.lists(st.text("ab*?", max_size=4) | st.just("**"), min_size=1, max_size=5),
    st.lists(st.text("ab*?\n.", max_size=4), min_size=1, max_size=5),
)
def test_globs_mean_what_they_say(pattern: list[str], path: list[str]) -> None:
    below = path[: len(pattern)] == pattern

    assert tree.matches("/".join(pattern), "/".join(path)) == (below or fits(pattern, path))


def views() -> st.SearchStrategy[tuple[slice, bool]]:
    edges = st.integers(0, 24)
    slices = st.builds(slice, edges, edges, st.sampled_from([1, 2, 3, -1, -2]))
    return st.tuples(slices, st.booleans())


@given(st.lists(views(), max_size=6))
def test_overlaps_are_the_pairs_that_share_memory(cuts: list[tuple[slice, bool]]) -> None:
    memory = np.zeros(24, np.uint16)
    state: State = {
        f"{n}": memory[cut].view("i2" if i else "u2") for n, (cut, i) in enumerate(cuts)
    }
    flat = tree.flatten(state)

    leaves = list(enumerate(flat.leaves))
    expected = [
        (a.path, b.path)
        for n, a in leaves
        for m, b in leaves
        if n < m and np.shares_memory(a.array, b.array)
    ]
    assert list(flat.overlaps) == expected
