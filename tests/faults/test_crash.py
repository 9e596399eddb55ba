"""A process dies, or storage fails, at every single change that an operation makes.

Whatever is left: checkpoints from before load bit by bit, none is half visible, the next save
succeeds, and after it and a `collect` nothing is left over. The number of changes of each
operation is stated, so that a new one is noticed and gets its cases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import plan
from ckptfmt._store.store import Store
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import BackendError, ConflictError
from ckptfmt.format import layout
from ckptfmt.format.records import Intent
from ckptfmt.options import FENCE_SECONDS
from ckptfmt.testing.faulty import Crash, FaultyBackend
from ckptfmt.testing.strategies import assert_same

State = dict[str, Any]


SHARED_NBYTES = 1000  # sections below it share a file; lowered, to have several small files


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MISC_NBYTES", SHARED_NBYTES)
    # Each store looks for all installed packages once; these tests open thousands.
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {})


def state(seed: int) -> State:
    """Return a state of three sections; `model` is the same for every seed."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    return {
        "model": {"w": fixed.standard_normal((9, 9)), "b": fixed.standard_normal(7)},
        "optimizer": {"m": rng.standard_normal((12, 12))},
        "rng": {"key": rng.integers(0, 2**32, 24, dtype=np.uint32)},
        "step": seed,
    }


STATES = {seed: state(seed) for seed in (1, 2, 3, 4, 5)}
NEXT = STATES[5]
NOTHING: Mapping[int, State] = types.MappingProxyType({})


