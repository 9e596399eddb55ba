"""Copying checkpoints between stores: same numbers, same identities, nothing twice."""

from __future__ import annotations

import itertools
import logging
import pathlib
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import parts, plan
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import ConflictError, IntegrityError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.testing.faulty import Crash, FaultyBackend
from ckptfmt.testing.strategies import assert_same


@pytest.fixture(autouse=True)
def _several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MISC_NBYTES", 500)


def state(seed: int) -> dict[str, Any]:
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        "model": {"w": fixed.standard_normal((9, 9)), "b": fixed.standard_normal(7)},
        "optimizer": {"m": rng.standard_normal((12, 12)), "step": seed},
    }


def store(backend: MemoryBackend | FaultyBackend) -> ckptfmt.Store:
    return ckptfmt.open(backend, threads=1)


def saved(*seeds: int) -> ckptfmt.Store:
    made = store(MemoryBackend())
    for seed in seeds:
        made.save(state(seed))
    return made


def empty() -> ckptfmt.Store:
    return store(MemoryBackend())


def keys(of: ckptfmt.Store, folder: str) -> dict[str, bytes]:
    return {key: of.backend.read(key) for key in of.backend.list(folder)}


def damage(of: ckptfmt.Store, key: str, offset: int) -> None:
    data = bytearray(of.backend.read(key))
    data[offset] ^= 1
    of.backend.replace(key, data)


def test_all_checkpoints_arrive_with_their_identities() -> None:
    source, target = saved(1, 2), empty()
    source.save(state(3), metrics={"loss": float("nan")})
    source.tag(2, "good")

    done = ckptfmt.copy(source, target)

    assert done.numbers == (1, 2, 3)
    assert done.annotations == 1
    assert [c.identity for c in target] == [c.identity for c in source]
    for folder in (layout.DATA, layout.MANIFESTS, layout.ANNOTATIONS):
        assert keys(target, folder) == keys(source, folder)
    assert keys(target, layout.INTENTS) == {}
    assert_same(target.latest().load(), state(3))
    assert target[2].tags == ("good",)


def test_a_second_copy_moves_nothing() -> None:
    source, target = saved(1, 2), empty()
    source.tag(1, "a")
    ckptfmt.copy(source, target)
    counting = FaultyBackend(target.backend)

    done = ckptfmt.copy(source, store(counting))

    assert (done.numbers, done.present, done.files, done.annotations) == ((), (1, 2), (), 0)
    assert counting.mutations == 0


def test_what_is_new_follows_and_shared_files_are_not_moved_again() -> None:
    source, target = saved(1), empty()
    ckptfmt.copy(source, target)
    newest = source.save(state(2))

    done = ckptfmt.copy(source, target)

    assert done.numbers == (2,)
    assert set(done.files) == {f.key for f in newest.manifest.tables.files if f.number == 2}
    assert len(newest.manifest.tables.files) > len(done.files)


@pytest.mark.parametrize("first", [1, 3])
def test_one_checkpoint_is_copied_with_all_it_references(first: int) -> None:
    """Also one below those that the target has: it fills a gap."""
    source, target = saved(1, 2, 3), empty()
    ckptfmt.copy(source, target, numbers=[first])

    assert_same(target[first].load(), state(first))
    assert len(target) == 1
    assert ckptfmt.copy(source, target).numbers == tuple({1, 2, 3} - {first})
    assert all(checkpoint.verify().ok for checkpoint in target)


def test_an_address_selects(tmp_path: pathlib.Path) -> None:
    source = ckptfmt.open(tmp_path / "a")
    for seed, loss in ((1, 0.5), (2, 0.1), (3, 0.3)):
        source.save(state(seed), metrics={"loss": loss})

    ckptfmt.copy(f"{tmp_path}/a@best:loss", tmp_path / "b")

    assert [c.number for c in ckptfmt.open(tmp_path / "b")] == [2]


def test_a_run_goes_on_at_the_target() -> None:
    source, target = saved(1, 2), empty()
    ckptfmt.copy(source, target)

    target.latest().load()
    again = target.save(state(3))

    assert (again.number, again.parent) == (3, (2, source[2].id))
    assert target.collect().files == ()


def test_a_dry_run_changes_nothing_and_foresees_the_copy() -> None:
    source, target = saved(1, 2, 3), empty()
    ckptfmt.copy(source, target, numbers=[1])
    counting = FaultyBackend(target.backend)

    told = ckptfmt.copy(source, store(counting), dry_run=True)

    assert counting.mutations == 0
    assert told == ckptfmt.copy(source, target)
    assert told.numbers == (2, 3)


