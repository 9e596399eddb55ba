"""Local files are read and digested block by block; damage is found wherever in them it is."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ckptfmt
from ckptfmt._engine import source
from ckptfmt.errors import IntegrityError

BLOCK = 1000
SIZES = (1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7, 0, 5, 300, 200, 100)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "BLOCK_NBYTES", BLOCK)


@pytest.fixture
def state() -> dict[str, np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return {f"a{n}": rng.integers(0, 256, size, np.uint8) for n, size in enumerate(SIZES)}


def data_file(folder: pathlib.Path) -> pathlib.Path:
    (found,) = (folder / "data").iterdir()
    return found


def starts(checkpoint: ckptfmt.Checkpoint, folder: pathlib.Path) -> dict[str, int]:
    """Where each array's bytes lie in the one data file."""
    whole = data_file(folder).read_bytes()
    arrays = {path: array for path, array in checkpoint.load().items() if array.size > 5}
    return {path: whole.index(array.tobytes()) for path, array in arrays.items()}


def test_all_sizes_come_back(tmp_path: pathlib.Path, state: dict[str, np.ndarray]) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save(state)
    target = {path: np.zeros_like(array) for path, array in state.items()}

    store.latest().load(into=target)

    for path, array in state.items():
        np.testing.assert_array_equal(target[path], array)
        np.testing.assert_array_equal(store.latest()[path], array)
    assert store.latest().verify().ok


def test_each_flipped_byte_is_found_and_named(
    tmp_path: pathlib.Path, state: dict[str, np.ndarray]
) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save(state)
    file = data_file(tmp_path / "store")
    whole = file.read_bytes()
    checked = 0
    for path, start in starts(store.latest(), tmp_path / "store").items():
        size = state[path].nbytes
        for at in {0, 1, size // 2, BLOCK - 1, BLOCK, 2 * BLOCK, size - 1} & set(range(size)):
            damaged = bytearray(whole)
            damaged[start + at] ^= 1
            file.write_bytes(damaged)
            target = {path: np.full_like(array, 7) for path, array in state.items()}
            fresh = ckptfmt.open(tmp_path / "store")
            with pytest.raises(IntegrityError) as caught:
                fresh.latest().load(into=target)
            assert caught.value.where["path"] == path
            assert all((array == 7).all() for array in target.values())  # nothing was changed
            with pytest.raises(IntegrityError):
                fresh.latest().load()
            assert [p.path for p in fresh.latest().verify().problems] == [path]
            checked += 1
    assert checked >= 15


def test_of_a_cut_file_the_array_that_lacks_bytes_is_named(
    tmp_path: pathlib.Path, state: dict[str, np.ndarray]
) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save(state)
    checkpoint = store.latest()
    where = starts(checkpoint, tmp_path / "store")
    file = data_file(tmp_path / "store")
    whole = file.read_bytes()
    for path, start in where.items():
        file.write_bytes(whole[: start + state[path].nbytes - 1])
        with pytest.raises(IntegrityError, match="ends too early") as caught:
            checkpoint.load(into={path: np.zeros_like(a) for path, a in state.items()})
        assert caught.value.where["path"] == path


def test_of_mapped_arrays_the_damaged_one_is_named(
    tmp_path: pathlib.Path, state: dict[str, np.ndarray]
) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save(state)
    checkpoint = store.latest()
    where = starts(checkpoint, tmp_path / "store")
    file = data_file(tmp_path / "store")
    whole = file.read_bytes()
    for path, start in where.items():
        file.write_bytes(whole[: start + state[path].nbytes - 1])
        with pytest.raises(IntegrityError, match="ends too early") as caught:
            checkpoint.load(mmap=True, select=[p for p in where if where[p] <= start])
        assert caught.value.where["path"] == path
        damaged = bytearray(whole)
        damaged[start + state[path].nbytes // 2] ^= 1
        file.write_bytes(damaged)
        fresh = ckptfmt.open(tmp_path / "store").latest()
        with pytest.raises(IntegrityError, match="digest mismatch") as caught:
            fresh.load(mmap=True)
        assert caught.value.where["path"] == path
        others = fresh.load(mmap=True, select=[p for p in state if p != path])
        assert all((others[p] == state[p]).all() for p in others)
        file.write_bytes(whole)


def test_rows_of_many_are_those_of_each(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path / "store", codec="zstd")
    state = {f"s{n}": np.arange(n, dtype="f4") for n in range(5)}
    state |= {
        "scalar": np.array(1.0),
        "zeros": np.zeros((300, 70)),
        "noise": np.random.rand(90),
    }
    state |= {"noise": np.random.rand(90), "f": np.asfortranarray(np.random.rand(7, 9))}
    store.save(state)
    tables = store.latest().manifest.tables
    assert len(set(tables.codecs)) == 2

    for some in (range(len(tables)), [3], []):
        expected = [(row, tables.array(row), tables.chunks(row)) for row in some]
        assert list(tables.rows(list(some))) == expected