class Disk:
    """A backend that outlives its users, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.backend = MemoryBackend(clock=lambda: self.now)

    def open(self, **how: Any) -> Store:
        return ckptfmt.open(self.backend, threads=1, **how)

    def crash(self, act: Callable[[Store], object], at: int, **how: Any) -> None:
        """Run `act` in a process that dies at its `at`-th change."""
        with pytest.raises(Crash):
            act(ckptfmt.open(FaultyBackend(self.backend, at=at), threads=1, **how))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """What is swept: which checkpoints it may make or delete, and how many changes it makes."""

    prepare: Callable[[Disk], None]
    act: Callable[[Store], object]
    stays: frozenset[int]  # loadable before, during and after
    goes: frozenset[int] = frozenset()  # loadable before, deleted by it
    makes: int | None = None  # the number it commits, with the state of that number
    slims: frozenset[int] = frozenset()  # which may lose the section `optimizer`
    changes: int
    keep: Any = None


def nothing(disk: Disk) -> None:
    pass


def saved(*numbers: int) -> Callable[[Disk], None]:
    """Return what saves a state under each number, in one lineage."""

    def prepare(disk: Disk) -> None:
        store = disk.open()
        for number in numbers:
            assert store.save(STATES[number]).number == number

    return prepare


def resumed(seed: int) -> Callable[[Store], object]:
    """Return what goes on from the newest checkpoint and saves a state."""

    def act(store: Store) -> object:
        store.latest().load()
        return store.save(STATES[seed])

    return act


def littered(disk: Disk) -> None:
    """Three checkpoints, an old tombstone, two spent leases, and the data of a dead save."""
    saved(1, 2, 3)(disk)
    disk.open().delete(2)
    disk.crash(lambda store: store.save(NEXT), 4)  # before its commit
    disk.crash(lambda store: store.save(STATES[4]), 5)  # after its commit, of number 4
    disk.now += 2 * FENCE_SECONDS


def leased(disk: Disk) -> None:
    """One checkpoint, and the lease of a dead process that aims at the next number."""
    saved(1)(disk)
    disk.crash(lambda store: store.save(STATES[2]), 4)


def damaged(disk: Disk) -> None:
    """Two checkpoints; the manifest of the second is torn."""
    saved(1, 2)(disk)
    key = layout.manifest_key(2)
    data = disk.backend.read(key)
    disk.backend.replace(key, data[: len(data) // 2])


@functools.cache
def archive() -> Store:
    """Return another store, with checkpoints 1 and 2, the newest of them tagged."""
    disk = Disk()
    saved(1, 2)(disk)
    disk.open().tag(2, "good")
    return disk.open()


def copied(disk: Disk) -> None:
    """One checkpoint that came from the archive."""
    ckptfmt.copy(archive(), disk.open(), numbers=[1], threads=1)


OPERATIONS = {
    "first save": Operation(
        prepare=nothing,
        act=lambda store: store.save(STATES[1]),
        stays=frozenset(),
        makes=1,
        changes=6,  # marker, lease, 2 data files, manifest, lease
    ),
    "save with reuse": Operation(
        prepare=saved(1),
        act=lambda store: store.save(STATES[2]),
        stays=frozenset({1}),
        makes=2,
        changes=5,  # lease, 2 data files, manifest, lease
    ),
    "save with retention": Operation(
        prepare=saved(1, 2),
        act=resumed(3),
        stays=frozenset(),
        goes=frozenset({1, 2}),
        makes=3,
        changes=12,  # a save (5), lease, 2 tombstones, lease, 3 data files
        keep=ckptfmt.keep(last=1),
    ),
    "save in the background": Operation(
        prepare=saved(1),
        act=lambda store: store.save_async(STATES[2]).wait(),
        stays=frozenset({1}),
        makes=2,
        changes=5,
    ),
    "delete": Operation(
        prepare=saved(1, 2),
        act=lambda store: store.delete(1),
        stays=frozenset({2}),
        goes=frozenset({1}),
        changes=4,  # lease, tombstone, lease, data file; the other one is shared
    ),
    "delete several": Operation(
        prepare=saved(1, 2, 3),
        act=lambda store: store.delete([1, 3]),
        stays=frozenset({2}),
        goes=frozenset({1, 3}),
        changes=7,  # lease, 2 tombstones, lease, 3 data files
    ),
    "slim": Operation(
        prepare=saved(1, 2),
        act=lambda store: store.slim(1, drop="optimizer"),
        stays=frozenset({1, 2}),
        slims=frozenset({1}),
        changes=4,  # lease, manifest, lease, data file
    ),
    "slim several": Operation(
        prepare=saved(1, 2, 3),
        act=lambda store: store.slim([1, 3], drop=["optimizer"]),
        stays=frozenset({1, 2, 3}),
        slims=frozenset({1, 3}),
        changes=8,  # twice lease, manifest, lease; 2 data files
    ),
    "save with retention that slims": Operation(
        prepare=saved(1, 2),
        act=resumed(3),
        stays=frozenset({1, 2}),
        slims=frozenset({1, 2, 3}),  # 3 only if the rules are applied once more
        makes=3,
        changes=13,  # a save (5), twice lease, manifest, lease; 2 data files
        keep=ckptfmt.keep(every_hours=1e-9, slim="optimizer"),
    ),
    "collect": Operation(
        prepare=littered,
        act=lambda store: store.collect(),
        stays=frozenset({1, 3, 4}),
        changes=7,  # lease twice, 2 data files, 2 spent leases, tombstone
    ),
    "collect and break a lease": Operation(
        prepare=leased,
        act=lambda store: store.collect(break_lease=True),
        stays=frozenset({1}),
        changes=6,  # lease twice, tombstone, lease of the dead, its 2 data files
    ),
    "collect and forget": Operation(
        prepare=damaged,
        act=lambda store: store.collect(forget=[2]),
        stays=frozenset({1}),
        changes=5,  # lease twice, tombstone, 2 data files
    ),
    "copy": Operation(
        prepare=copied,
        act=lambda store: ckptfmt.copy(archive(), store, threads=1),
        stays=frozenset({1}),
        makes=2,
        changes=6,  # lease, 2 data files, annotation, manifest, lease; one file is shared
    ),
    "copy to a new store": Operation(
        prepare=nothing,
        act=lambda store: ckptfmt.copy(archive(), store, numbers=[1], threads=1),
        stays=frozenset(),
        makes=1,
        changes=6,  # marker, lease, 2 data files, manifest, lease
    ),
    "annotate": Operation(
        prepare=saved(1, 2),
        act=lambda store: store.annotate(1, {"notes": "x", "metrics.loss": 0.5}),
        stays=frozenset({1, 2}),
        changes=1,
    ),
}


@pytest.fixture(params=OPERATIONS.values(), ids=[n.replace(" ", "-") for n in OPERATIONS])
def operation(request: pytest.FixtureRequest) -> Operation:
    found: Operation = request.param
    return found


def test_no_operation_gained_or_lost_a_change(operation: Operation) -> None:
    """A new change needs its cases: what if the process dies before, in, after it?"""
    disk = Disk()
    operation.prepare(disk)
    counting = FaultyBackend(disk.backend)

    operation.act(ckptfmt.open(counting, threads=1, keep=operation.keep))

    assert counting.mutations == operation.changes


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_crash_leaves_all_or_nothing(operation: Operation, how: str) -> None:
    tried = 0
    for at in itertools.count(1):
        disk = Disk()
        operation.prepare(disk)
        faulty = FaultyBackend(disk.backend, at=at, after=how == "after", torn=how == "torn")
        try:
            operation.act(ckptfmt.open(faulty, threads=1, keep=operation.keep))
        except Crash:
            tried += 1
        else:
            break  # `at` exceeds the number of changes: every point was tried

        check_what_is_left(disk, operation)

    assert tried == operation.changes


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_failing_storage_leaves_all_or_nothing(operation: Operation, after: bool) -> None:
    """The process lives, is told or need not be, and goes on with the same store."""
    for at in range(1, operation.changes + 1):
        disk = Disk()
        operation.prepare(disk)
        error = OSError(errno.EIO, "injected")
        faulty = FaultyBackend(disk.backend, at=at, after=after, error=error)
        store = ckptfmt.open(faulty, threads=1, keep=operation.keep)
        with contextlib.suppress(BackendError):
            operation.act(store)

        again = store.save(NEXT)
        check_what_is_left(disk, operation, {again.number: NEXT})


def test_a_lost_reply_is_a_success(operation: Operation) -> None:
    """A create lands, its reply is lost, and the client's repetition finds the name taken."""
    for at in range(1, operation.changes + 1):
        disk = Disk()
        operation.prepare(disk)
        faulty = FaultyBackend(disk.backend, at=at, lose_reply=True)
        try:
            operation.act(ckptfmt.open(faulty, threads=1, keep=operation.keep))
        except Crash:
            continue  # this change is no create

        if operation.makes is not None:
            assert_same(disk.open()[operation.makes].load(), STATES[operation.makes])
        check_what_is_left(disk, operation)


