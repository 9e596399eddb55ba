"""What the engine does where each request takes long: asks side by side, and looks again."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import Capabilities, Entry, MemoryBackend
from ckptfmt.backends.memory import CAPABILITIES
from ckptfmt.errors import BackendError
from ckptfmt.options import REMOTE_FILE_NBYTES

FAR = dataclasses.replace(CAPABILITIES, requests=8, maps=False)


class Far:
    """A backend in memory that can answer several requests at once, and counts those."""

    def __init__(self) -> None:
        self.inner = MemoryBackend()
        self.most = self._flying = 0
        self._lock = threading.Lock()
        self.hold = threading.Event()
        self.hold.set()
        self.lists: list[str] = []
        self.stale: dict[str, Entry] | None = None  # the first answer to `data`

    capabilities: Capabilities = FAR

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def list(self, prefix: str) -> dict[str, Entry]:
        self.lists.append(prefix)
        if prefix == "data" and self.stale is not None:
            found, self.stale = self.stale, None
            return found
        return self.inner.list(prefix)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        with self._lock:
            self._flying += 1
            self.most = max(self.most, self._flying)
        self.hold.wait(0.1)
        self.inner.read_into(key, offset, target)
        with self._lock:
            self._flying -= 1


@pytest.fixture
def far() -> Iterator[Far]:
    return Far()


STATE = {"model": {f"w{n}": np.full(2**18, n, np.float32) for n in range(12)}}


def test_arrays_of_the_caller_are_not_touched_before_their_bytes_are_there(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of our own is: its pages are made before it is filled."""
    store = ckptfmt.open(far)  # type: ignore[arg-type]
    store.save({"w": np.full(2**21, 7.0)})
    own = np.full(2**21, np.pi)  # no byte of it is 0

    def cut_off(key: str, offset: int, target: memoryview) -> None:
        raise BackendError("cut off", key=key)

    monkeypatch.setattr(far, "read_into", cut_off)
    with pytest.raises(BackendError, match="cut off"):
        store.latest().load(into={"w": own})

    assert (own == np.pi).all()


def test_reads_go_side_by_side(far: Far) -> None:
    store = ckptfmt.open(far, threads=1)  # type: ignore[arg-type]
    store.save(STATE)
    far.hold.clear()

    loaded = store.latest().load()

    assert loaded["model"]["w11"].tobytes() == STATE["model"]["w11"].tobytes()
    assert far.most == FAR.requests


def test_the_chunks_of_a_slice_are_read_side_by_side(far: Far) -> None:
    store = ckptfmt.open(far, threads=1)  # type: ignore[arg-type]
    whole = np.arange(9 * 2**20, dtype=np.int64)
    store.save({"w": whole})
    far.hold.clear()

    part = store.latest()["w"][5:-5]

    assert part.tobytes() == whole[5:-5].tobytes()
    assert far.most > 1


def test_a_commit_younger_than_the_listing_of_its_data_is_no_damage(
    far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    """The folders are listed together: data may be listed before a save, manifests after."""
    store = ckptfmt.open(far)  # type: ignore[arg-type]
    far.stale = far.inner.list("data")
    store.save(STATE)

    found = ckptfmt.open(far).latest()  # type: ignore[arg-type]

    assert found.number == 1
    assert not caplog.records
    assert far.lists.count("data") == 2


def test_a_data_file_that_is_missing_is_still_found_out(far: Far) -> None:
    store = ckptfmt.open(far)  # type: ignore[arg-type]
    store.save(STATE)
    store.save({"model": {"w0": STATE["model"]["w0"] + 1}})
    newest = store.latest().manifest.tables.files[0].key
    far.inner.delete(newest)

    assert ckptfmt.open(far).latest().number == 1  # type: ignore[arg-type]


def test_damage_among_many_manifests_is_shown_as_such(far: Far) -> None:
    store = ckptfmt.open(far)  # type: ignore[arg-type]
    for n in range(5):
        store.save({"w": np.arange(3) + n}, metrics={"loss": 1 / (n + 1)})
    far.inner.replace("manifests/0000000003-000.ckpt", b"no manifest")
    store.tag(4, "good")

    again = ckptfmt.open(far)  # type: ignore[arg-type]

    assert [row.status for row in again.entries()] == ["ok", "ok", "damaged", "ok", "ok"]
    assert [c.number for c in again] == [1, 2, 4, 5]
    assert [c.tags for c in again][2] == ("good",)


def test_files_of_far_storage_are_smaller(far: Far) -> None:
    assert ckptfmt.open(far)._options.max_file_nbytes == REMOTE_FILE_NBYTES  # type: ignore[arg-type]
    assert 2**28 <= REMOTE_FILE_NBYTES <= 2**30
