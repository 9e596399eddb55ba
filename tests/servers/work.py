"""What processes do with a store in these tests, and what must be true of it afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

import ckptfmt
from ckptfmt.backends import Uploads, open_backend
from ckptfmt.errors import ConflictError
from ckptfmt.format import layout
from ckptfmt.format.records import Intent
from ckptfmt.testing.faulty import Crash, FaultyBackend
from ckptfmt.testing.strategies import assert_same

State = dict[str, Any]
NEXT: Final = 9  # the state that is saved after a fault


@dataclass(frozen=True, kw_only=True)
class Address:
    """How a process finds a store."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, **how: Any) -> ckptfmt.Store:
        """Open the store with a client of its own."""
        return ckptfmt.open(self.url, storage_options=self.options or None, threads=2, **how)


def state(number: int) -> State:
    """Return a state: one section that is the same for all numbers, one that is not.

    Both are large enough for data files of their own.
    """
    same, own = np.random.default_rng(0), np.random.default_rng(number)
    return {
        "model": {"w": same.standard_normal((300, 500)), "b": same.standard_normal(7)},
        "optimizer": {"m": own.standard_normal((300, 500))},
        "step": number,
    }


def large(number: int) -> State:
    """Return a state whose data file goes up in parts."""
    own = np.random.default_rng(number)
    return {"model": {"w": own.standard_normal((5, 2**20))}, "step": number}


def save(store: ckptfmt.Store, number: int, of: Callable[[int], State] = state) -> None:
    """Save the state of a number, which is the one it must get."""
    found = store.save(of(number), counters={"seen": number}).number
    assert found == number, (found, number)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What a fault hits: which checkpoints it may make or delete."""

    before: tuple[int, ...]  # saved before
    act: Callable[[ckptfmt.Store], object]
    stays: frozenset[int]  # loadable before, during and after
    goes: frozenset[int] = frozenset()  # loadable before, deleted by it
    makes: int | None = None
    litter: bool = False  # a save that died left its data files
    of: Callable[[int], State] = state  # what the saves of a number hold
    keep: Any = None

    def prepare(self, address: Address) -> None:
        """Save what has to be there."""
        store = address.open()
        for number in self.before:
            save(store, number, self.of)
        if self.litter:
            backend = open_backend(address.url, storage_options=address.options)
            with contextlib.suppress(Crash):
                ckptfmt.open(FaultyBackend(backend, at=3), threads=1).save(state(NEXT))

    def run(self, address: Address) -> None:
        """Do it, in a process or thread that a fault will hit."""
        self.act(address.open(keep=self.keep))


OPERATIONS: Final = {
    "first-save": Operation(
        before=(), act=lambda store: save(store, 1), stays=frozenset(), makes=1
    ),
    "save": Operation(
        before=(1,), act=lambda store: save(store, 2), stays=frozenset({1}), makes=2
    ),
    "save-with-retention": Operation(
        before=(1, 2),
        act=lambda store: save(store, 3),
        stays=frozenset(),
        goes=frozenset({1, 2}),
        makes=3,
        keep=ckptfmt.keep(last=1),
    ),
    "save-in-parts": Operation(
        before=(1,),
        act=lambda store: save(store, 2, large),
        stays=frozenset({1}),
        makes=2,
        of=large,
    ),
    "delete": Operation(
        before=(1, 2, 3),
        act=lambda store: store.delete([1, 2]),
        stays=frozenset({3}),
        goes=frozenset({1, 2}),
    ),
    "collect": Operation(
        before=(1,),
        act=lambda store: store.collect(break_lease=True),
        stays=frozenset({1}),
        litter=True,
    ),
}


def run(address: Address, name: str) -> None:
    """Run an operation: the whole life of a process that will be killed."""
    OPERATIONS[name].run(address)


def check(address: Address, operation: Operation, *, done: bool) -> None:
    """Assert what must hold after a fault, through a connection that works.

    Args:
        done: The operation said that it succeeded.
    """
    store = address.open()
    visible = {row.number: row.status for row in store.entries()}
    loadable = {number for number, status in visible.items() if status == "ok"}
    certain = operation.stays | ({operation.makes} if done and operation.makes else set())
    possible = operation.stays | operation.goes | {operation.makes}
    assert certain <= loadable <= possible, (visible, certain, possible)
    if done:
        assert not loadable & operation.goes or operation.makes, "deleted, yet there"
    if operation.before:
        assert loadable, "everything is gone"
    for number in loadable:
        load(store, number, operation.of)
    if loadable:
        assert store.latest().number == max(loadable)
    assert set(visible.values()) <= {"ok", "tombstone"}, "half visible"

    again = store.save(state(NEXT))
    assert again.number > max(visible, default=0)
    assert_same(address.open().latest().load(), state(NEXT))
    check_tidy(address)
    for number in certain:
        load(address.open(), number, operation.of)


def load(store: ckptfmt.Store, number: int, of: Callable[[int], State] = state) -> None:
    """Assert that a checkpoint of `save` comes back bit by bit."""
    assert_same(store[number].load(), of(number))


def check_tidy(address: Address) -> None:
    """Assert that after a `collect` every data file has a purpose, and no save is pending."""
    store = address.open()
    backend = store.backend
    assert collected(store).blocked == ()
    used = {file.key for found in store for file in found.manifest.tables.files}
    assert set(backend.list(layout.DATA)) == used
    if isinstance(backend, Uploads):
        # Ceph lists an upload again whose end it was told twice; that goes with the object.
        left = [upload for upload in backend.uploads(layout.DATA) if upload.key not in used]
        assert left == []
    leases = [Intent.decode(backend.read(key)) for key in backend.list(layout.INTENTS)]
    assert {lease.kind for lease in leases} <= {"retention"}


def collected(store: ckptfmt.Store) -> ckptfmt.Collected:
    """Collect; end what leases cannot be broken and the report names, as people would."""
    report = store.collect(break_lease=True)
    backend = store.backend
    if backend.capabilities.create_if_absent:
        return report
    for key in backend.list(layout.INTENTS):
        if any(f"delete {key} " in reason for reason in report.blocked):
            backend.delete(key)
    return store.collect()


def contend(address: Address, seed: int, wins: int, results: Any) -> None:
    """Save until `wins` saves were acknowledged; tell which numbers, and how many were lost."""
    mine, lost = [], 0
    while len(mine) < wins:
        store = address.open()
        own = seed * 1000 + len(mine)
        try:
            saved = store.save(state(own), counters={"seen": own}, parent=None)
        except ConflictError:
            lost += 1
            continue
        mine.append((saved.number, own))
    results.put((seed, mine, lost))