class LosesReply:
    """A backend whose first reply to a lease is lost; its client repeats, some time later."""

    def __init__(self, inner: MemoryBackend, meanwhile: Callable[[], object]) -> None:
        self._inner, self._meanwhile = inner, [meanwhile]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: bytes, *, durable: bool = True) -> None:
        self._inner.create(key, data, durable=durable)
        if key.startswith(layout.INTENTS) and self._meanwhile:
            self._meanwhile.pop()()
            raise ConflictError("object exists", key=key)


def test_a_lease_may_be_spent_before_its_lost_reply_is_repeated() -> None:
    """Another writer was faster, and has removed what can never land."""
    disk = MemoryBackend()
    ckptfmt.open(disk, threads=1).save(STATES[1])
    faster = ckptfmt.open(disk, threads=1, keep=ckptfmt.keep(last=1))
    faster.latest().load()

    def overtake() -> None:
        faster.save(STATES[2])
        assert disk.list(layout.INTENTS) == {}

    slower = ckptfmt.open(LosesReply(disk, overtake), threads=1)
    with pytest.raises(ConflictError, match="another writer committed this number first"):
        slower.save(NEXT)

    assert_same(ckptfmt.open(disk).latest().load(), STATES[2])
    assert disk.list(layout.INTENTS) == {}


def test_a_restarted_job_removes_the_lease_of_its_killed_deletion() -> None:
    """It wants the same checkpoints gone: when they are, the old lease covers nothing."""
    how = {"keep": ckptfmt.keep(last=1)}
    operation = OPERATIONS["save with retention"]
    for at in range(1, operation.changes + 1):
        disk = Disk()
        operation.prepare(disk)
        disk.crash(resumed(3), at, **how)

        resumed(4)(disk.open(**how))

        assert disk.backend.list(layout.INTENTS) == {}


def test_a_killed_collection_leaves_a_lease_that_covers_nothing() -> None:
    disk = Disk()
    saved(1)(disk)
    disk.crash(lambda store: store.collect(), 2)
    assert len(disk.backend.list(layout.INTENTS)) == 1

    disk.open().save(STATES[2])

    assert disk.backend.list(layout.INTENTS) == {}


