"""Dropping sections of committed checkpoints: what stays, what goes, what people are told."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import ConflictError, FormatError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.features import Features
from ckptfmt.format.manifest import Manifest
from ckptfmt.format.records import SAVE, Intent
from ckptfmt.options import Sources
from ckptfmt.testing.strategies import assert_same

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
BIG = 300_000  # elements: a section of its own file
NOW = 1_790_000_000_000_000


def state(seed: int) -> dict[str, Any]:
    """Return a state in which the first reference to an array lies in `ema`."""
    rng = np.random.default_rng(seed)
    tied = np.arange(20.0)
    return {
        "ema": {"tied": tied},
        "optimizer": {"m": rng.standard_normal(BIG)},
        "model": {"w": np.arange(float(BIG)), "tied": tied},
        "rng": {"key": rng.integers(0, 9, 30)},
        "step": seed,
    }


def slimmed(seed: int, *drop: str) -> dict[str, Any]:
    return {name: value for name, value in state(seed).items() if name not in drop}


@pytest.fixture
def disk() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def store(disk: MemoryBackend) -> Store:
    """Return a store of three checkpoints of one lineage; `model` never changes."""
    store = ckptfmt.open(disk, sources=Sources(now=lambda: NOW))
    for seed in (1, 2, 3):
        store.save(
            state(seed), metrics={"loss": 1.0 / seed}, counters={"seen": seed}, tags=["t"]
        )
    return store


def test_what_is_left_is_a_new_revision_of_the_same_checkpoint(store: Store) -> None:
    before = store[2]

    done = store.slim(2, drop=["optimizer"])

    after = store[2]
    assert (done.numbers, done.slimmed, done.blocked) == ((), (2,), ())
    assert (after.number, after.id, after.revision) == (2, before.id, 1)
    assert after.identity != before.identity
    assert after.dropped == ("optimizer",)
    assert after.dropped_at["optimizer"] == after.time
    assert (after.metrics, after.counters, after.tags) == ({"loss": 0.5}, {"seen": 2}, ("t",))
    assert (after.parent, after.history) == (before.parent, before.history)
    assert [section.name for section in after.sections] == ["ema", "model", "rng", ""]
    assert after.verify().ok
    assert_same(after.load(), slimmed(2, "optimizer"))


def test_only_data_that_nobody_else_needs_is_freed(store: Store, disk: MemoryBackend) -> None:
    before = disk.list(layout.DATA)

    done = store.slim([1, 2], drop=["optimizer"])

    assert len(done.files) == 2
    assert done.nbytes == sum(before[key].nbytes for key in done.files) > 2 * 8 * BIG
    assert disk.list(layout.DATA).keys() == before.keys() - set(done.files)
    assert disk.list(layout.INTENTS) == {}
    assert store.collect().files == ()
    for seed in (1, 2):
        assert_same(store[seed].load(), slimmed(seed, "optimizer"))
    assert_same(store[3].load(), state(3))


def test_a_dry_run_tells_what_would_be_freed_and_changes_nothing(
    store: Store, disk: MemoryBackend
) -> None:
    folders = ("data", "manifests", "intents")
    before = {folder: disk.list(folder) for folder in folders}

    would = store.slim([1, 3], drop=["optimizer", "rng"], dry_run=True)

    assert {folder: disk.list(folder) for folder in folders} == before
    assert store.slim([1, 3], drop=["optimizer", "rng"]) == would


def test_slimming_twice_makes_two_revisions_and_a_third_time_none(store: Store) -> None:
    store.slim(1, drop="optimizer")
    store.slim(1, drop=["rng", "optimizer"])

    again = store.slim(1, drop=["rng", "optimizer"])

    assert again.slimmed == ()
    assert (store[1].revision, store[1].dropped) == (2, ("optimizer", "rng"))
    assert_same(store[1].load(), slimmed(1, "optimizer", "rng"))


def test_a_tied_array_stays_under_the_name_that_is_left(store: Store) -> None:
    before = store[1]
    assert before.arrays["ema/tied"].aliases == ("model/tied",)

    store.slim(1, drop="ema")

    assert_same(store[1].load(), slimmed(1, "ema"))
    assert store[1].arrays["model/tied"].aliases == ()
    assert store[1].arrays["model/tied"].digests == before.arrays["ema/tied"].digests


def test_a_dropped_section_is_named_with_the_time(store: Store) -> None:
    store.slim(1, drop="optimizer")
    asked = store[1]
    into = state(1)

    for ask in (
        lambda: asked.load(select="optimizer/**"),
        lambda: asked.load(select=["model", "optimizer"]),  # no half of it
        lambda: asked.compare(into, select="optimizer"),
        lambda: asked.load(into=into),
        lambda: asked["optimizer/m"],
        lambda: asked.lazy("optimizer"),
    ):
        with pytest.raises(NotFoundError, match=r"dropped .* on 2026-09-21 .*slimmed"):
            ask()
    assert_same(into, state(1))


@pytest.mark.parametrize(
    ("drop", "error"),
    [
        (["nothing"], NotFoundError),
        (["step"], NotFoundError),  # a value at the root, no section
        ([""], NotFoundError),
    ],
)
def test_what_is_no_section_cannot_be_dropped(
    store: Store, disk: MemoryBackend, drop: list[str], error: type[Exception]
) -> None:
    before = disk.list(layout.MANIFESTS)

    with pytest.raises(error, match="no such section"):
        store.slim(1, drop=["optimizer", *drop])

    assert disk.list(layout.MANIFESTS) == before


def test_something_must_be_left(disk: MemoryBackend) -> None:
    with ckptfmt.open(disk) as store:
        store.save({"model": {"w": np.zeros(3)}, "ema": {"w": np.ones(3)}})

        with pytest.raises(UsageError, match="delete it instead"):
            store.slim(1, drop=["model", "ema"])
    assert disk.list(layout.INTENTS) == {}


def test_one_bad_number_changes_nothing(store: Store, disk: MemoryBackend) -> None:
    before = disk.list(layout.MANIFESTS)

    with pytest.raises(NotFoundError, match="no such checkpoint"):
        store.slim([1, 9], drop="optimizer")

    assert disk.list(layout.MANIFESTS) == before


def test_a_run_goes_on_beside_slimmed_checkpoints(store: Store) -> None:
    store.slim([1, 2], drop="optimizer")
    store[3].load()

    saved = store.save(state(4))

    assert saved.reused_bytes >= 8 * BIG
    assert [row.number for row in saved.history] == [1, 2, 3]
    assert store.best("loss").number == 3
    assert store.at(examples=1).dropped == ("optimizer",)
    assert_same(saved.load(), state(4))


def test_a_save_from_a_slimmed_parent_reuses_what_is_left(store: Store) -> None:
    store.slim(3, drop="optimizer")
    again = ckptfmt.open(store.backend)
    assert again.latest().load().keys() == {"ema", "model", "rng", "step"}

    saved = again.save(state(3))

    assert saved.parent == (3, store[3].id)
    assert saved.reused_bytes >= 8 * BIG
    assert saved.new_bytes >= 8 * BIG  # the optimizer, which was freed
    assert store.delete(3).blocked == ()
    assert_same(store[saved.number].load(), state(3))


def test_encoded_chunks_stay_as_they_are(disk: MemoryBackend) -> None:
    with ckptfmt.open(disk, codec="zstd", digest="sha256") as store:
        store.save(state(1))
        store.slim(1, drop="optimizer")

        assert_same(store[1].load(), slimmed(1, "optimizer"))
        assert store[1].verify().ok


def test_a_slimmed_checkpoint_can_be_packed_unpacked_and_exported(
    store: Store, tmp_path: pathlib.Path
) -> None:
    store.slim(1, drop="optimizer")

    packed = ckptfmt.pack(store[1], tmp_path / "x.safetensors")
    ckptfmt.export(store[1], tmp_path / "y.safetensors")
    with pytest.raises(NotFoundError, match="slimmed"):
        ckptfmt.export(store[1], tmp_path / "z.safetensors", select="optimizer")
    again = ckptfmt.unpack(packed, store)

    assert packed.dropped == ("optimizer",)
    assert_same(packed.load(), slimmed(1, "optimizer"))
    assert_same(again.load(), slimmed(1, "optimizer"))


def test_facts_of_a_later_minor_version_are_kept(store: Store, disk: MemoryBackend) -> None:
    key = layout.manifest_key(1)
    old = Manifest.decode(disk.read(key))
    features = Features(unknown={"copy": ["some-dev"]})
    summary = dataclasses.replace(old.summary, unknown={"later": [1, "x"]}, features=features)
    later = dataclasses.replace(old, summary=summary, unknown={"also": {"y": b"z"}})
    disk.replace(key, later.encode())

    ckptfmt.open(disk).slim(1, drop="optimizer")

    found = Manifest.decode(disk.read(layout.manifest_key(1, 1)))
    assert found.summary.unknown == {"later": [1, "x"]}
    assert found.summary.features == features
    assert found.unknown == {"also": {"y": b"z"}}


def test_the_independent_checker_and_reader_accept_a_slimmed_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(VECTORS), *sys.path])
    import checker
    import reader

    with ckptfmt.open(tmp_path / "run") as store:
        for seed in (1, 2):
            store.save(state(seed))
        store.slim([1, 2], drop="optimizer")
        store.slim(2, drop="rng")

    for file in (tmp_path / "run" / "manifests").iterdir():
        checker.manifest(file.read_bytes())
    found, _ = reader.load(tmp_path / "run")
    assert found.keys() == {"ema", "model", "step"}
    assert found["model"]["w"].tobytes() == state(2)["model"]["w"].tobytes()


# ---- beside others


def test_a_pinned_checkpoint_is_not_slimmed(store: Store, disk: MemoryBackend) -> None:
    store.tag(1, "pinned")

    with pytest.raises(UsageError, match="pinned"):
        store.slim(1, drop="optimizer")

    assert store[1].revision == 0
    assert disk.list(layout.INTENTS) == {}


def lease(disk: MemoryBackend, *, number: int, revision: int) -> None:
    found = Intent(kind=SAVE, save="e" * 24, number=number, revision=revision, host="h", pid=1)
    disk.create(layout.intent_key(found.save), found.encode())


def test_a_tag_fails_while_its_checkpoint_is_being_slimmed(
    store: Store, disk: MemoryBackend
) -> None:
    lease(disk, number=1, revision=1)

    with pytest.raises(ConflictError, match="being slimmed by process 1 on h"):
        store.tag(1, "pinned")

    assert store.tag(2, "pinned").tags == ("t", "pinned")


def test_a_tag_succeeds_after_the_revision_has_landed(
    store: Store, disk: MemoryBackend
) -> None:
    store.slim(1, drop="optimizer")
    lease(disk, number=1, revision=1)

    assert store.tag(1, "pinned").dropped == ("optimizer",)


def test_a_broken_lease_blocks_its_name_and_no_other(store: Store, disk: MemoryBackend) -> None:
    lease(disk, number=1, revision=1)
    store.collect(break_lease=True)
    assert_same(store[1].load(), state(1))

    store.slim(1, drop="optimizer")

    assert store[1].revision == 2
    assert_same(store[1].load(), slimmed(1, "optimizer"))


def test_nothing_is_revised_below_a_damaged_revision(store: Store, disk: MemoryBackend) -> None:
    """Its files may be gone already."""
    store.slim(1, drop="optimizer")
    key = layout.manifest_key(1, 1)
    disk.replace(key, disk.read(key)[:-1])

    with pytest.raises(FormatError):
        ckptfmt.open(disk).slim(1, drop="rng")

    assert layout.manifest_key(1, 2) not in disk.list(layout.MANIFESTS)


def test_deleting_a_slimmed_checkpoint_frees_the_rest(
    store: Store, disk: MemoryBackend
) -> None:
    store.slim(1, drop="optimizer")
    store.delete([1, 2, 3])

    assert len(store) == 0
    assert disk.list(layout.DATA) == {}


# ---- by rule


def test_rules_slim_what_is_older_than_the_last(store: Store, disk: MemoryBackend) -> None:
    rules = ckptfmt.keep(last=2, every_examples=1, slim="optimizer")
    would = store.retain(rules, dry_run=True)
    assert (would.numbers, would.slimmed) == ((), (1,))

    with ckptfmt.open(disk, keep=rules) as again:
        again.latest().load()
        again.save(state(4), counters={"seen": 4})

    assert [c.dropped for c in store] == [("optimizer",), ("optimizer",), (), ()]
    assert store.retain(rules).slimmed == ()


def test_rules_leave_pinned_ones_and_the_newest_of_each_lineage_whole(store: Store) -> None:
    store.tag(1, "pinned")
    store.save(state(4), counters={"seen": 4}, parent=store[2])
    store.save(state(5), counters={"seen": 5})

    store.retain(ckptfmt.keep(every_examples=1, slim=["optimizer", "unknown"]))

    assert [c.number for c in store if c.dropped] == [2, 4]


def test_rules_never_slim_all_away(disk: MemoryBackend) -> None:
    with ckptfmt.open(disk) as store:
        for seen in (1, 2):
            store.save({"optimizer": {"m": np.zeros(seen)}}, counters={"seen": seen})

        assert store.retain(ckptfmt.keep(every_examples=1, slim="optimizer")).slimmed == ()


@pytest.mark.parametrize("slim", [[""], [1], ["model", None]])
def test_sections_are_named_by_text(slim: Any) -> None:
    with pytest.raises(UsageError, match=re.escape("slim must be names of sections")):
        ckptfmt.keep(last=1, slim=slim)
