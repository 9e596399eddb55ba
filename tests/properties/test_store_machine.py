"""A store against a dict: any sequence of what people, crashes and bad disks do to it.

The model is what a user may believe: which checkpoints there are, what each holds, what is
written on it. Everything else (data files, leases, tombstones, revisions of a listing) must
follow from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import ckptfmt
from ckptfmt._engine import plan
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import BackendError, ConflictError, FormatError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.records import Intent
from ckptfmt.options import FENCE_SECONDS
from ckptfmt.testing.faulty import Crash, FaultyBackend
from ckptfmt.testing.strategies import assert_same
from ckptfmt.training import retention, selection

State = dict[str, Any]


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("ckptfmt").addHandler(logging.NullHandler())
    monkeypatch.setattr(plan, "MISC_NBYTES", 50)
    monkeypatch.setattr(plan, "MIN_CHUNK_NBYTES", 64)
    monkeypatch.setattr(plan, "REUSE_LIMIT", 4)
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {})


def state(seed: int) -> State:
    """Return one of a few states that share some of their arrays, in part."""
    weights = np.arange(40.0)
    weights[: seed % 3] += seed  # other bytes in the first chunk only
    tied = np.full(9, seed % 2, np.float32)
    return {
        "model": {"w": weights.reshape(5, 8), "b": tied, "head": tied},
        "optimizer": [np.full((3, 4), float(seed)), np.arange(12, dtype=np.int16)],
        "step": seed,
    }


@dataclasses.dataclass
class Row:
    """What the user knows of one checkpoint."""

    seed: int
    metrics: dict[str, float | None]
    parent: int | None
    dropped: tuple[str, ...] = ()
    tags: set[str] = dataclasses.field(default_factory=set)
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def state(self) -> State:
        return {name: v for name, v in state(self.seed).items() if name not in self.dropped}


DROPPED = ("optimizer",)
TAGS = st.sampled_from([[], [], ["a"], ["pinned"]])
METRICS = st.sampled_from([0.5, 0.25, 1.0, float("nan"), float("inf"), None])
CODECS = ["raw", "zstd", "planes+zstd"]
KEEPS = {
    "all": None,
    "last": ckptfmt.keep(last=2),
    "best": ckptfmt.keep(last=1, best=("loss", "min", 1)),
    "every": ckptfmt.keep(every_examples=3),
    "slim": ckptfmt.keep(last=2, every_examples=1, slim="optimizer"),
}


class StoreMachine(RuleBasedStateMachine):
    """One store, one process after the other."""

    @initialize(
        keep=st.sampled_from(sorted(KEEPS)),
        codec=st.sampled_from(["raw", "zstd", "planes+zstd"]),
    )
    def begin(self, keep: str, codec: str) -> None:
        self.now = 1_000_000.0
        self.disk = MemoryBackend(clock=lambda: self.now)
        self.keep, self.codec = KEEPS[keep], codec
        self.model: dict[int, Row] = {}
        self.damaged: set[int] = set()
        self.parents: dict[int, int | None] = {}  # of every number ever committed
        self.metrics: dict[int, dict[str, float | None]] = {}  # the same
        self.top = 0
        self.open()

    def open(self) -> None:
        self.store = self.opened(self.disk)
        self.parent: int | None = None

    def opened(self, backend: Any) -> ckptfmt.Store:
        return ckptfmt.open(backend, threads=1, keep=self.keep, codec=self.codec)

    # ---- what the model expects

    def committed(self, seed: int, loss: float | None) -> None:
        self.top += 1
        self.metrics[self.top] = {"loss": loss}
        self.model[self.top] = Row(
            seed=seed, metrics=self.metrics[self.top], parent=self.parent
        )
        self.parents[self.top] = self.parent
        self.parent = self.top

    def retained(self) -> set[int]:
        """Return the numbers that stay when the rules are applied now."""
        if self.keep is None or self.damaged:
            return set(self.model)
        pinned = {number for number, row in self.model.items() if "pinned" in row.tags}
        return retention.survivors(self.points(), self.keep, pinned) | self.tips()

    def lighter(self) -> set[int]:
        """Return the numbers that lose sections when the rules are applied now."""
        if self.keep is None or self.damaged:
            return set()
        pinned = {number for number, row in self.model.items() if "pinned" in row.tags}
        return retention.lighter(self.points(), self.keep, pinned) - self.tips()

    def tips(self) -> set[int]:
        """Return the newest number of each lineage."""
        return self.model.keys() - {n for one in self.model for n in self.ancestors(one)}

    def apply_rules(self) -> None:
        """Do to the model what the store's own rules do after a save."""
        light, stay = self.lighter(), self.retained()
        self.model = {n: self.model[n] for n in stay}
        for n in light & stay:
            self.model[n].dropped = DROPPED

    def take_over(self, store: ckptfmt.Store) -> None:
        """Learn how far a process came with its rules before it broke off."""
        there = {c.number: c.dropped for c in store if c.number not in self.damaged}
        light = self.lighter()
        assert self.retained() <= there.keys() <= self.model.keys()
        self.model = {n: self.model[n] for n in there}
        for n, row in self.model.items():
            assert there[n] == row.dropped or (n in light and there[n] == DROPPED)
            row.dropped = there[n]

    def ancestors(self, number: int) -> list[int]:
        """Return all that a checkpoint went through, deleted ones included."""
        found = []
        parent = self.parents[number]
        while parent is not None:
            found.append(parent)
            parent = self.parents[parent]
        return found

    def points(self) -> list[selection.Point]:
        return [
            selection.Point(number=n, id=str(n), seen=n, time=0, metrics=row.metrics)
            for n, row in sorted(self.model.items())
        ]

    def number(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)), "number")

    # ---- what people do

    @rule(seed=st.integers(0, 5), loss=METRICS, background=st.booleans(), tags=TAGS)
    def save(self, seed: int, loss: float | None, background: bool, tags: list[str]) -> None:
        how: Any = {"metrics": {"loss": loss}, "counters": {"seen": self.top + 1}, "tags": tags}
        if background:
            given = state(seed)
            pending = self.store.save_async(given, **how)
            given["model"]["w"][:] = -1
            saved = pending.wait()
        else:
            saved = self.store.save(state(seed), **how)
        self.committed(seed, loss)
        self.model[self.top].tags.update(tags)
        assert saved.number == self.top
        self.apply_rules()

    @rule(seed=st.integers(0, 5), loss=METRICS)
    def save_more(self, seed: int, loss: float | None) -> None:
        self.save(seed, loss, background=False, tags=[])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        number = self.number(data)
        if "pinned" in self.model[number].tags:
            with pytest.raises(UsageError, match="pinned"):
                self.store.delete(number)
            return
        would = self.store.delete(number, dry_run=True)
        did = self.store.delete(number)
        assert would == did
        assert bool(did.blocked) == bool(self.damaged)
        del self.model[number]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def slim(self, data: st.DataObject) -> None:
        number = self.number(data)
        row = self.model[number]
        if "pinned" in row.tags and not row.dropped:
            with pytest.raises(UsageError, match="pinned"):
                self.store.slim(number, drop=DROPPED)
            return
        would = self.store.slim(number, drop=DROPPED, dry_run=True)
        did = self.store.slim(number, drop=DROPPED)
        assert would == did
        assert did.slimmed == (() if row.dropped else (number,))
        assert bool(did.blocked) == bool(self.damaged)
        row.dropped = DROPPED

    @precondition(lambda self: self.model)
    @rule(data=st.data(), tag=st.sampled_from(["pinned", "a"]), on=st.booleans())
    def tag(self, data: st.DataObject, tag: str, on: bool) -> None:
        number = self.number(data)
        if on:
            self.model[number].tags.add(tag)
            if number in self.doomed() | self.to_be_slimmed():  # by a process that died
                with pytest.raises((NotFoundError, ConflictError), match="is being"):
                    self.store.tag(number, tag)
            else:
                self.store.tag(number, tag)
        else:
            self.store.untag(number, tag)
            self.model[number].tags.discard(tag)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), loss=METRICS, note=st.sampled_from(["x", {"a": [1]}, None]))
    def annotate(self, data: st.DataObject, loss: float | None, note: Any) -> None:
        number = self.number(data)
        self.store.annotate(number, {"metrics.loss": loss, "notes": note})
        row = self.model[number]
        row.metrics = self.metrics[number] = {} if loss is None else {"loss": loss}
        row.notes = {} if note is None else {"notes": note}

    @rule(break_lease=st.booleans())
    def collect(self, break_lease: bool) -> None:
        would = self.store.collect(break_lease=break_lease, dry_run=True)
        report = self.store.collect(break_lease=break_lease)
        assert would == report
        assert report.blocked == () or self.damaged or self.save_leases()
        if not report.blocked:
            assert set(self.disk.list(layout.DATA)) == self.used()

    def leases(self) -> list[Intent]:
        return [Intent.decode(self.disk.read(key)) for key in self.disk.list(layout.INTENTS)]

    def save_leases(self) -> bool:
        return any(lease.kind == "save" for lease in self.leases())

    def doomed(self) -> set[int]:
        return {number for lease in self.leases() for number in lease.numbers}

    def to_be_slimmed(self) -> set[int]:
        names = set(self.disk.list(layout.MANIFESTS))
        return {
            lease.number
            for lease in self.leases()
            if lease.revision and layout.manifest_key(lease.number, lease.revision) not in names
        }

    def used(self) -> set[str]:
        return {
            file.key
            for number in self.model
            for file in self.store[number].manifest.tables.files
        }

    @rule(days=st.sampled_from([0.1, 4.0, 8.0]))
    def pause(self, days: float) -> None:
        self.store.close()
        self.now += days / 7 * FENCE_SECONDS
        self.open()

    @precondition(lambda self: self.model)
    @rule(data=st.data(), seed=st.integers(0, 5), anew=st.booleans())
    def resume(self, data: st.DataObject, seed: int, anew: bool) -> None:
        """Go on from any checkpoint, in a new process or the same: a fork of the lineage."""
        if anew:
            self.open()
        number = self.number(data)
        assert_same(self.store[number].load(), self.model[number].state())
        self.parent = number
        self.save(seed, 0.5, background=False, tags=[])

    # ---- what happens to them

    @rule(
        seed=st.integers(0, 5),
        at=st.integers(1, 14),
        how=st.sampled_from(["before", "after", "torn"]),
    )
    def crash_in_a_save(self, seed: int, at: int, how: str) -> None:
        faulty = FaultyBackend(self.disk, at=at, after=how == "after", torn=how == "torn")
        store = self.opened(faulty)
        with contextlib.suppress(Crash):
            store.save(state(seed), metrics={"loss": 0.5}, counters={"seen": self.top + 1})
        self.open()
        if self.store.backend.list(layout.MANIFESTS).get(layout.manifest_key(self.top + 1)):
            self.committed(seed, 0.5)
            self.open()
            self.model[self.top].parent = None
            self.take_over(self.store)

    @rule(at=st.integers(1, 8), after=st.booleans(), data=st.data())
    def crash_elsewhere(self, at: int, after: bool, data: st.DataObject) -> None:
        store = self.opened(FaultyBackend(self.disk, at=at, after=after))
        act = data.draw(st.sampled_from(["collect", "delete", "slim"])) if self.model else ""
        doomed = self.number(data) if act in ("delete", "slim") else 0
        with contextlib.suppress(Crash, UsageError):
            if act == "delete":
                store.delete(doomed)
            elif act == "slim":
                store.slim(doomed, drop=DROPPED)
            else:
                store.collect(break_lease=data.draw(st.booleans()))
        self.open()
        if act == "delete" and doomed not in self.store:
            del self.model[doomed]
        elif act == "slim":
            self.model[doomed].dropped = self.store[doomed].dropped

    def names(self) -> list[int]:
        found = [layout.parse_manifest_key(key) for key in self.disk.list(layout.MANIFESTS)]
        return sorted(name[0] for name in found if name)

    @rule(at=st.integers(1, 12), seed=st.integers(0, 5))
    def fail_in_a_save(self, at: int, seed: int) -> None:
        """Storage refuses one change; the process lives and goes on with the same store."""
        store = self.opened(FaultyBackend(self.disk, at=at, error=OSError(5, "injected")))
        how: Any = {"metrics": {"loss": 1.0}, "counters": {"seen": self.top + 1}}
        parent, self.parent = self.parent, None
        try:
            store.save(state(seed), **how)
        except BackendError:
            self.parent = parent
        else:
            self.committed(seed, 1.0)
            self.take_over(store)
        self.store = self.opened(self.disk)
        self.parent = None

    @precondition(lambda self: any(not row.dropped for row in self.model.values()))
    @rule(data=st.data(), bit=st.integers(0, 10**9))
    def damage(self, data: st.DataObject, bit: int) -> None:
        whole = sorted(n for n, row in self.model.items() if not row.dropped)
        number = whole[-1] if bit % 2 else data.draw(st.sampled_from(whole), "number")
        key = layout.manifest_key(number)
        changed = bytearray(self.disk.read(key))
        changed[(bit // 8) % len(changed)] ^= 1 << bit % 8
        self.disk.replace(key, bytes(changed))
        self.damaged.add(number)
        del self.model[number]
        self.open()

    @precondition(lambda self: self.damaged)
    @rule()
    def forget(self) -> None:
        would = self.store.collect(forget=sorted(self.damaged), dry_run=True)
        report = self.store.collect(forget=sorted(self.damaged))
        assert would == report
        self.damaged.clear()
        assert report.blocked == () or self.save_leases()

    # ---- what must hold

    @invariant()
    def the_model_is_true(self) -> None:
        if not hasattr(self, "model"):
            return
        for name in self.names():
            self.top = max(self.top, name)
        store = self.opened(self.disk)
        numbers = sorted(self.model)
        listed = {row.number: row.status for row in store.entries()}
        assert [n for n, s in listed.items() if s == "ok" and n not in self.damaged] == numbers
        if numbers:
            assert store.latest().number == numbers[-1]
            self.check(store, random.Random(self.top).choice(numbers))
            self.check(store, numbers[-1])
        else:
            with pytest.raises(NotFoundError):
                store.latest()
        for number in self.damaged:
            with pytest.raises(FormatError):
                store[number]
        if not self.damaged:
            self.check_best(store)

    def check(self, store: ckptfmt.Store, number: int) -> None:
        row, found = self.model[number], store[number]
        assert_same(found.load(), row.state())
        assert found.dropped == row.dropped
        assert_same(dict(found.metrics), dict(row.metrics.items()))
        assert set(found.tags) == row.tags
        assert_same(dict(found.notes), row.notes)
        assert (found.parent[0] if found.parent else None) == row.parent
        assert found.counters["seen"] >= 1
        assert found.verify().ok

    def check_best(self, store: ckptfmt.Store) -> None:
        newest = max(self.model, default=0)
        line = {newest, *self.ancestors(newest)} if newest else set()
        own = [point for point in self.points() if point.number in line]
        for lineage, points in ((None, own), ("all", self.points())):
            try:
                expected = selection.best(points, "loss").number
            except NotFoundError:
                with pytest.raises(NotFoundError):
                    store.best("loss", lineage=lineage)
            else:
                assert store.best("loss", lineage=lineage).number == expected
        if newest:
            course = store.history()
            assert [point.number for point in course] == sorted(line)
            assert {point.number for point in course if point.stored} == line & set(self.model)
            for point in course:  # those attached late to what is deleted by now, too
                assert_same(dict(point.metrics), self.metrics[point.number])

    def teardown(self) -> None:
        """Whatever came before: the next save works, and then everything can be tidied up."""
        if not hasattr(self, "model"):
            return
        self.open()
        self.store.collect(forget=sorted(self.damaged))
        self.damaged.clear()
        saved = self.store.save(state(3), counters={"seen": self.top + 1})
        assert saved.number == self.top + 1
        self.now += 2 * FENCE_SECONDS
        report = self.store.collect(break_lease=True)
        assert report.blocked == ()
        assert self.disk.list(layout.INTENTS) == {}
        used = {file.key for found in self.store for file in found.manifest.tables.files}
        assert set(self.disk.list(layout.DATA)) == used
        assert_same(self.store.latest().load(), state(3))
        self.store.close()


TestStoreMachine = StoreMachine.TestCase
SOAK = hypothesis.settings().max_examples > 100
TestStoreMachine.settings = (
    hypothesis.settings(max_examples=400, stateful_step_count=80)
    if SOAK
    else hypothesis.settings(max_examples=60, stateful_step_count=40)
)
