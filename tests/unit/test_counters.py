"""The counter `seen` is the clock: what is no whole number of examples is refused aloud."""

from __future__ import annotations

import pathlib
import time

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


def test_many_metrics_and_counters_take_no_time(tmp_path: pathlib.Path) -> None:
    """One for each layer and statistic; the time was that of their square, minutes here."""
    metrics = {f"gradient_norm/layer_{n}": n / 3 for n in range(20_000)}
    counters = {f"steps/layer_{n}": n for n in range(20_000)}
    began = time.process_time()

    with ckptfmt.open(tmp_path, durable=False) as store:
        store.save({"step": 1}, metrics=metrics, counters=counters)
        found = store.latest()

    assert time.process_time() - began < 10
    assert dict(found.metrics) == metrics
    assert dict(found.counters) == counters
