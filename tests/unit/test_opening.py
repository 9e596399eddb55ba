"""What opening a checkpoint asks of storage, and what it leaves behind."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine.catalog import FIRST_READ_NBYTES
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import IntegrityError, NotFoundError
from ckptfmt.format import layout
from ckptfmt.format.manifest import encode_tombstone


class Counting:
    """A backend that notes which ranges are read."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner = inner
        self.reads: list[tuple[str, int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        data = self._inner.read(key, offset, nbytes)
        self.reads.append((key, offset, len(data)))
        return data


def saved(arrays: int) -> MemoryBackend:
    backend = MemoryBackend()
    state = {"model": {f"layer.{n}": np.full(n % 3 + 1, n) for n in range(arrays)}}
    ckptfmt.open(backend).save(state)
    return backend


@pytest.mark.parametrize("arrays", [3, 2000])
def test_the_newest_manifest_is_read_once_and_whole(arrays: int) -> None:
    backend = Counting(saved(arrays))
    key = layout.manifest_key(1)
    whole = len(backend.read(key))
    assert (whole > FIRST_READ_NBYTES) == (arrays == 2000)
    backend.reads.clear()

    assert len(ckptfmt.open(backend).latest().arrays) == arrays

    assert [read for read in backend.reads if read[0] == key] == [(key, 0, whole)]


def test_a_manifest_that_is_replaced_while_it_is_read() -> None:
    backend = saved(2000)
    store = ckptfmt.open(backend)
    checkpoint = next(iter(store))  # has its head, not the whole manifest
    manifest = ckptfmt.open(backend)[1].manifest
    backend.replace(layout.manifest_key(1), encode_tombstone(manifest.summary))

    with pytest.raises(NotFoundError, match="deleted since the listing"):
        _ = checkpoint.arrays
    assert list(store) == []


def test_a_manifest_that_is_damaged_after_its_head_was_read() -> None:
    backend = saved(2000)
    checkpoint = next(iter(ckptfmt.open(backend)))
    key = layout.manifest_key(1)
    data = bytearray(backend.read(key))
    data[-1] ^= 1
    damaged = Rotten(backend, key, bytes(data))
    with pytest.raises(IntegrityError, match="digest mismatch in the body") as caught:
        _ = ckptfmt.open(damaged)[1].manifest
    assert caught.value.where["key"] == key
    assert len(checkpoint.arrays) == 2000


class Rotten(Counting):
    """A backend whose bytes rot without a change of length or time."""

    def __init__(self, inner: MemoryBackend, key: str, data: bytes) -> None:
        super().__init__(inner)
        self._rotten = key, data

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        if key == self._rotten[0]:
            end = None if nbytes is None else offset + nbytes
            return self._rotten[1][offset:end]
        return super().read(key, offset, nbytes)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_nothing_of_a_store_waits_for_the_garbage_collector(tmp_path: pathlib.Path) -> None:
    ckptfmt.save({"model": {"w": np.zeros(3)}}, tmp_path)
    with without_collector():
        store = ckptfmt.open(tmp_path)
        checkpoint = store.latest()
        info = checkpoint.arrays["model/w"]
        assert checkpoint.load()["model"]["w"].shape == info.shape
        left = [
            weakref.ref(store),
            weakref.ref(checkpoint),
            weakref.ref(checkpoint.manifest.tables.offset),
        ]
        del store
        np.testing.assert_array_equal(checkpoint["model/w"][:], 0)  # needs no store
        del checkpoint, info

        assert [ref() for ref in left] == [None, None, None]
