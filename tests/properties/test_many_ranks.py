"""However arrays are cut over ranks, they come back bit by bit, on any number of ranks.

The parts that ranks hand in, the manifests and the data files are also judged by the checker of
the specification's vectors, which shares no code with the library.
"""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import plan
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.errors import MismatchError
from ckptfmt.format import layout
from ckptfmt.group import Group
from ckptfmt.testing.strategies import assert_same

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "vectors"))

import checker

MAX_WORLD = 4
TIMEOUT = 20.0

Box = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(autouse=True, scope="module")
def _small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "MIN_CHUNK_NBYTES", 64)  # so that boxes are cut into chunks
        patch.setattr(Recorder, "capture", lambda *_, **__: {})
        yield


class InMemory:
    """The ranks of one group, as threads of this process."""

    def __init__(self, size: int) -> None:
        self._slots: list[bytes] = [b""] * size
        self._said = b""
        self._barrier = threading.Barrier(size)

    def end(self, rank: int) -> Group:
        return _End(self, rank, len(self._slots))

    def exchange(self, rank: int, value: bytes) -> list[bytes]:
        self._slots[rank] = value
        self._barrier.wait(TIMEOUT)
        found = list(self._slots)
        self._barrier.wait(TIMEOUT)
        return found


class _End:
    def __init__(self, team: InMemory, rank: int, size: int) -> None:
        self._team = team
        self.rank = rank
        self.size = size

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes] | None:
        found = self._team.exchange(self.rank, value)
        return None if self.rank else found

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        return self._team.exchange(self.rank, value)[0]

    def barrier(self, timeout_seconds: float | None = None) -> None:
        self._team.exchange(self.rank, b"")


