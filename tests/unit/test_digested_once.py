"""A save reads each byte for its digest once, whatever it then does with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends.memory import MemoryBackend
from ckptfmt.format import digest

ARRAY_NBYTES = 3 * 2**20
CODECS = ["raw", "zstd", "planes+zstd"]


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Count the digests taken of data of each length."""
    counts: dict[int, int] = {}
    real = digest.DIGESTS["xxh3-128"]

    def of(data: digest.Buffer) -> bytes:
        nbytes = memoryview(data).nbytes
        counts[nbytes] = counts.get(nbytes, 0) + 1
        return real.of(data)

    counting = dataclasses.replace(real, of=of)
    monkeypatch.setitem(digest.DIGESTS, "xxh3-128", counting)
    return counts


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, ARRAY_NBYTES, dtype=np.uint8)
    return {"model": {"w": array}, "optimizer": {"m": array[::-1].copy()}}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("changed", [False, True])
def test_each_array_is_digested_once(
    digested: dict[int, int], codec: str, changed: bool
) -> None:
    """Also where all of it was compared with the checkpoint before, and then written."""
    store = ckptfmt.open(MemoryBackend(), codec=codec)
    store.save(state(1))
    digested.clear()

    saved = store.save(state(2 if changed else 1))

    assert digested[ARRAY_NBYTES] == 2
    expected = state(2 if changed else 1)["model"]["w"].tobytes()
    assert saved.load()["model"]["w"].tobytes() == expected


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_is_not_worth_keeping_is_not_digested_again(
    digested: dict[int, int], codec: str
) -> None:
    """Less than half of it is unchanged: the unchanged rest is written once more."""
    store = ckptfmt.open(MemoryBackend(), codec=codec)
    first, second = state(1)["model"]["w"], state(2)["model"]["w"]
    store.save({"model": {"a": first, "b": second, "c": first ^ second}})
    digested.clear()

    saved = store.save({"model": {"a": first, "b": ~second, "c": ~first}})

    assert digested[ARRAY_NBYTES] == 3
    assert saved.load()["model"]["a"].tobytes() == first.tobytes()
