"""`frozen=` skips a digest on the caller's word, and only where it can: see `Store.save`."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends.memory import MemoryBackend
from ckptfmt.checks import Probe
from ckptfmt.errors import StateError, UsageError
from ckptfmt.format import digest

FROZEN = "model/base.*"


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count the digests taken of data of each length."""
    counts: Counter[int] = Counter()
    real = digest.DIGESTS["xxh3-128"]

    def of(data: digest.Buffer) -> bytes:
        counts[memoryview(data).nbytes] += 1
        return real.of(data)

    monkeypatch.setitem(digest.DIGESTS, "xxh3-128", dataclasses.replace(real, of=of))
    return counts


def state(base: float = 1.0, size: int = 5000) -> dict[str, Any]:
    """Return a state whose two arrays differ in length: 8 * size, and 1600 bytes."""
    return {"model": {"base.w": np.full(size, base), "head.w": np.arange(200.0)}}


def base_of(saved: ckptfmt.Checkpoint) -> float:
    array: Any = saved.load()["model"]["base.w"]
    assert len(set(array.tolist())) == 1
    return float(array[0])


@pytest.mark.parametrize("background", [False, True])
def test_a_frozen_array_is_not_looked_at_twice(looked: Counter[int], background: bool) -> None:
    store = ckptfmt.open(MemoryBackend())
    own = state()
    store.save(own, frozen=FROZEN)
    assert looked[40_000] == 1  # at the first save nothing is taken on trust
    looked.clear()
    own["model"]["head.w"] += 1

    if background:
        saved = store.save_async(own, frozen=[FROZEN]).wait()
    else:
        saved = store.save(own, frozen=[FROZEN])

    assert looked[40_000] == 0
    assert looked[1600] == 1
    assert saved.load()["model"]["head.w"].tolist() == own["model"]["head.w"].tolist()
    assert base_of(saved) == 1.0
    assert saved.verify().ok


def test_by_default_a_change_is_never_missed() -> None:
    store = ckptfmt.open(MemoryBackend())
    own = state()
    store.save(own, frozen=FROZEN)
    own["model"]["base.w"][:] = 2.0

    assert base_of(store.save(own)) == 2.0


def test_the_word_is_the_callers_and_lasts_for_one_save() -> None:
    """What the option means: a broken promise stores old bytes, until it is no longer given."""
    store = ckptfmt.open(MemoryBackend())
    own = state()
    store.save(own)
    own["model"]["base.w"][:] = 2.0

    assert base_of(store.save(own, frozen=FROZEN)) == 1.0
    assert base_of(store.save(own)) == 2.0


def test_verify_frozen_looks_and_names_what_changed(
    looked: Counter[int], caplog: pytest.LogCaptureFixture
) -> None:
    store = ckptfmt.open(MemoryBackend())
    own = state()
    store.save(own)
    looked.clear()
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        store.save(own, frozen=FROZEN, verify_frozen=True)
    assert looked[40_000] == 1
    assert caplog.messages == []

    own["model"]["base.w"][:] = 2.0
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        saved = store.save(own, frozen=FROZEN, verify_frozen=True)

    assert base_of(saved) == 2.0
    assert len(caplog.messages) == 1
    assert "'model/base.w'" in caplog.messages[0]


@pytest.mark.parametrize("change", ["shape", "dtype", "path"])
def test_an_array_that_the_last_save_does_not_have_is_written(change: str) -> None:
    store = ckptfmt.open(MemoryBackend())
    store.save(state())
    own = state(2.0, size=4000 if change == "shape" else 5000)
    if change == "dtype":
        own["model"]["base.w"] = own["model"]["base.w"].astype(np.int64)
    if change == "path":
        own["model"]["base.v"] = np.full(5000, 3.0)

    saved = store.save(
        own, frozen=["model/base.v", FROZEN] if change != "path" else "**/base.v"
    )

    assert base_of(saved) == 2.0
    if change == "path":
        assert saved.load()["model"]["base.v"].tolist() == [3.0] * 5000


def test_another_process_looks_once() -> None:
    """It has its arrays from elsewhere: that they are those of the store has to be seen."""
    backend = MemoryBackend()
    ckptfmt.open(backend).save(state())
    resumed = ckptfmt.open(backend)
    resumed.latest().load()

    assert base_of(resumed.save(state(2.0), frozen=FROZEN)) == 2.0


