"""The counter `seen` is the clock: what is no whole number of examples is refused aloud."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import StateError


@pytest.mark.parametrize("seen", [1.5, 1e6, True, -1, 2**63, "7", None, [3]])
def test_seen_is_a_whole_number_of_examples(tmp_path: pathlib.Path, seen: object) -> None:
    with ckptfmt.open(tmp_path) as store:
        with pytest.raises(StateError, match="number of examples"):
            store.save({"step": 1}, counters={"seen": seen})

        assert list(store) == []


def test_a_numpy_count_is_seen_like_any_other(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path) as store:
        store.save({"step": 1}, counters={"seen": np.int64(640)})

        found = store.at(examples=640)

    assert type(found.counters["seen"]) is int
    assert found.counters["seen"] == 640


def test_other_counters_are_free(tmp_path: pathlib.Path) -> None:
    counters = {"seen": 0, "epoch": 1.5, "skipped": None}
    with ckptfmt.open(tmp_path) as store:
        store.save({"step": 1}, counters=counters)

        assert store.latest().counters == counters