def test_another_checkpoint_under_a_number_is_a_conflict_and_stays() -> None:
    source, target = saved(1, 2), saved(1)
    before = keys(target, layout.MANIFESTS)

    with pytest.raises(ConflictError, match="something else under this number") as caught:
        ckptfmt.copy(source, target)

    assert caught.value.where["source"] == source[1].identity
    assert caught.value.where["target"] == target[1].identity
    assert keys(target, layout.MANIFESTS) == before


def test_a_writer_that_is_faster_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = saved(1), empty()
    read = parts.read

    def meanwhile(*args: Any) -> memoryview:
        monkeypatch.setattr(parts, "read", read)
        target.save(state(9))
        return read(*args)

    monkeypatch.setattr(parts, "read", meanwhile)
    with pytest.raises(ConflictError) as caught:
        ckptfmt.copy(source, target, threads=1)

    assert caught.value.where["target"] == target[1].identity
    assert_same(target[1].load(), state(9))
    target.save(state(2))  # cleans up: the lease of the copy is spent
    assert keys(target, layout.INTENTS) == {}


class DeletedOnceThere:
    """A target whose first checkpoint others delete, and collect after, when it has arrived."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner, self._arrived = inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: bytes, *, durable: bool = True) -> None:
        self._inner.create(key, data, durable=durable)
        if key == layout.manifest_key(1):
            self._arrived = True
            store(self._inner).delete(1)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        if self._arrived:
            self._arrived = False
            assert key in store(self._inner).collect().files
        return self._inner.map(key, offset, nbytes)


def test_what_is_deleted_as_soon_as_it_is_there_is_no_damage() -> None:
    source, target = saved(1, 2), MemoryBackend()

    done = ckptfmt.copy(source, store(DeletedOnceThere(target)), threads=1)  # type: ignore[arg-type]

    assert (done.deleted, done.numbers) == ((1,), (2,))
    assert [checkpoint.number for checkpoint in store(target)] == [2]
    assert_same(store(target).latest().load(), state(2))
    assert store(target).collect().files == ()


@pytest.mark.parametrize("side", ["source", "target"])
def test_what_was_deleted_stays_where_it_is_deleted(side: str) -> None:
    source, target = saved(1, 2), empty()
    ckptfmt.copy(source, target)
    (source if side == "source" else target).delete(1)

    done = ckptfmt.copy(source, target)

    assert done.numbers == ()
    assert [c.number for c in target] == ([1, 2] if side == "source" else [2])
    assert done.deleted == (() if side == "source" else (1,))


def test_a_save_in_flight_is_not_copied() -> None:
    source, target = saved(1), empty()
    source.backend.create(layout.intent_key("a" * 24), b"x")
    source.backend.write(layout.data_key("a" * 24, "model", 0), [b"torn"], nbytes=4)

    ckptfmt.copy(source, target)

    assert keys(target, layout.DATA).keys() == {f.key for f in source[1].manifest.tables.files}
    assert keys(target, layout.INTENTS) == {}


@pytest.mark.parametrize("place", ["chunk", "header"])
def test_damage_at_the_source_is_found_and_nothing_is_visible(place: str) -> None:
    source, target = saved(1, 2), empty()
    file = source[2].manifest.tables.files[-1]
    assert file.number == 2
    offset = file.nbytes - 1 if place == "chunk" else 9
    damage(source, file.key, offset)

    with pytest.raises(IntegrityError) as caught:
        ckptfmt.copy(source, target)

    assert caught.value.where["file"] == file.key
    assert caught.value.where["path"] == ("optimizer/m" if place == "chunk" else None)
    assert 0 <= caught.value.where["offset"] <= offset
    assert [row.number for row in target.entries()] == [1]
    assert file.key not in target.backend.list(layout.DATA)
    assert keys(target, layout.INTENTS) == {}
    assert_same(target.latest().load(), state(1))


@pytest.mark.parametrize("lost", ["missing", "short"])
def test_a_source_without_its_data_is_an_error(lost: str) -> None:
    source, target = saved(1), empty()
    file = source[1].manifest.tables.files[0]
    data = source.backend.read(file.key)
    source.backend.delete(file.key)
    if lost == "short":
        source.backend.write(file.key, [data[:-1]], nbytes=len(data) - 1)

    with pytest.raises(IntegrityError, match=r"is missing|ends too early") as caught:
        ckptfmt.copy(source, target)

    assert caught.value.where["file"] == file.key
    assert len(target) == 0


def test_an_unreadable_manifest_is_passed_over_unless_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, target = saved(1, 2), empty()
    damage(source, layout.manifest_key(1), 140)

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        done = ckptfmt.copy(source, target)

    assert (done.numbers, done.unreadable) == ((2,), (1,))
    assert "checkpoint 1 cannot be read" in caplog.text
    with pytest.raises(IntegrityError):
        ckptfmt.copy(source, target, numbers=[1])
    with pytest.raises(NotFoundError):
        ckptfmt.copy(source, target, numbers=[7])


class Lying:
    """A backend that stores other bytes than it was given, once."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner, self._honest = inner, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, key: str, blocks: Any, *, nbytes: int, durable: bool = True) -> None:
        data = bytearray(b"".join(blocks))
        data[-1] ^= 0 if self._honest else 1
        self._honest = True
        self._inner.write(key, [data], nbytes=nbytes, durable=durable)


