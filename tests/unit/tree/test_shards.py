"""Shards: parts of arrays as leaves of a state tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import StateError, UsageError
from ckptfmt.tree import check, flatten

A = np.arange(12.0).reshape(3, 4)


def shard(array: Any = A, start: Any = (0, 4), whole: Any = (3, 8)) -> ckptfmt.Shard:
    return ckptfmt.Shard(array, start=start, global_shape=whole)


def test_a_leaf_tells_the_part_and_the_whole() -> None:
    (part,) = flatten({"w": shard()}).leaves

    assert (part.start, part.shape, part.nbytes) == ((0, 4), (3, 8), 192)
    assert part.array is A


def test_an_array_is_a_whole() -> None:
    (leaf,) = flatten({"w": A}).leaves

    assert (leaf.start, leaf.shape, leaf.nbytes) == ((0, 0), (3, 4), 96)


@pytest.mark.parametrize(
    ("start", "whole"),
    [
        ((0, 5), (3, 8)),
        ((-1, 0), (3, 8)),
        ((0,), (3, 8)),
        ((0, 0), (3, 4, 1)),
        ((0, 0), (2, 8)),
    ],
)
def test_a_shard_lies_inside_its_array(start: Any, whole: Any) -> None:
    with pytest.raises(UsageError, match="inside its array"):
        shard(A, start, whole)


def test_the_same_memory_is_tied_only_as_the_same_part() -> None:
    tied = flatten({"a": shard(), "b": shard()})
    assert [(leaf.path, leaf.aliases) for leaf in tied.leaves] == [("a", ("b",))]

    apart = flatten({"a": shard(), "b": shard(start=(0, 0)), "c": A})
    assert [(leaf.path, leaf.aliases) for leaf in apart.leaves] == [
        ("a", ()), ("b", ()), ("c", ()),
    ]  # fmt: skip
    assert len(apart.overlaps) == 3


def test_what_is_no_array_is_refused_in_a_shard_too() -> None:
    bad = {"x": {"w": shard([1, 2], (0,), (2,))}}

    (problem,) = check(bad)

    assert problem.where["path"] == "x/w"


def test_a_save_without_a_group_refuses_a_part() -> None:
    store = ckptfmt.open(MemoryBackend())

    with pytest.raises(StateError, match="only a part") as caught:
        store.save({"model": {"w": shard()}})

    assert caught.value.where["path"] == "model/w"
    assert len(store) == 0