def test_another_parent_is_looked_at() -> None:
    store = ckptfmt.open(MemoryBackend())
    first = store.save(state(1.0))
    store.save(state(2.0))

    assert base_of(store.save(state(2.0), frozen=FROZEN, parent=first)) == 2.0


def test_what_is_not_worth_keeping_is_digested_and_written() -> None:
    """A file less than half alive is left: its frozen arrays are written with true digests."""
    store = ckptfmt.open(MemoryBackend())
    own = state(1.0, size=100)
    store.save(own)
    own["model"]["base.w"][:] = 2.0
    own["model"]["head.w"] += 1

    saved = store.save(own, frozen=FROZEN)

    assert base_of(saved) == 2.0
    assert saved.verify().ok


def test_a_data_file_that_is_gone_is_written_again() -> None:
    backend = MemoryBackend()
    store = ckptfmt.open(backend)
    own = state()
    store.save(own)
    for key in list(backend.list("data")):
        backend.delete(key)

    saved = store.save(own, frozen=FROZEN)

    assert base_of(saved) == 1.0


def test_a_tied_array_is_meant_by_any_of_its_paths(looked: Counter[int]) -> None:
    store = ckptfmt.open(MemoryBackend())
    own = state()
    own["model"]["tied"] = own["model"]["base.w"]
    store.save(own)
    looked.clear()

    store.save(own, frozen="model/tied")

    assert looked[40_000] == 0


@pytest.mark.parametrize("frozen", [3, [3], None])
def test_patterns_are_text(frozen: Any) -> None:
    store = ckptfmt.open(MemoryBackend())

    with pytest.raises(UsageError, match="frozen"):
        store.save(state(), frozen=frozen)
    with pytest.raises(UsageError, match="verify_frozen"):
        store.save(state(), verify_frozen=frozen)


@pytest.mark.parametrize("background", [False, True])
def test_after_a_save_that_failed_everything_is_looked_at(background: bool) -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    store.save(own)
    own["model"]["base.w"] += 1

    def fail(*_: object) -> None:
        raise RuntimeError

    save = (lambda *a, **k: store.save_async(*a, **k).wait()) if background else store.save
    with pytest.raises(RuntimeError):
        save(own, progress=fail)

    assert base_of(store.save(own, frozen=FROZEN)) == 2.0


def test_after_a_save_that_was_refused_everything_is_looked_at() -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    store.save(own)
    own["model"]["base.w"] += 1
    with pytest.raises(StateError):
        store.save({**own, "bad": object()})

    assert base_of(store.save(own, frozen=FROZEN)) == 2.0


@pytest.mark.parametrize("how", ["into", "into a part", "fill"])
def test_what_a_load_has_changed_is_looked_at(how: str) -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    first = store.save(own)
    own["model"]["base.w"] += 1
    second = store.save(own)
    if how == "into":
        first.load(into=own)
    elif how == "into a part":
        first.load(select="model/base.*", into={"model": {"base.w": own["model"]["base.w"]}})
    else:
        first.fill({"model/base.w": own["model"]["base.w"]})

    assert base_of(store.save(own, parent=second, frozen=FROZEN)) == 1.0


def test_what_is_loaded_while_a_save_goes_on_is_looked_at() -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    first = store.save(own)
    own["model"]["base.w"] += 1
    pending = store.save_async(own)
    first.fill({"model/base.w": own["model"]["base.w"]})
    second = pending.wait()

    assert base_of(store.save(own, parent=second, frozen=FROZEN)) == 1.0


def test_a_load_of_its_own_changes_nothing_of_the_callers(looked: Counter[int]) -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    store.save(own).load(select="model/head.*")
    looked.clear()

    store.save(own, frozen=FROZEN)

    assert looked[40_000] == 0


def test_a_probe_is_never_frozen() -> None:
    store, own = ckptfmt.open(MemoryBackend()), state()
    how: Any = {"dtype": "float64", "absolute": 0.0, "relative": 0.0, "deterministic": True}
    store.save(own, probe=Probe(inputs=np.zeros(3), outputs=np.zeros(3), **how))
    new = Probe(inputs=np.ones(3), outputs=np.ones(3), **how)

    found = store.save(own, frozen="**", probe=new).probe()

    assert found is not None
    assert found.inputs.tolist() == [1.0] * 3
