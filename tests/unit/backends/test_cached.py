"""A folder in front of slower storage: what is kept, what never is, and how it stays small."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pathlib
import stat
from collections import Counter
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import LocalBackend, MemoryBackend
from ckptfmt.backends.cached import CachedBackend
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.testing.strategies import assert_same


class Counting:
    """A backend that counts its reads by folder."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner or MemoryBackend()
        self.reads: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, key: str, *range_: Any) -> bytes:
        self.reads[key.split("/")[0]] += 1
        return bytes(self.inner.read(key, *range_))

    def read_into(self, key: str, *rest: Any) -> None:
        self.reads[key.split("/")[0]] += 1
        self.inner.read_into(key, *rest)


def state(seed: int, n: int = 300) -> dict[str, Any]:
    return {
        "model": {"w": np.random.default_rng(seed).standard_normal((n, n)), "b": np.ones(9)}
    }


@pytest.fixture
def far() -> Any:
    found: Any = Counting()
    ckptfmt.open(found, threads=1).save(state(1), metrics={"loss": 0.5})
    found.reads.clear()
    return found


def test_a_second_load_reads_nothing_from_the_storage(far: Any, tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        store = ckptfmt.open(far, cache=tmp_path / "cache", threads=1)
        assert_same(store.latest().load(), state(1))
        first = dict(far.reads)
        far.reads.clear()

    assert first.keys() <= {"ckptfmt.json"}, "only the marker is asked for again"
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_new_checkpoints_and_deletions_are_seen(far: Any, tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(far, cache=tmp_path / "cache", threads=1)
    assert store.latest().number == 1

    other = ckptfmt.open(far.inner)
    other.save(state(2))
    other.tag(2, "good")
    assert_same(store.latest().load(), state(2))
    assert store.latest().tags == ("good",)
    other.delete(1)

    with pytest.raises(NotFoundError):
        store[1]
    with pytest.raises(NotFoundError):
        ckptfmt.open(far, cache=tmp_path / "cache", threads=1)[1]


@pytest.mark.parametrize("folder", ["manifests", "annotations", "intents"])
def test_what_a_listing_shows_changed_is_read_again(
    tmp_path: pathlib.Path, folder: str
) -> None:
    """Also when it has the same length as before."""
    ticks = iter(range(100))
    far = MemoryBackend(clock=lambda: float(next(ticks)))
    backend = CachedBackend(far, tmp_path)
    key = f"{folder}/a"
    for data in (b"first", b"other"):
        far.replace(key, data)
        backend.list(folder)
        assert [backend.read(key) for _ in range(2)] == [data, data]


def test_a_store_behind_a_cache_can_be_written(tmp_path: pathlib.Path) -> None:
    far = MemoryBackend()
    with ckptfmt.open(far, cache=tmp_path / "cache", keep=ckptfmt.keep(last=1)) as store:
        for seed in (1, 2, 3):
            store.save(state(seed))
            assert_same(store.latest().load(), state(seed))

    assert [c.number for c in ckptfmt.open(far)] == [3]
    assert ckptfmt.open(far).collect().files == ()


@pytest.mark.parametrize("how", ["flipped", "short", "empty"])
def test_a_damaged_file_is_read_again(
    far: Any, tmp_path: pathlib.Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    ckptfmt.open(far, cache=cache, threads=1).latest().load()
    for file in cache.iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes({"flipped": data, "short": data[:-5], "empty": b""}[how])
    far.reads.clear()

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        found = ckptfmt.open(far, cache=cache, threads=1).latest().load()

    assert_same(found, state(1))
    assert far.reads["data"] > 0
    assert "is damaged and removed" in caplog.text


def test_the_folder_stays_small_and_the_oldest_go(tmp_path: pathlib.Path) -> None:
    far, limit = MemoryBackend(), 2**20
    keys = [f"data/f{n}" for n in range(40)]
    for key in keys:
        far.write(key, [os.urandom(100_000)], nbytes=100_000)
    counting: Any = Counting(far)
    backend = CachedBackend(counting, tmp_path, max_nbytes=limit)
    for n, key in enumerate(keys):
        backend.read(key, 0, 100_000)
        for age, file in enumerate(sorted(tmp_path.iterdir(), key=lambda f: f.stat().st_mtime)):
            os.utime(file, (n * 100 + age, n * 100 + age))
        assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= limit * 17 // 16

    counting.reads.clear()
    assert backend.read(keys[-1], 0, 100_000) == far.read(keys[-1])
    assert counting.reads["data"] == 0
    backend.read(keys[0], 0, 100_000)
    assert counting.reads["data"] == 1


def test_a_folder_that_cannot_be_used_is_a_warning(
    far: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        store = ckptfmt.open(far, cache=tmp_path / "file" / "cache", threads=1)
        assert_same(store.latest().load(), state(1))

    assert caplog.text.count("is not used") == 1


def _read(folder: pathlib.Path, cache: pathlib.Path) -> None:
    store = ckptfmt.open(LocalBackend(folder), cache=cache, cache_nbytes=2**20, threads=2)
    for _ in range(4):
        for checkpoint in store:
            assert checkpoint.verify().ok
            checkpoint.load()


def test_processes_share_a_folder(tmp_path: pathlib.Path) -> None:
    """It is too small for them, so that they sweep what others read."""
    store = ckptfmt.open(tmp_path / "store")
    for seed in range(4):
        store.save(state(seed, n=170))
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_read, args=(tmp_path / "store", tmp_path / "cache"))
        for _ in range(3)
    ]
    for process in others:
        process.start()
    for process in others:
        process.join(100)

    assert [process.exitcode for process in others] == [0, 0, 0]


@pytest.mark.parametrize("folder", ["", "s3://b/x", "memory://x", pathlib.Path("s3://b/x")])
def test_a_cache_is_a_folder_of_this_machine(folder: str | pathlib.Path) -> None:
    """Else one of that name would come into being where the run was started."""
    with pytest.raises(UsageError):
        CachedBackend(MemoryBackend(), folder)


def test_a_store_is_no_cache_of_its_own(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="no cache of its own"):
        CachedBackend(LocalBackend(tmp_path), f"file://{tmp_path}")


@pytest.mark.parametrize("nbytes", [1000, "10GB", None])
def test_too_small_a_cache_is_refused(tmp_path: pathlib.Path, nbytes: Any) -> None:
    with pytest.raises(UsageError, match=r"at least 1 MiB|expected int"):
        ckptfmt.open(MemoryBackend(), cache=tmp_path, cache_nbytes=nbytes)
