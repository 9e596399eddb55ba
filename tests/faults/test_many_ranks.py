"""Many ranks save one checkpoint together: all of it or nothing, whatever happens to whom.

Ranks are threads over one backend in memory where a fault is injected, and processes over a
folder where they are killed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine.leases import Leases
from ckptfmt._engine.stage import Arena
from ckptfmt.backends import Entry, MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import (
    BackendError,
    CancelledError,
    CheckpointError,
    ConflictError,
    IntegrityError,
    MismatchError,
    NotFoundError,
    StateError,
)
from ckptfmt.format import layout
from ckptfmt.format.digest import DIGESTS
from ckptfmt.format.parts import Part
from ckptfmt.group import Group, Single, SocketGroup
from ckptfmt.options import Sources
from ckptfmt.testing.faulty import FaultyBackend
from ckptfmt.testing.strategies import assert_same

SOON = 0.4  # seconds: a time-out that is meant to run out
LONG = 20.0  # and one that is not

W = np.arange(240, dtype=np.float32).reshape(24, 10)
OPTIMIZER = {"m": np.arange(7.0), "v": np.arange(70.0)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "capture", lambda *_, **__: {})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def state(rank: int, world: int, seed: int = 0) -> dict[str, Any]:
    """Return one rank's part: rows of `w`, the whole optimizer, something of its own."""
    first, last = 24 * rank // world, 24 * (rank + 1) // world
    part = ckptfmt.Shard(W[first:last] + seed, start=(first, 0), global_shape=W.shape)
    return {
        "model": {"w": part},
        "optimizer": OPTIMIZER,
        "rank_local": {rank: {"key": np.array([rank, seed])}},
        "step": seed,
    }


def whole(world: int, seed: int = 0) -> dict[str, Any]:
    """Return what comes back of `state`."""
    return {
        "model": {"w": W + np.float32(seed)},
        "optimizer": OPTIMIZER,
        "rank_local": {rank: {"key": np.array([rank, seed])} for rank in range(world)},
        "step": seed,
    }


Act = Callable[[ckptfmt.Store, Group], Any]


def saver(seed: int = 0, timeout_seconds: float = LONG, **how: Any) -> Act:
    return lambda store, group: store.save(
        state(group.rank, group.size, seed), group=group, timeout_seconds=timeout_seconds, **how
    )


def together(
    backends: list[Any], act: Act | list[Act], **how: Any
) -> list[ckptfmt.Checkpoint | CheckpointError]:
    """Run `act` on as many ranks as there are backends; return what it gave or raised."""
    port, world = free_port(), len(backends)
    acts = act if isinstance(act, list) else [act] * world

    def one(rank: int) -> Any:
        with SocketGroup(rank, world, port=port) as group:
            store = ckptfmt.open(backends[rank], threads=1, **how)
            try:
                return acts[rank](store, group)
            except CheckpointError as error:
                return error
            finally:
                with contextlib.suppress(CheckpointError):
                    store.close()

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


def committed(found: list[Any], number: int) -> ckptfmt.Checkpoint:
    """Check that all ranks have the same checkpoint."""
    assert [type(one) for one in found] == [ckptfmt.Checkpoint] * len(found), found
    assert len({one.identity for one in found}) == 1
    assert found[0].number == number
    first: ckptfmt.Checkpoint = found[0]
    return first


def leftovers(backend: MemoryBackend) -> list[str]:
    """Return what no checkpoint needs."""
    used = {file.key for one in ckptfmt.open(backend) for file in one.manifest.tables.files}
    return [*(backend.list(layout.DATA).keys() - used), *backend.list(layout.INTENTS)]


# ---- what goes well


@pytest.mark.parametrize("world", [1, 2, 4])
def test_what_the_ranks_save_is_one_checkpoint(world: int) -> None:
    backend = MemoryBackend()

    found = together([backend] * world, saver(3, metrics={"loss": 0.5}, counters={"seen": 9}))

    saved = committed(found, 1)
    assert_same(saved.load(), whole(world, 3))
    assert saved.verify().ok
    assert (saved.metrics, saved.counters) == ({"loss": 0.5}, {"seen": 9})
    assert leftovers(backend) == []


