"""A save takes unchanged chunks from its parent, else from the newest, and reads no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.format import layout


class Counting:
    """A backend that tells which manifests were read."""

    def __init__(self) -> None:
        self.inner = MemoryBackend()
        self.manifests: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, key: str, *rest: Any) -> bytes:
        if key.startswith("manifests/"):
            self.manifests.add(key)
        return self.inner.read(key, *rest)


FIXED = np.arange(1000.0)


@pytest.fixture
def backend() -> Any:
    counting: Any = Counting()
    with ckptfmt.open(counting) as store:
        for n in range(30):
            store.save({"fixed": FIXED, "n": np.full(10, n)}, counters={"step": n})
    return counting


def data(backend: Any) -> int:
    return sum(entry.nbytes for entry in backend.list("data").values())


def test_a_save_in_another_process_reads_one_manifest_beside_its_own(backend: Any) -> None:
    store = ckptfmt.open(backend)
    checkpoint = store.latest()
    backend.manifests.clear()
    before = data(backend)

    saved = store.save({"fixed": FIXED, "n": np.zeros(10)}, parent=checkpoint)

    numbers = {layout.parse_manifest_key(key)[0] for key in backend.manifests}  # type: ignore[index]
    assert numbers <= {checkpoint.number, saved.number}
    assert (
        data(backend) - before < FIXED.nbytes / 2
    )  # what did not change was not written again


def test_without_a_parent_the_newest_is_the_base(backend: Any) -> None:
    backend.manifests.clear()
    before = data(backend)

    ckptfmt.open(backend).save({"fixed": FIXED, "n": np.zeros(10)}, parent=None)

    assert len(backend.manifests) <= 3
    assert data(backend) - before < FIXED.nbytes / 2


def test_the_base_is_the_parent_not_the_newest(backend: Any) -> None:
    store = ckptfmt.open(backend)
    other = FIXED + 1
    parent = store.save({"fixed": other, "n": np.zeros(10)}, parent=store.latest())
    store.save({"fixed": FIXED, "n": np.zeros(10)}, parent=parent)
    before = data(backend)

    ckptfmt.open(backend).save({"fixed": other, "n": np.ones(10)}, parent=parent)

    assert data(backend) - before < FIXED.nbytes / 2


def test_a_damaged_newest_is_passed_over(backend: Any) -> None:
    newest = max(backend.list("manifests"))
    whole = backend.inner.read(newest)
    backend.inner.replace(newest, whole[:-1] + bytes([whole[-1] ^ 1]))
    before = data(backend)

    ckptfmt.open(backend).save({"fixed": FIXED, "n": np.zeros(10)}, parent=None)

    assert data(backend) - before < FIXED.nbytes / 2