class Watched:
    """A backend that shows every sealed record of an intent or a rank to the checker."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner = inner
        self.parts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: Any, *, durable: bool = True) -> None:
        if key.startswith("intents/"):
            part = "." in key
            checker.record("part" if part else "intent", key, bytes(data))
            self.parts += part
        self._inner.create(key, data, durable=durable)


def on_ranks(world: int, act: Callable[[Group], Any]) -> list[Any]:
    team = InMemory(world)
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: act(team.end(rank)), range(world)))


@st.composite
def partitions(draw: st.DrawFn, shape: tuple[int, ...], world: int) -> list[Box]:
    """Return a box for each rank: cut at random, some the same, some empty."""
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, world - 1))):
        at = draw(st.integers(0, len(boxes) - 1))
        start, extent = boxes[at]
        axes = [axis for axis, n in enumerate(extent) if n > 1]
        if not axes:
            continue
        axis = draw(st.sampled_from(axes))
        n = draw(st.integers(1, extent[axis] - 1))
        low = (*extent[:axis], n, *extent[axis + 1 :])
        high = (*extent[:axis], extent[axis] - n, *extent[axis + 1 :])
        after = (*start[:axis], start[axis] + n, *start[axis + 1 :])
        boxes[at : at + 1] = [(start, low), (after, high)]
    empty: Box = ((0,) * len(shape), (0, *shape[1:]))
    while len(boxes) < world:
        again = not shape or draw(st.booleans())
        boxes.append(draw(st.sampled_from(boxes)) if again else empty)
    return draw(st.permutations(boxes))


def region(box: Box) -> tuple[slice, ...]:
    return tuple(slice(b, b + n) for b, n in zip(*box, strict=True))


DTYPES = st.sampled_from([np.float32, np.int8, np.complex128, np.bool_, np.uint16])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    return np.asarray(rng.integers(0, 100, shape)).astype(draw(DTYPES))


@hypothesis.given(data=st.data())
def test_any_cut_loads_on_any_other(data: st.DataObject) -> None:
    whole = {f"a{n}": data.draw(arrays()) for n in range(data.draw(st.integers(1, 3)))}
    codec = data.draw(st.sampled_from(["raw", "zstd", "planes+zstd"]))
    backend = MemoryBackend()
    watched = Watched(backend)
    for number in (1, 2):
        world = data.draw(st.integers(1, MAX_WORLD))
        cuts = {name: data.draw(partitions(a.shape, world)) for name, a in whole.items()}

        def mine(rank: int, cuts: dict[str, list[Box]] = cuts) -> dict[str, Any]:
            return {
                name: ckptfmt.Shard(
                    np.array(a[region(cuts[name][rank])]),
                    start=cuts[name][rank][0],
                    global_shape=a.shape,
                )
                for name, a in whole.items()
            }

        def save(group: Group, mine: Any = mine) -> ckptfmt.Checkpoint:
            state = {"model": mine(group.rank), "rank_local": {group.rank: {"n": group.rank}}}
            with ckptfmt.open(watched, threads=1, codec=codec) as store:  # type: ignore[arg-type]
                return store.save(state, group=group, timeout_seconds=TIMEOUT)

        saved = on_ranks(world, save)[0]

        assert saved.number == number
        assert_same(saved.load()["model"], whole)
        assert saved.load(select="rank_local") == {
            "rank_local": {rank: {"n": rank} for rank in range(world)}
        }
        assert saved.verify().ok
        assert watched.parts >= world
        checker.manifest(backend.read(layout.manifest_key(number)))
        for key in backend.list(layout.DATA):
            checker.datafile(backend.read(key))
        assert list(backend.list(layout.INTENTS)) == []
        _check_parts(saved, whole, data)


def _check_parts(
    saved: ckptfmt.Checkpoint, whole: dict[str, np.ndarray[Any, Any]], data: st.DataObject
) -> None:
    """Load boxes into shards, and slices, as other ranks would."""
    world = data.draw(st.integers(1, MAX_WORLD))
    cuts = {name: data.draw(partitions(a.shape, world)) for name, a in whole.items()}
    order = data.draw(st.sampled_from(["C", "F"]))
    for rank in range(world):
        target = {
            name: ckptfmt.Shard(
                np.zeros(cuts[name][rank][1], a.dtype, order=order),  # type: ignore[call-overload]
                start=cuts[name][rank][0],
                global_shape=a.shape,
            )
            for name, a in whole.items()
        }

        found = saved.load(select="model", into={"model": target})

        for name, a in whole.items():
            expected = np.array(a[region(cuts[name][rank])])
            assert found["model"][name] is target[name]
            np.testing.assert_array_equal(target[name].array, expected, strict=True)
            part = saved[f"model/{name}"][region(cuts[name][rank])]
            np.testing.assert_array_equal(part, expected)


def test_a_shard_of_another_whole_is_a_mismatch() -> None:
    store = ckptfmt.open(MemoryBackend())
    store.save({"w": np.zeros((4, 2))})
    target = ckptfmt.Shard(np.ones((2, 2)), start=(0, 0), global_shape=(5, 2))

    with pytest.raises(MismatchError, match=r"has shape \(4, 2\) in the checkpoint, \(5, 2\)"):
        store.latest().load(into={"w": target})

    assert (target.array == 1).all()


class Counting:
    """A backend that adds up the bytes of data that are read."""

    def __init__(self, inner: MemoryBackend) -> None:
        self._inner = inner
        self.nbytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self.nbytes += len(target) * key.startswith("data/")
        self._inner.read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        self.nbytes += nbytes * key.startswith("data/")
        return self._inner.map(key, offset, nbytes)


def test_a_part_is_loaded_without_the_rest() -> None:
    """Rank 2 of 4 reads its own chunks, twice where they are verified before they are used."""
    inner = MemoryBackend()
    w = np.arange(4096, dtype=np.float32).reshape(64, 64)

    def save(group: Group) -> ckptfmt.Checkpoint:
        rows = slice(16 * group.rank, 16 * group.rank + 16)
        part = ckptfmt.Shard(w[rows], start=(rows.start, 0), global_shape=w.shape)
        return ckptfmt.open(inner, threads=1).save(
            {"w": part}, group=group, timeout_seconds=TIMEOUT
        )

    on_ranks(4, save)
    backend = Counting(inner)
    latest = ckptfmt.open(backend, threads=1).latest()  # type: ignore[arg-type]
    target = ckptfmt.Shard(np.zeros((16, 64), np.float32), start=(32, 0), global_shape=w.shape)

    np.testing.assert_array_equal(latest["w"][32:48], w[32:48])
    assert backend.nbytes == w.nbytes // 4

    backend.nbytes = 0
    latest.load(into={"w": target})
    np.testing.assert_array_equal(target.array, w[32:48])
    assert backend.nbytes == (1 + inner.capabilities.maps) * w.nbytes // 4


def test_a_damaged_chunk_of_another_rank_does_not_matter() -> None:
    backend = MemoryBackend()
    w = np.arange(256, dtype=np.float64)

    def save(group: Group) -> ckptfmt.Checkpoint:
        first = 128 * group.rank
        part = ckptfmt.Shard(w[first : first + 128], start=(first,), global_shape=(256,))
        return ckptfmt.open(backend, threads=1).save(
            {"w": part}, group=group, timeout_seconds=TIMEOUT
        )

    saved = on_ranks(2, save)[0]
    chunk = saved.manifest.tables.chunks(0)[-1]
    file = saved.manifest.tables.files[chunk.file]
    torn = bytearray(backend.read(file.key))
    torn[-1] ^= 1
    backend.replace(file.key, bytes(torn))

    mine, other = (
        ckptfmt.Shard(np.zeros(128), start=(first,), global_shape=(256,)) for first in (0, 128)
    )
    saved.load(into={"w": mine})
    np.testing.assert_array_equal(mine.array, w[:128])
    with pytest.raises(ckptfmt.errors.IntegrityError):
        saved.load(into={"w": other})
    assert (other.array == 0).all()


def test_another_number_of_ranks_reuses_what_the_cuts_have_in_common() -> None:
    """Cuts lie where they lie in the whole array: every eighth row, whoever holds it."""
    backend = MemoryBackend()
    w = np.arange(1600, dtype=np.float64).reshape(100, 16)[:, :1].copy()  # 8 bytes a row

    def save(group: Group) -> ckptfmt.Checkpoint:
        rows = slice(100 * group.rank // group.size, 100 * (group.rank + 1) // group.size)
        part = ckptfmt.Shard(w[rows], start=(rows.start, 0), global_shape=w.shape)
        with ckptfmt.open(backend, threads=1) as store:
            return store.save({"w": part}, group=group, timeout_seconds=TIMEOUT)

    assert on_ranks(4, save)[0].reused_bytes == 0
    saved = on_ranks(2, save)[0]

    assert saved.reused_bytes >= 0.8 * w.nbytes
    np.testing.assert_array_equal(saved.load()["w"], w)
