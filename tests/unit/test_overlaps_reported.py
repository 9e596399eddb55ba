"""Arrays that share memory without being tied are stored apart, and the user is told once."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend


def test_overlaps_are_reported_once_and_come_back_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ckptfmt.open(MemoryBackend())
    memory = np.arange(10.0)
    state = {"model": {"all": memory, "half": memory[:5]}}

    with caplog.at_level(logging.WARNING, logger="ckptfmt"):
        store.save(state)
        store.save(state)

    told = [r.getMessage() for r in caplog.records if "share some memory" in r.getMessage()]
    assert len(told) == 1
    assert "'model/all' and 'model/half'" in told[0]
    assert told[0].startswith("two arrays share some memory")
    loaded = store.latest().load()
    assert loaded["model"]["half"].tobytes() == memory[:5].tobytes()
    assert not np.shares_memory(loaded["model"]["all"], loaded["model"]["half"])


def test_tied_arrays_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    memory = np.arange(10.0)

    with caplog.at_level(logging.WARNING, logger="ckptfmt"):
        ckptfmt.open(MemoryBackend()).save({"model": {"a": memory, "b": memory}})

    assert not caplog.records