def test_what_the_target_gives_back_is_compared() -> None:
    source, inner = saved(1), MemoryBackend()
    lying: Any = Lying(inner)

    with pytest.raises(IntegrityError, match="digest mismatch"):
        ckptfmt.copy(source, ckptfmt.open(lying))

    assert len(store(inner)) == 0
    assert ckptfmt.copy(source, ckptfmt.open(lying)).numbers == (1,)
    assert store(inner)[1].verify().ok
    unread: Any = Lying(MemoryBackend())
    ckptfmt.copy(source, ckptfmt.open(unread), read_back=False)
    assert not ckptfmt.open(unread)[1].verify().ok


@pytest.mark.parametrize("left", ["right", "wrong", "short"])
def test_what_a_dead_copy_left_is_used_if_it_agrees(left: str) -> None:
    source, target = saved(1), empty()
    file = source[1].manifest.tables.files[0]
    data = bytearray(source.backend.read(file.key))
    data[-1] ^= left == "wrong"
    data = data[:-1] if left == "short" else data
    target.backend.write(file.key, [data], nbytes=len(data))

    done = ckptfmt.copy(source, target)

    assert (file.key in done.files) == (left != "right")
    assert target[1].verify().ok


def test_a_file_that_the_target_lost_is_brought_back() -> None:
    source, target = saved(1, 2), empty()
    ckptfmt.copy(source, target)
    file = source[2].manifest.tables.files[0]
    target.backend.delete(file.key)

    done = ckptfmt.copy(source, target)

    assert (done.numbers, done.files) == ((), (file.key,))
    assert target[2].verify().ok


def test_a_damaged_file_of_the_target_is_not_replaced() -> None:
    source, target = saved(1), empty()
    ckptfmt.copy(source, target)
    file = source[1].manifest.tables.files[0]
    data = target.backend.read(file.key)
    target.backend.replace(file.key, data[:-1])

    with pytest.raises(IntegrityError, match="damaged at the target"):
        ckptfmt.copy(source, target)

    assert target.backend.read(file.key) == data[:-1]


def test_chunks_of_a_shared_file_that_the_target_has_never_checked_are_checked() -> None:
    """The file came with another checkpoint, which does not use this part of it."""
    source, target = saved(1), empty()
    changed = state(1)
    changed["model"]["b"] += 1
    source.save(changed)
    ckptfmt.copy(source, target, numbers=[2])
    file = source[1].manifest.tables.files[0]
    tables = source[1].manifest.tables
    own = {p.path: p for p in parts.of_files(tables)[file.key]}
    assert file.key in target.backend.list(layout.DATA)
    damage(target, file.key, own["model/b"].offset)

    with pytest.raises(IntegrityError, match="damaged at the target") as caught:
        ckptfmt.copy(source, target)

    assert "model/b" in str(caught.value)


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_killed_copy_goes_on_where_it_was(how: str) -> None:
    """At each of its changes; files that are there whole are not moved twice."""
    source = saved(1, 2)
    source.tag(1, "a")
    for at in itertools.count(1):
        disk = MemoryBackend()
        dying = FaultyBackend(disk, at=at, after=how == "after", torn=how == "torn")
        try:
            ckptfmt.copy(source, store(dying), threads=1)
        except Crash:
            pass
        else:
            break
        half = store(disk)
        whole = {
            key for key in disk.list(layout.DATA) if disk.read(key) == source.backend.read(key)
        }
        assert_same([c.load() for c in half], [state(n + 1) for n in range(len(half))])

        done = ckptfmt.copy(source, half, threads=1)

        assert whole.isdisjoint(done.files)
        assert keys(half, layout.DATA) == keys(source, layout.DATA)
        assert [c.identity for c in half] == [c.identity for c in source]
        assert half[1].tags == ("a",)
        assert half.collect().blocked == ()
        assert keys(half, layout.INTENTS) == {}
    assert at > 10