@pytest.mark.parametrize("at", [1, 2, 3])  # lease and data files: before the commit
def test_a_save_that_fails_before_its_commit_leaves_nothing(at: int) -> None:
    disk = Disk()
    saved(1)(disk)
    before = {name: disk.backend.list(name) for name in ("data", "intents", "manifests")}
    faulty = FaultyBackend(disk.backend, at=at, error=OSError(errno.ENOSPC, "injected"))

    with pytest.raises(BackendError) as caught:
        ckptfmt.open(faulty, threads=1).save(STATES[2])

    assert caught.value.errno == errno.ENOSPC
    assert {name: disk.backend.list(name) for name in before} == before


@pytest.mark.parametrize("lost", ["reply", "request"])
def test_the_writer_learns_of_every_outcome(lost: str) -> None:
    """What was committed is a success, and what was not never looks like one."""
    disk = Disk()
    saved(1)(disk)
    commit = 4  # the change that creates the manifest
    error = OSError(errno.EIO, "injected")
    faulty = FaultyBackend(disk.backend, at=commit, after=lost == "reply", error=error)
    store = ckptfmt.open(faulty, threads=1)

    if lost == "reply":
        assert store.save(STATES[2]).number == 2
    else:
        with pytest.raises(BackendError, match="outcome of the commit is unknown"):
            store.save(STATES[2])

    assert (2 in disk.open()) == (lost == "reply")


def check_what_is_left(
    disk: Disk, operation: Operation, certain: Mapping[int, State] = NOTHING
) -> None:
    """Assert everything this file promises, on a disk that a fault has just hit.

    Args:
        certain: Checkpoints that were committed after the fault.
    """
    store = disk.open()
    visible = {row.number: row.status for row in store.entries()}
    loadable = {number for number, status in visible.items() if status == "ok"}
    may_be = operation.stays | operation.goes | {operation.makes}

    assert operation.stays | certain.keys() <= loadable <= may_be | certain.keys()
    for number in loadable:
        check_state(store[number], {**STATES, **certain}[number], operation)
    if loadable:
        assert store.latest().number == max(loadable)
    assert visible.get(operation.makes, "ok") in {"ok", "tombstone"}, "half visible"

    again = store.save(NEXT)
    assert again.number > max(visible, default=0)
    assert_same(disk.open().latest().load(), NEXT)
    if operation.makes is not None and not operation.goes | operation.slims:
        check_no_save_left_anything(disk)  # without a `collect`
    check_tidy(disk, operation, [n for n, s in visible.items() if s == "damaged"])
    for number in operation.stays:
        check_state(disk.open()[number], STATES[number], operation)


def check_state(found: ckptfmt.Checkpoint, whole: State, operation: Operation) -> None:
    """Assert that a checkpoint has its state, as a whole or slimmed, and says which."""
    assert set(found.dropped) <= ({"optimizer"} if found.number in operation.slims else set())
    assert_same(found.load(), {k: v for k, v in whole.items() if k not in found.dropped})


def check_no_save_left_anything(disk: Disk) -> None:
    """Assert that every data file is used, and that no save is said to be in flight."""
    used = {file.key for found in disk.open() for file in found.manifest.tables.files}
    assert set(disk.backend.list(layout.DATA)) == used
    leases = [Intent.decode(disk.backend.read(key)) for key in disk.backend.list("intents")]
    assert {lease.kind for lease in leases} <= {"retention"}


def check_tidy(disk: Disk, operation: Operation, forget: list[int]) -> None:
    """Assert that a `collect` leaves no file without a purpose."""
    if operation.slims:  # again: a lease of a dead revision covers its files until then
        store = disk.open()
        store.slim(operation.slims.intersection(c.number for c in store), drop="optimizer")
    report = disk.open().collect(forget=forget)

    assert report.blocked == ()
    check_no_save_left_anything(disk)
    disk.now += 2 * FENCE_SECONDS  # what only time can settle
    disk.open().collect(break_lease=True)
    assert disk.backend.list(layout.INTENTS) == {}
    assert {row.status for row in disk.open().entries()} == {"ok"}
