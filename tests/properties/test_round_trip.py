"""What is saved comes back, bit by bit, by every way of writing and of reading."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

import ckptfmt
from ckptfmt import tree
from ckptfmt._engine import plan, read
from ckptfmt._store.store import Store
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.environment import Recorder
from ckptfmt.dtypes import by_numpy
from ckptfmt.format import layout
from ckptfmt.leaves import ArrayRef, join
from ckptfmt.testing import strategies
from ckptfmt.testing.strategies import Array, State, assert_same

CODECS = st.sampled_from(["raw", "zstd", "planes+zstd", "auto"])
DIGESTS = st.sampled_from(["xxh3-128", "sha256", None])
CHUNKS = st.sampled_from([1, 7, 40, plan.MIN_CHUNK_NBYTES])  # bytes: many chunks, or one


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with mock.patch.object(Recorder, "capture", return_value={}):
        yield


@contextlib.contextmanager
def sizes(chunk_nbytes: int) -> Iterator[None]:
    """Lower the limits, so that small arrays take the ways of large ones."""
    with (
        mock.patch.object(plan, "MIN_CHUNK_NBYTES", chunk_nbytes),
        mock.patch.object(plan, "MISC_NBYTES", 16),
        mock.patch.object(read, "SMALL_NBYTES", 2 * chunk_nbytes),
        mock.patch.object(read, "SLAB_NBYTES", 3 * chunk_nbytes),
        mock.patch.object(read, "MAX_GAP", 8),
    ):
        yield


def saved(state: State, **how: Any) -> tuple[MemoryBackend, ckptfmt.Checkpoint]:
    backend = MemoryBackend()
    return backend, ckptfmt.open(backend, threads=2, **how).save(state)


def blank(value: Any, made: dict[object, Array], layouts: Iterator[str]) -> Any:
    """Return a tree of the same form, its arrays full of other bits.

    Args:
        made: Filled with what is tied in `value`, so that it is tied again.
    """
    if isinstance(value, dict):
        return {key: blank(below, made, layouts) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(blank(below, made, layouts) for below in value)
    if not isinstance(value, np.ndarray):
        return None
    start = value.__array_interface__["data"][0]
    place = start, value.shape, value.strides, value.dtype.str, by_numpy(value.dtype).name
    if not value.size or next(layouts) == "untied":
        place = (*place, len(made))
    if place not in made:
        made[place] = _blank(value, next(layouts))
    return made[place]


def _blank(value: Array, how: str) -> Array:
    dtype = by_numpy(value.dtype).numpy
    match how:
        case "fortran" if value.ndim:
            return np.asfortranarray(np.ones(value.shape, dtype))
        case "big-endian":
            return np.ones(value.shape, dtype.newbyteorder(">"))
        case "strided" if value.ndim:
            wide = np.ones((*value.shape[:-1], 2 * value.shape[-1]), dtype)
            return wide[..., ::2]
        case "reversed" if value.ndim:
            return np.ones(value.shape, dtype)[::-1]
    return np.ones(value.shape, dtype)


def _untied(value: Any) -> Any:
    """Return a tree whose arrays all have memory of their own."""
    flat = tree.flatten(value)
    return tree.unflatten(flat.structure, lambda _, row: flat.leaves[row].array.copy())


def arrays_of(value: Any) -> list[Array]:
    flat = tree.flatten(value)
    return [leaf.array for leaf in flat.leaves]


@given(strategies.trees(), CODECS, DIGESTS, CHUNKS)
def test_a_state_comes_back(state: State, codec: str, digest: str | None, size: int) -> None:
    with sizes(size):
        backend, checkpoint = saved(state, codec=codec, digest=digest)
        assert_same(checkpoint.load(), state)

        again = ckptfmt.open(backend, threads=1)[1]
        assert_same(again.load(), state)
        assert_same(again.load(verify=False), state)
        assert_same(again.load(mmap=True), state)
        assert again.verify().ok
        assert again.identity == checkpoint.identity


@given(
    strategies.trees(),
    CODECS,
    CHUNKS,
    st.permutations(["plain", "fortran", "big-endian", "strided", "reversed", "untied"]),
    st.booleans(),
)
def test_a_state_comes_back_into_arrays_that_are_there(
    state: State, codec: str, size: int, layouts: list[str], verify: bool
) -> None:
    with sizes(size):
        _, checkpoint = saved(state, codec=codec)
        target = blank(state, {}, itertools.cycle(layouts))
        before = arrays_of(target)

        loaded = checkpoint.load(into=target, verify=verify)

    assert_same(_untied(loaded), _untied(state))
    assert [id(array) for array in arrays_of(loaded)] == [id(array) for array in before]


@given(strategies.trees(), strategies.trees(), CODECS, CHUNKS)
def test_a_second_save_writes_only_what_is_new(
    first: State, second: State, codec: str, size: int
) -> None:
    both = {**first, **second}
    with sizes(size):
        backend = MemoryBackend()
        store = ckptfmt.open(backend, threads=2, codec=codec)
        store.save(first)
        files = set(backend.list(layout.DATA))

        same = store.save(first)
        assert set(backend.list(layout.DATA)) == files
        assert same.new_bytes == 0

        other = store.save(both)
        for checkpoint, state in ((store[1], first), (same, first), (other, both)):
            assert_same(checkpoint.load(), state)
            assert_same(checkpoint.load(mmap=True), state)
            assert checkpoint.verify().ok

        store.delete([1, 2])
        assert_same(store[3].load(), both)
        store.collect()
        assert_same(ckptfmt.open(backend)[3].load(), both)


@given(strategies.trees(), CODECS, CHUNKS)
def test_each_path_alone_is_what_it_is_in_the_whole(
    state: State, codec: str, size: int
) -> None:
    with sizes(size):
        _, checkpoint = saved(state, codec=codec)

        for path, value in tree.paths(tree.flatten(state).structure):
            found = checkpoint[path]
            if isinstance(value, ArrayRef):
                assert_same(np.asarray(found), tree.lookup(state, path))
            else:
                assert_same(found, value)
        for key, value in state.items():
            if not set(key) & set("*?["):  # those are patterns
                assert_same(checkpoint.load(select=join(None, key)), {key: value})
        if state:
            assert_same(checkpoint.load(select="**"), state)


# NumPy before 2.0 warns of its own indexing of empty arrays.
@pytest.mark.filterwarnings("ignore:Out of bound index found")
@given(
    strategies.arrays(shape=strategies.shapes(max_dims=4, max_side=7)),
    CODECS,
    CHUNKS,
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_slices_are_those_of_numpy(
    array: Array, codec: str, size: int, verify: bool, mmap: bool, data: st.DataObject
) -> None:
    with sizes(size):
        _, checkpoint = saved({"a": array}, codec=codec)
        lazy = checkpoint.lazy("a", verify=verify, mmap=mmap)
        assert (lazy.shape, lazy.ndim, lazy.size) == (array.shape, array.ndim, array.size)
        assert lazy.nbytes == array.nbytes
        whole = array.astype(by_numpy(array.dtype).numpy)

        for _ in range(4):
            index = data.draw(indexes(array.shape))
            try:
                expected = whole[index]
            except IndexError:
                with pytest.raises(IndexError):
                    lazy[index]
                continue
            found = lazy[index]
            assert type(found) is type(expected), index
            assert_same(np.asarray(found), np.asarray(expected))


def indexes(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Draw an index of NumPy: mostly basic ones, some out of bounds, some fancy."""
    longest = max(shape, default=1)
    number = st.integers(-longest - 1, longest + 1)
    part = st.one_of(
        st.slices(longest + 2),
        number,
        number.map(np.int64),
        st.just(...),
        st.just(slice(None)),
    )
    fancy = st.one_of(st.none(), st.lists(number, max_size=3), st.booleans())
    return st.one_of(
        part,
        st.lists(part, max_size=len(shape) + 1).map(tuple),
        st.lists(part | fancy, max_size=len(shape)).map(tuple),
        fancy,
    )