def test_one_process_can_take_the_same_way() -> None:
    store = ckptfmt.open(MemoryBackend())

    saved = store.save(state(0, 1), group=Single())

    assert_same(saved.load(), whole(1))


@pytest.mark.parametrize("how", ["load", "parent", "forgotten"])
def test_rank_0_alone_tells_of_a_forgotten_load(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = MemoryBackend()
    together([backend] * 2, saver(1))

    def act(store: ckptfmt.Store, group: Group) -> Any:
        more = {}
        if group.rank == 0 and how == "load":
            store.latest().load()
        elif group.rank == 0 and how == "parent":
            more["parent"] = store.latest()
        return saver(2, **more)(store, group)

    saved = committed(together([backend] * 2, act), 2)

    told = [text for text in caplog.messages if "new lineage" in text]
    assert (saved.parent is None, len(told)) == (
        (True, 1) if how == "forgotten" else (False, 0)
    )


def test_a_save_in_the_background() -> None:
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        mine = state(group.rank, group.size, 1)
        pending = store.save_async(mine, group=group, timeout_seconds=LONG)
        mine["model"]["w"].array[:] = -1  # the copy is private
        first = pending.wait(LONG)
        second = store.save_async(
            state(group.rank, group.size, 2), group=group, timeout_seconds=LONG
        ).wait(LONG)
        return first, second

    firsts, seconds = zip(*together([backend] * 3, act), strict=True)  # type: ignore[arg-type]

    assert_same(committed(list(firsts), 1).load(), whole(3, 1))
    assert_same(committed(list(seconds), 2).load(), whole(3, 2))
    assert leftovers(backend) == []


def test_replicated_bytes_are_written_once_and_shared_out() -> None:
    backend = MemoryBackend()
    big = {f"p{n}": np.full(1000, n, np.float32) for n in range(8)}

    found = together(
        [backend] * 4,
        lambda store, group: store.save({"model": big}, group=group, timeout_seconds=LONG),
    )

    saved = committed(found, 1)
    assert_same(saved.load(), {"model": big})
    tables = saved.manifest.tables
    stored = [int(tables.nbytes[tables.file == n].sum()) for n in range(len(tables.files))]
    assert stored == [8000] * 4


def test_unchanged_chunks_are_reused_with_any_number_of_ranks() -> None:
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        replicated = {"model": {f"p{n}": np.full(1000, n, np.float32) for n in range(8)}}
        return store.save(replicated, group=group, timeout_seconds=LONG)

    for number, world in enumerate((4, 2, 1, 2), start=1):
        saved = committed(together([backend] * world, act), number)
        assert (saved.new_bytes > 0) == (number == 1), world
        assert saved.reused_bytes == (0 if number == 1 else 32_000)


def test_unchanged_boxes_of_shards_are_reused() -> None:
    backend = MemoryBackend()
    committed(together([backend] * 4, saver(1)), 1)

    saved = committed(together([backend] * 4, saver(1)), 2)

    assert saved.new_bytes == 0
    assert_same(saved.load(), whole(4, 1))


def test_a_tied_array_stays_one_whatever_order_the_ranks_have() -> None:
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        n = group.rank
        part = ckptfmt.Shard(W[12 * n : 12 * n + 12], start=(12 * n, 0), global_shape=W.shape)
        names = ["head", "embed"] if group.rank else ["embed", "head"]
        return store.save(
            {"model": dict.fromkeys(names, part)}, group=group, timeout_seconds=LONG
        )

    saved = committed(together([backend] * 2, act), 1)

    tree = saved.load()
    assert list(tree["model"]) == ["embed", "head"]
    assert tree["model"]["embed"] is tree["model"]["head"]
    assert saved.nbytes == W.nbytes
    np.testing.assert_array_equal(tree["model"]["head"], W)


def test_ranks_may_have_different_arrays_and_empty_parts() -> None:
    """Stages of a pipeline; a rank that an uneven division leaves nothing of."""
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        size = (2, 1, 0)[group.rank]
        start = (0, 2, 3)[group.rank]
        part = ckptfmt.Shard(np.arange(start, start + size), start=(start,), global_shape=(3,))
        layers = {f"layer{group.rank}": {"w": np.full(3, group.rank)}}
        return store.save(
            {"model": {"uneven": part, **layers, "none": np.zeros(0)}}, group=group
        )

    saved = committed(together([backend] * 3, act), 1)

    expected = {"uneven": np.arange(3), "layer0": {"w": np.full(3, 0)}, "none": np.zeros(0)}
    expected |= {f"layer{n}": {"w": np.full(3, n)} for n in (1, 2)}
    assert_same(saved.load(), {"model": expected})


# ---- ranks that disagree


DISAGREEMENTS: dict[str, tuple[Any, Any, type[CheckpointError], str]] = {
    "shape": (np.zeros(3), np.zeros(4), MismatchError, "disagree about an array"),
    "dtype": (np.zeros(3), np.zeros(3, np.float32), MismatchError, "disagree about an array"),
    "value": (1, 2, MismatchError, "disagree about the values"),
    "type of a value": (1, 1.0, MismatchError, "disagree about the values"),
    "kind": ({"a": 1}, [1], MismatchError, "disagree about what is"),
    "array and value": (np.zeros(()), 0.0, MismatchError, "disagree about what is"),
    "length": ([1, 2], [1], MismatchError, "disagree about what is"),
    "text of keys": ({1: 0}, {"1": 0}, MismatchError, "disagree about the keys"),
    "hole": (
        ckptfmt.Shard(np.zeros(2), start=(0,), global_shape=(6,)),
        ckptfmt.Shard(np.zeros(2), start=(3,), global_shape=(6,)),
        MismatchError,
        "do not cover the array exactly once",
    ),
    "overlap": (
        ckptfmt.Shard(np.zeros(2), start=(0,), global_shape=(3,)),
        ckptfmt.Shard(np.zeros(2), start=(1,), global_shape=(3,)),
        MismatchError,
        "do not cover the array exactly once",
    ),
    "whole and part": (
        np.zeros(3),
        ckptfmt.Shard(np.zeros(2), start=(1,), global_shape=(3,)),
        MismatchError,
        "do not cover the array exactly once",
    ),
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_a_disagreement_is_an_error_on_every_rank(what: str) -> None:
    backend = MemoryBackend()
    one, other, kind, text = DISAGREEMENTS[what]
    committed(together([backend] * 3, saver()), 1)

    def act(store: ckptfmt.Store, group: Group) -> Any:
        value = other if group.rank == 2 else one
        return store.save({"model": {"same": 1, "x": value}}, group=group, timeout_seconds=LONG)

    found = together([backend] * 3, act)

    for error in found:
        assert isinstance(error, kind)
        assert text in error.message
        assert error.where["path"] in ("model/x", "model/x/1")
        assert list(error.where["ranks"]) in ([0, 2], [0, 1, 2])  # type: ignore[call-overload]
    assert leftovers(backend) == []
    assert len(ckptfmt.open(backend)) == 1


def test_ties_that_differ_are_an_error() -> None:
    def act(store: ckptfmt.Store, group: Group) -> Any:
        a = np.arange(3.0)
        return store.save(
            {"a": a, "b": a.copy() if group.rank else a}, group=group, timeout_seconds=LONG
        )

    for error in together([MemoryBackend()] * 2, act):
        assert isinstance(error, MismatchError)
        assert "which arrays are tied" in error.message


def test_a_rank_keeps_to_its_own_number() -> None:
    def act(store: ckptfmt.Store, group: Group) -> Any:
        return store.save(
            {"rank_local": {0: {"x": group.rank}}}, group=group, timeout_seconds=LONG
        )

    for error in together([MemoryBackend()] * 2, act):
        assert isinstance(error, StateError)
        assert "below its own number" in error.message
        assert error.where["rank"] == 1


def test_what_one_rank_cannot_store_stops_all() -> None:
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        return store.save(
            {"x": object() if group.rank == 1 else 1}, group=group, timeout_seconds=LONG
        )

    found = together([backend] * 3, act)

    assert [type(error) for error in found] == [StateError] * 3
    assert "rank 1 cannot take part" in str(found[0])
    assert "rank 1 cannot take part" in str(found[2])
    assert str(found[1]).startswith("object cannot be stored")
    assert leftovers(backend) == []


class Odd(collections.UserDict[str, float]):
    """Metrics of somebody whose code is broken."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("sensor is gone")


def noting(act: Act) -> Act:
    """Return `act`, which gives back what it raises, whatever that is."""

    def noted(store: ckptfmt.Store, group: Group) -> Any:
        try:
            return act(store, group)
        except (RuntimeError, MemoryError) as error:
            return error

    return noted


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_the_callers_own_reaches_all_at_once(rank: int) -> None:
    backend, began = MemoryBackend(), time.monotonic()
    acts = [noting(saver(metrics=Odd({"a": 1.0}) if n == rank else {})) for n in range(3)]

    found = together([backend] * 3, acts)

    assert time.monotonic() - began < LONG / 2
    assert isinstance(found[rank], RuntimeError)
    for error in [*found[:rank], *found[rank + 1 :]]:
        assert isinstance(error, BackendError)
        assert f"rank {rank} cannot take part: RuntimeError: sensor is gone" in str(error)
    assert leftovers(backend) == []


class Broken:
    """A backend whose author forgot something."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: Any, *, durable: bool = True) -> None:
        if key.startswith("intents/"):
            raise RuntimeError("not written yet")
        self._inner.create(key, data, durable=durable)


def test_an_error_of_rank_0_while_it_plans_reaches_all_at_once() -> None:
    backend, began = MemoryBackend(), time.monotonic()

    found = together([Broken(backend), backend, backend], noting(saver()))

    assert time.monotonic() - began < LONG / 2
    assert [type(error) for error in found] == [RuntimeError, BackendError, BackendError]
    assert "RuntimeError: not written yet" in str(found[1])
    assert leftovers(backend) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_for_its_copy_stops_all_at_once(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, began = MemoryBackend(), time.monotonic()
    copy = Arena.copy

    def scarce(arena: Arena, leaves: Any, threads: Any) -> Any:
        if any(leaf.path.startswith(f"rank_local/{rank}") for leaf in leaves):
            raise MemoryError("no room for the private copy")
        return copy(arena, leaves, threads)

    def act(store: ckptfmt.Store, group: Group) -> Any:
        own = state(group.rank, group.size)
        return store.save_async(own, group=group, timeout_seconds=LONG).wait(LONG)

    monkeypatch.setattr(Arena, "copy", scarce)
    found = together([backend] * 3, noting(act))

    assert time.monotonic() - began < LONG / 2
    assert isinstance(found[rank], MemoryError)
    rest = [*found[:rank], *found[rank + 1 :]]
    assert [type(error) for error in rest] == [BackendError] * 2
    assert rank == 0 or "no room for the private copy" in str(found[0])
    assert len(ckptfmt.open(backend)) == 0
    assert leftovers(backend) == []


def test_a_second_writer_is_an_error_on_every_rank() -> None:
    backend = MemoryBackend()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        saver()(store, group)
        if group.rank == 0:
            ckptfmt.open(backend).save({"other": 1})
        return saver()(store, group)

    for error in together([backend] * 2, act):
        assert isinstance(error, ConflictError)
        assert "another writer committed to this store" in error.message
    assert leftovers(backend) == []


# ---- ranks that fail, are late or missing


def test_a_missing_rank_costs_the_others_the_time_out() -> None:
    backend = MemoryBackend()
    began = time.monotonic()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        if group.rank == 2:
            time.sleep(3 * SOON)
            return None
        return saver(timeout_seconds=SOON)(store, group)

    found = together([backend] * 3, act)

    assert isinstance(found[0], BackendError)
    assert "rank 2 did not answer in time" in found[0].message
    assert isinstance(found[1], BackendError)
    assert time.monotonic() - began < 10
    assert leftovers(backend) == []


class Stuck:
    """A backend whose writes of data files wait for `go`; everything else passes on."""

    def __init__(self, inner: MemoryBackend, go: threading.Event) -> None:
        self._inner = inner
        self._go = go

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, *args: Any, **how: Any) -> None:
        self._go.wait(LONG)
        self._inner.write(*args, **how)


def test_a_late_rank_finds_its_save_given_up() -> None:
    """Rank 0 waits no longer than it says; what the late rank then writes does not stay."""
    backend, go = MemoryBackend(), threading.Event()
    committed(together([backend] * 3, saver(1)), 1)

    def act(store: ckptfmt.Store, group: Group) -> Any:
        try:
            return saver(2, timeout_seconds=SOON)(store, group)
        finally:
            if group.rank == 0:
                go.set()

    found = together([backend, backend, Stuck(backend, go)], act)

    assert isinstance(found[0], BackendError)
    assert "not handed in their part in time" in found[0].message
    assert found[0].where["ranks"] == [2]
    for error in found[1:]:
        assert isinstance(error, BackendError)
        assert "no commit of it" in error.message or "outcome is unknown" in error.message
    assert len(ckptfmt.open(backend)) == 1
    committed(together([backend] * 3, saver(3)), 2)
    assert leftovers(backend) == []


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_whose_storage_fails_stops_all_at_once(rank: int) -> None:
    """At every change it makes: an error on all ranks, or the checkpoint on all ranks."""
    at = 0
    while True:
        at += 1
        backend = MemoryBackend()
        committed(together([backend] * 3, saver(1)), 1)
        broken = FaultyBackend(backend, at=at, error=OSError("no"))
        backends: list[Any] = [broken if n == rank else backend for n in range(3)]

        # An unknown outcome of the commit is known to rank 0 only: the others wait.
        found = together(backends, saver(2, timeout_seconds=SOON))

        if broken.mutations < at:
            break
        last = ckptfmt.open(backend).latest()
        if last.number == 2:
            assert_same(last.load(), whole(3, 2))
        else:
            assert all(isinstance(error, CheckpointError) for error in found), found
            assert_same(last.load(), whole(3, 1))
        committed(together([backend] * 3, saver(3)), last.number + 1)
        assert leftovers(backend) == []
    assert at >= 3


class Forger:
    """A backend that changes the part of a rank on its way."""

    def __init__(self, inner: MemoryBackend, change: Callable[[Part], Part]) -> None:
        self._inner = inner
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: Any, *, durable: bool = True) -> None:
        if key.startswith("intents/"):
            data = self._change(Part.decode(data)).encode()
        self._inner.create(key, data, durable=durable)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        return self._inner.read(key, offset, nbytes)


def _moved(part: Part) -> Part:
    """Say that a chunk is another box of the same size."""
    (array, (chunk, *more)), *rest = part.arrays
    other = chunk._replace(start=tuple(0 for _ in chunk.start))
    return dataclasses.replace(part, arrays=[(array, [other, *more]), *rest])


FORGERIES: dict[str, tuple[Callable[[Part], Part], str]] = {
    "a row is missing": (
        lambda part: dataclasses.replace(part, arrays=part.arrays[1:]),
        "something else than was planned",
    ),
    "another box": (_moved, "something else than was planned"),
    "another save": (
        lambda part: dataclasses.replace(part, save="0" * 24),
        "lies under another name",
    ),
    "another rank": (lambda part: dataclasses.replace(part, rank=0), "lies under another name"),
    "another world": (
        lambda part: dataclasses.replace(part, world=9),
        "lies under another name",
    ),
    "another algorithm": (
        lambda part: dataclasses.replace(
            part,
            digest=DIGESTS["sha256"],
            arrays=[
                (array, [c._replace(digest=c.digest * 2, raw_digest=c.digest * 2) for c in own])
                for array, own in part.arrays
            ],
            files=[f._replace(header_digest=f.header_digest * 2) for f in part.files],
        ),
        "something else than was planned",
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_part_that_differs_from_the_plan_is_not_committed(what: str) -> None:
    backend = MemoryBackend()
    change, text = FORGERIES[what]

    found = together([backend, Forger(backend, change)], saver(1))

    assert isinstance(found[0], IntegrityError)
    assert text in found[0].message
    assert isinstance(found[1], BackendError)
    assert len(ckptfmt.open(backend)) == 0
    assert leftovers(backend) == []


class Blind:
    """A machine that sees deletions in a shared folder long before it sees new files."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        if key.startswith("manifests/"):
            raise NotFoundError("not seen yet", key=key)
        return self._inner.read(key, offset, nbytes)

    def list(self, prefix: str) -> dict[str, Entry]:
        return {} if prefix in ("manifests", "intents") else self._inner.list(prefix)


def test_a_rank_that_does_not_see_the_commit_takes_nothing_from_it() -> None:
    backend = MemoryBackend()

    found = together([backend, backend, Blind(backend)], saver(2))

    assert isinstance(found[2], BackendError)
    assert "no commit of it is to be seen" in found[2].message
    assert committed(found[:2], 1).verify().ok
    assert_same(ckptfmt.open(backend).latest().load(), whole(3, 2))


def test_a_cancelled_rank_stops_all() -> None:
    backend, go = MemoryBackend(), threading.Event()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        pending = store.save_async(
            state(group.rank, group.size), group=group, timeout_seconds=LONG
        )
        if group.rank == 1:
            stop = threading.Timer(0.05, go.set)
            stop.start()
            assert pending.cancel()
            return CancelledError("yes")
        return pending.wait(LONG)

    found = together([backend, Stuck(backend, go)], act)

    assert isinstance(found[1], CancelledError)
    assert isinstance(found[0], BackendError)
    assert "rank 1 failed" in found[0].message
    assert "cancelled" in found[0].message
    assert leftovers(backend) == []


def test_a_broken_lease_stops_all() -> None:
    backend, go = MemoryBackend(), threading.Event()

    def act(store: ckptfmt.Store, group: Group) -> Any:
        pending = store.save_async(
            state(group.rank, group.size), group=group, timeout_seconds=LONG
        )
        if group.rank == 0:
            ckptfmt.open(backend).collect(break_lease=True)
            go.set()
        return pending.wait(LONG)

    found = together([backend, Stuck(backend, go)], act)

    assert [type(error) for error in found] in ([ConflictError, ConflictError],
                                                [ConflictError, BackendError])  # fmt: skip
    assert len(ckptfmt.open(backend)) == 0
    committed(together([backend] * 2, saver()), 2)
    assert leftovers(backend) == []


# ---- what is left


class Deaf:
    """The rank 0 of a group in which nobody hears what it says."""

    rank = 0
    size = 1

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes]:
        return [value]

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        raise BackendError("rank 1 did not take a message in time")

    def barrier(self, timeout_seconds: float | None = None) -> None: ...


def test_no_lease_stays_when_the_plan_does_not_reach_the_ranks() -> None:
    backend = MemoryBackend()

    with pytest.raises(BackendError, match="did not take a message"):
        ckptfmt.open(backend).save(state(0, 1), group=Deaf())

    assert leftovers(backend) == []


class Paged:
    """A backend that once lists intents as if a lease had been created between two pages."""

    def __init__(self, inner: MemoryBackend, lease: str) -> None:
        self._inner = inner
        self._lease = lease

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list(self, prefix: str) -> dict[str, Entry]:
        found = self._inner.list(prefix)
        if prefix == layout.INTENTS and self._lease:
            found.pop(self._lease, None)
            self._lease = ""
        return found


OWNER = "0" * 24


@pytest.mark.parametrize("by", ["save", "delete", "collect"])
def test_a_part_without_its_lease_is_removed(by: str) -> None:
    backend = MemoryBackend()
    store = ckptfmt.open(backend, keep=ckptfmt.keep(last=9))
    store.save({"x": 1})
    store.save({"x": 2})
    backend.create(layout.intent_key(OWNER, 3), b"late")

    {"save": lambda: store.save({"x": 3}), "delete": lambda: store.delete(1),
     "collect": store.collect}[by]()  # fmt: skip

    assert list(backend.list(layout.INTENTS)) == []


def test_a_part_stays_as_long_as_its_lease() -> None:
    """Even if a listing that takes several requests has missed the lease."""
    backend = MemoryBackend()
    lease, part = layout.intent_key(OWNER), layout.intent_key(OWNER, 1)
    backend.create(part, b"part")
    backend.create(lease, b"lease")
    paged = Paged(backend, lease)

    Leases(backend=paged, sources=Sources()).remove([])  # type: ignore[arg-type]

    assert set(backend.list(layout.INTENTS)) == {lease, part}


# ---- processes that are killed

WORKER = """
import sys
import numpy as np, ckptfmt
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import CheckpointError
from ckptfmt.group import SocketGroup
sys.path.insert(0, sys.argv[1])
from test_many_ranks import state
Recorder.capture = lambda *_, **__: {}
url, rank, world, port, saves = sys.argv[2], *map(int, sys.argv[3:])
with SocketGroup(rank, world, port=port) as group, ckptfmt.open(url, threads=1) as store:
    print("ready", flush=True)
    for seed in range(1, saves + 1):
        mine = state(rank, world, seed)
        mine["model"]["big"] = np.full((world * 50_000,), seed, np.float64)
        try:
            saved = store.save(mine, group=group, timeout_seconds=5.0)
        except CheckpointError as error:
            print("error", type(error).__name__, error, flush=True)
            sys.exit(3)
        print("saved", saved.number, flush=True)
"""


@contextlib.contextmanager
def processes(url: pathlib.Path, world: int, saves: int) -> Iterator[list[Any]]:
    port = str(free_port())
    here = str(pathlib.Path(__file__).parent)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, here, url, str(rank), str(world), port, str(saves)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        yield ranks
    finally:
        for one in ranks:
            one.kill()
            one.communicate()


@pytest.mark.parametrize(("world", "victim"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_a_killed_rank_means_no_commit_and_an_error_for_all(
    tmp_path: pathlib.Path, seed: int, world: int, victim: int
) -> None:
    rng = random.Random(f"{seed} {world} {victim}")
    with processes(tmp_path, world, saves=1000) as ranks:
        for one in ranks:
            assert one.stdout.readline() == "ready\n"
        for _ in range(rng.randrange(1, 4)):
            assert ranks[victim].stdout.readline().startswith("saved")
        time.sleep(rng.random() * 0.1)
        ranks[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        said = [one.communicate(timeout=60)[0] for n, one in enumerate(ranks) if n != victim]
        waited = time.monotonic() - began

    assert waited < 30
    for text in said:
        assert text.splitlines()[-1].startswith("error BackendError"), text
    store = ckptfmt.open(tmp_path)
    last = store.latest()
    assert last.verify().ok
    assert_same(last.load(select="model/w")["model"]["w"], W + np.float32(last.number))

    store.save({"next": 1})

    # The next save has removed whatever the dead left, without a collection.
    assert list((tmp_path / "intents").iterdir()) == []
    used = {file.key for one in store for file in one.manifest.tables.files}
    assert {f"data/{path.name}" for path in (tmp_path / "data").iterdir()} == used


def test_processes_save_and_resume_with_another_number(tmp_path: pathlib.Path) -> None:
    for number, world in ((1, 4), (2, 2)):
        with processes(tmp_path, world, saves=1) as ranks:
            said = [one.communicate(timeout=30)[0] for one in ranks]
        assert said == [f"ready\nsaved {number}\n"] * world
    assert ckptfmt.open(tmp_path).latest().verify().ok
