"""The tag `pinned` protects a checkpoint, whenever it was given."""

from __future__ import annotations

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import UsageError

STATE = {"model": {"w": np.arange(3.0)}}


def test_a_checkpoint_saved_as_pinned_is_not_deleted() -> None:
    store = ckptfmt.open(MemoryBackend())
    store.save(STATE, tags=["pinned"])
    store.save(STATE)

    with pytest.raises(UsageError, match="pinned"):
        store.delete(1)
    assert 1 in store


def test_a_checkpoint_saved_as_pinned_survives_retention() -> None:
    store = ckptfmt.open(MemoryBackend(), keep=ckptfmt.keep(last=1))
    store.save(STATE, tags=["pinned"])
    store.save(STATE)
    store.save(STATE)

    assert [c.number for c in store] == [1, 3]


def test_a_pin_of_the_save_can_be_removed() -> None:
    store = ckptfmt.open(MemoryBackend())
    store.save(STATE, tags=["pinned"])
    store.save(STATE)
    store.untag(1, "pinned")

    store.delete(1)

    assert [c.number for c in store] == [2]


def test_retention_lets_an_unpinned_one_go() -> None:
    store = ckptfmt.open(MemoryBackend(), keep=ckptfmt.keep(last=1))
    store.save(STATE, tags=["pinned"])
    store.untag(1, "pinned")
    store.save(STATE)

    assert [c.number for c in store] == [2]


def test_a_late_pin_protects_until_it_is_removed() -> None:
    store = ckptfmt.open(MemoryBackend())
    store.save(STATE)
    store.save(STATE)
    store.tag(1, "pinned")

    with pytest.raises(UsageError, match="pinned"):
        store.delete(1)
    store.untag(1, "pinned")
    store.delete(1)

    assert 1 not in store
