"""The names under which other tools find arrays in data files (spec §5.3)."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from safetensors import safe_open

import ckptfmt

LARGE = 2**20  # bytes: a section of its own file

NAMES = {
    "plain": ({"fc": {"w": 0}}, {"fc.w"}),
    "escaped": ({"a/b": {"c~d": 0}}, {"a/b.c~d"}),
    "empty": ({"": 0}, {"#~0"}),
    "empty inside": ({"a": {"": 0}}, {"a."}),
    "reserved": ({"__metadata__": 0}, {"__metadata__#~0"}),
    "taken": ({"a.b": 0, "a": {"b": 0}}, {"a.b", "a.b#~0"}),
    "numbers": ({1: [0, 0]}, {"1.0", "1.1"}),
}


def filled(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: filled(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [filled(child) for child in tree]
    return np.ones(LARGE, np.uint8)


@pytest.mark.parametrize(("tree", "expected"), NAMES.values(), ids=NAMES)
def test_entries_have_natural_names(
    tmp_path: pathlib.Path, tree: object, expected: set[str]
) -> None:
    ckptfmt.open(tmp_path).save({"model": filled(tree)})

    (file,) = (tmp_path / "data").iterdir()
    with safe_open(file, framework="numpy") as opened:
        assert set(opened.keys()) == expected


def test_a_file_of_several_sections_has_full_names(tmp_path: pathlib.Path) -> None:
    tree = {"a": {"x/y": np.ones(3)}, "b": {"": np.ones(3)}, "top": np.ones(3)}
    ckptfmt.open(tmp_path).save(tree)

    (file,) = (tmp_path / "data").iterdir()
    with safe_open(file, framework="numpy") as opened:
        assert set(opened.keys()) == {"a.x/y", "b.", "top"}