@given(strategies.trees(), CODECS, CHUNKS)
def test_data_files_are_plain_safetensors(state: State, codec: str, size: int) -> None:
    """A parser that is not ours opens them and finds whole raw arrays under their names."""
    with sizes(size):
        backend, checkpoint = saved(state, codec=codec)

    entries: dict[str, Any] = {}
    for key in backend.list(layout.DATA):
        found = dict(safetensors.deserialize(backend.read(key)))
        assert found.keys().isdisjoint(entries) or len(backend.list(layout.DATA)) > 1
        entries |= found
    stored = sum(info.stored_nbytes for info in checkpoint.arrays.values())
    assert stored == sum(
        len(entry["data"])
        for key in backend.list(layout.DATA)
        for _, entry in safetensors.deserialize(backend.read(key))
    )


@given(strategies.trees(), CODECS, CHUNKS)
def test_an_async_save_is_the_same_save(state: State, codec: str, size: int) -> None:
    with sizes(size), ckptfmt.open(MemoryBackend(), threads=2, codec=codec) as store:
        saved = store.save(state)
        pending = store.save_async(state).wait()

    assert_same(pending.load(), state)
    assert pending.new_bytes == 0
    assert [a.digests for a in pending.arrays.values()] == [
        a.digests for a in saved.arrays.values()
    ]


@given(strategies.trees(), st.lists(strategies.values(), max_size=3))
def test_metadata_comes_back(state: State, values: list[Any]) -> None:
    backend = MemoryBackend()
    store: Store = ckptfmt.open(backend)
    given_values = {str(n): value for n, value in enumerate(values)}
    store.save(
        state,
        counters=given_values,
        hyperparameters=given_values,
        architecture=values,
        preprocessing={"a": given_values},
        metrics={"loss": 0.5, "none": None, "nan": float("nan")},
        artifacts={"vocabulary.txt": b"a\nb"},
        tags=["one", "two"],
    )

    found = ckptfmt.open(backend).latest()
    assert_same(dict(found.counters), given_values)
    assert_same(found.hyperparameters, given_values)
    assert_same(found.architecture, values)
    assert_same(found.preprocessing, {"a": given_values})
    assert_same(dict(found.metrics), {"loss": 0.5, "none": None, "nan": float("nan")})
    assert found.artifacts == {"vocabulary.txt": b"a\nb"}
    assert found.tags == ("one", "two")
