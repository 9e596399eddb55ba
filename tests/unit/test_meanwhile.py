"""What others do to a checkpoint while it is read or saved, and what people are then told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.backends import Capabilities, MemoryBackend
from ckptfmt.backends.base import Entry
from ckptfmt.errors import BackendError, IntegrityError, NotFoundError
from ckptfmt.format import layout

BIG = 300_000  # elements: a section of its own file


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "model": {"w": rng.standard_normal(BIG)},
        "optimizer": {"m": rng.standard_normal(BIG)},
    }


class Busy(MemoryBackend):
    """Storage in which somebody does something while data files are being listed."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    def list(self, prefix: str) -> dict[str, Entry]:
        if prefix == layout.DATA and self.meanwhile is not None:
            todo, self.meanwhile = self.meanwhile, None
            todo()
        return super().list(prefix)


@pytest.fixture
def disk() -> Busy:
    return Busy()


@pytest.fixture
def store(disk: Busy) -> Store:
    store = ckptfmt.open(disk)
    for seed in (1, 2, 3):
        store.save(state(seed))
    return store


READS: dict[str, Callable[[Any], object]] = {
    "load": lambda found: found.load(),
    "into": lambda found: found.load(into=state(9)),
    "lazy": lambda found: np.asarray(found["optimizer/m"]),
    "slice": lambda found: found["optimizer/m"][3:5],
    "mapped": lambda found: found.load(mmap=True),
    "verify": lambda found: found.verify(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_reader_learns_that_its_checkpoint_was_slimmed(store: Store, read: Any) -> None:
    found = store[1]
    store.slim(1, drop="optimizer")

    with pytest.raises(NotFoundError, match="slimmed meanwhile") as caught:
        read(found)

    assert (caught.value.where["revision"], caught.value.where["dropped"]) == (
        1,
        ("optimizer",),
    )
    assert found.load(select="model").keys() == {"model"}  # what is left can be read on


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_reader_learns_that_its_checkpoint_was_deleted(store: Store, read: Any) -> None:
    found = store[1]
    found.manifest  # noqa: B018
    store.delete(1)

    with pytest.raises(NotFoundError, match="deleted meanwhile"):
        read(found)


def test_a_file_that_is_missing_is_damage_when_nobody_changed_the_checkpoint(
    store: Store, disk: Busy
) -> None:
    store.slim(1, drop="optimizer")
    found = store[1]
    for key in [file.key for file in found.manifest.tables.files]:
        disk.delete(key)

    with pytest.raises(IntegrityError, match="missing"):
        found.load()
    assert not found.verify().ok


@pytest.mark.parametrize("number", [3, 2])
def test_the_newest_is_not_called_damaged_while_others_delete_or_slim(
    store: Store, disk: Busy, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    other = ckptfmt.open(disk)
    if number == 2:
        disk.meanwhile = lambda: other.delete(3)
    else:
        disk.meanwhile = lambda: other.slim(3, drop="optimizer")

    found = store.latest()

    assert (found.number, found.revision) == (number, int(number == 3))
    assert found.verify().ok
    assert "damaged" not in caplog.text


# ---- storage without create-if-absent (spec §8.9)


class Plain(MemoryBackend):
    """Storage that cannot refuse a second creator; a sweeper may take leases at the commit."""

    swept = False

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, create_if_absent=False)

    def create(self, key: str, data: Any, *, durable: bool = True) -> None:
        super().create(key, data, durable=durable)
        if self.swept and key.startswith(layout.MANIFESTS):
            for lease in self.list(layout.INTENTS):
                self.delete(lease)


ACTS: dict[str, Callable[[Store, Store], object]] = {
    "save": lambda store, _: store.save(state(3)),
    "slim": lambda store, _: store.slim(1, drop="optimizer"),
    "copy": lambda store, source: ckptfmt.copy(source, store),
}


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_a_commit_without_its_lease_is_of_unknown_outcome(
    store: Store, act: str, swept: bool
) -> None:
    disk = Plain()
    plain = ckptfmt.open(disk)
    if act != "copy":
        plain.save(state(1))
    disk.swept = swept

    if swept:
        with pytest.raises(BackendError, match="outcome of the commit is unknown: its lease"):
            ACTS[act](plain, store)
    else:
        ACTS[act](plain, store)

    disk.swept = False
    ckptfmt.open(disk).latest().load()  # nothing was removed
