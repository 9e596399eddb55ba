"""A state tree as lines."""

from __future__ import annotations

import pytest

from ckptfmt.cli import outline
from ckptfmt.cli.outline import Outliner
from ckptfmt.dtypes import DTYPES
from ckptfmt.format import tables
from ckptfmt.format.digest import DIGESTS
from ckptfmt.format.tables import ArrayRow
from ckptfmt.leaves import ArrayRef
from ckptfmt.reports import ArrayInfo, ArrayTable


def infos(nbytes: dict[str, int]) -> list[ArrayInfo]:
    arrays = [(ArrayRow(path, DTYPES["U8"], (n,)), (), ()) for path, n in nbytes.items()]
    built = tables.build(arrays, files=(), algorithm=DIGESTS["sha256"])
    return list(ArrayTable(built).values())


def test_sizes_add_up_and_tied_arrays_count_once() -> None:
    outliner = Outliner(arrays=infos({"a/x": 10, "a/y/0": 5}), keep=lambda _: True, width=60)

    lines = outliner.lines({"a": {"x": ArrayRef(0), "y": [ArrayRef(1)]}, "b": ArrayRef(0)})

    assert [(line.path, line.depth, line.nbytes, line.arrays) for line in lines] == [
        ("a", 0, 15, 2),
        ("a/x", 1, 10, 1),
        ("a/y", 1, 5, 1),
        ("a/y/0", 2, 5, 1),
        ("b", 0, None, 0),
    ]
    assert lines[-1].detail == "[10] tied to a/x"


def test_an_empty_name_is_shown() -> None:
    lines = Outliner(arrays=[], keep=lambda _: True, width=60).lines({"a": {"": 1}})

    assert [line.name for line in lines] == ["a", '""']


@pytest.mark.parametrize(
    ("node", "row"),
    [
        ([1, 2], True),
        ((None,), True),
        ([], False),
        ([[1]], False),
        ([ArrayRef(0)], False),
        (1, False),
    ],
)
def test_rows_are_lists_of_plain_values(node: object, row: bool) -> None:
    assert outline.is_row(node) is row


def test_leaves_of_nested_values() -> None:
    assert dict(outline.leaves({"a": {"b/c": 1}, "d": [], "e": [1, {}], "f": (1, 2)})) == {
        "a/b~1c": 1,
        "d": [],
        "e/0": 1,
        "e/1": {},
        "f": (1, 2),
    }
    assert dict(outline.leaves(5)) == {"": 5}


def test_as_many_levels_as_fit() -> None:
    tree = {"a": {str(n): {"x": 1} for n in range(10)}}
    lines = Outliner(arrays=[], keep=lambda _: True, width=60).lines(tree)

    assert [outline.levels(lines, limit) for limit in (0, 1, 10, 11, 20, 21)] == [
        1,
        1,
        1,
        2,
        2,
        3,
    ]