def test_annotations_of_both_sides_are_kept() -> None:
    source, target = saved(1), empty()
    ckptfmt.copy(source, target)
    source.annotate(1, {"metrics.late": 0.5})
    target.annotate(1, {"notes": "checked"})

    for _ in range(2):
        ckptfmt.copy(source, target)

    assert dict(target[1].metrics) == {"late": 0.5}
    assert dict(target[1].notes) == {"notes": "checked"}
    assert len(keys(target, layout.ANNOTATIONS)) == 2
    assert dict(source[1].notes) == {}


def test_a_deletion_meanwhile_spares_what_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease of the copy pins the files that it found there."""
    source, target = saved(1, 2), empty()
    ckptfmt.copy(source, target, numbers=[1])
    shared = {f.key for f in source[1].manifest.tables.files} & {
        f.key for f in source[2].manifest.tables.files
    }
    read = parts.read

    def meanwhile(*args: Any) -> memoryview:
        monkeypatch.setattr(parts, "read", read)
        assert shared.isdisjoint(target.delete(1).files)
        return read(*args)

    monkeypatch.setattr(parts, "read", meanwhile)
    done = ckptfmt.copy(source, target, numbers=[2], threads=1)

    assert shared
    assert shared.isdisjoint(done.files)
    assert target[2].verify().ok


def test_a_slimmed_checkpoint_is_copied_as_it_is() -> None:
    """Its first manifest comes along, for a number lives by that; dropped data does not."""
    source, target, full, other = saved(1, 2), empty(), empty(), saved(8)
    ckptfmt.copy(source, full, numbers=[1])
    source.slim(1, drop="optimizer")
    source.collect()

    done = ckptfmt.copy(source, target)

    assert (source[1].revision, target[1].revision) == (1, 1)
    assert [c.identity for c in target] == [c.identity for c in source]
    assert keys(target, layout.DATA) == keys(source, layout.DATA)
    assert target[1].verify().ok
    assert done.numbers == (1, 2)
    assert ckptfmt.copy(source, target).present == (1, 2)
    assert ckptfmt.copy(source, full, numbers=[1]).numbers == (1,)
    assert (full[1].revision, full[1].identity) == (1, source[1].identity)
    older = ckptfmt.copy(saved_as(full), target, numbers=[1])
    assert (older.present, older.files) == ((1,), ())
    with pytest.raises(ConflictError, match="something else under this number"):
        ckptfmt.copy(source, other, numbers=[1])
    assert_same(other[1].load(), state(8))


def saved_as(of: ckptfmt.Store) -> ckptfmt.Store:
    """Return a store with the first revisions of another one alone."""
    made = MemoryBackend()
    for key in of.backend.list(layout.DATA):
        data = of.backend.read(key)
        made.write(key, [data], nbytes=len(data))
    for key in of.backend.list(layout.MANIFESTS):
        if key.endswith("-000.ckpt"):
            made.create(key, of.backend.read(key))
    return store(made)


def test_progress_counts_every_byte_twice_when_it_is_read_back() -> None:
    source = saved(1)
    told: list[tuple[str, int, int]] = []

    ckptfmt.copy(source, empty(), progress=lambda *what: told.append(what))

    assert {phase for phase, _, _ in told} == {"checkpoint 1"}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    nbytes = sum(f.nbytes for f in source[1].manifest.tables.files)
    assert told[-1][1:] == (2 * nbytes, 2 * nbytes)


def test_wrong_calls_are_told(tmp_path: pathlib.Path) -> None:
    ckptfmt.open(tmp_path / "a").save(state(1))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for same in (tmp_path / "a", f"{tmp_path}/b/../a/", tmp_path / "link"):
        with pytest.raises(UsageError, match="same store"):
            ckptfmt.copy(tmp_path / "a", same)
    ckptfmt.open("memory://copied/x").save(state(1))
    with pytest.raises(UsageError, match="same store"):
        ckptfmt.copy("memory://copied/x", "memory://copied/x/")
    with pytest.raises(UsageError, match="bundle"):
        ckptfmt.copy(tmp_path / "a", tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="one checkpoint"):
        ckptfmt.copy(f"{tmp_path}/a@1", tmp_path / "b", numbers=[1])
    with pytest.raises(NotFoundError, match="no store"):
        ckptfmt.copy(tmp_path / "none", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_local_to_local(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "a") as source:
        for seed in (1, 2):
            source.save(state(seed))

    ckptfmt.copy(tmp_path / "a", tmp_path / "b")

    found = {
        str(p.relative_to(tmp_path / "b")): p.read_bytes()
        for p in (tmp_path / "b").rglob("*")
        if p.is_file()
    }
    assert found == {
        str(p.relative_to(tmp_path / "a")): p.read_bytes()
        for p in (tmp_path / "a").rglob("*")
        if p.is_file()
    }
