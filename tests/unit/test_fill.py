"""`Checkpoint.fill`: single arrays to where they belong, all verified before one is touched."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError

STATE = {"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(4, dtype=np.int8)}}


def save(folder: pathlib.Path) -> ckptfmt.Checkpoint:
    with ckptfmt.open(folder) as store:
        return store.save(STATE)


def test_arrays_are_filled_and_functions_are_given_theirs(tmp_path: pathlib.Path) -> None:
    place = np.zeros((2, 3))
    taken: list[np.ndarray] = []

    save(tmp_path).fill({"model/a": place, "model/b": taken.append})

    assert np.array_equal(place, STATE["model"]["a"])
    assert [array.tolist() for array in taken] == [[0, 1, 2, 3]]


def test_what_does_not_fit_is_refused_untouched(tmp_path: pathlib.Path) -> None:
    checkpoint = save(tmp_path)
    good, bad = np.zeros(4, np.int8), np.zeros((3, 2))

    with pytest.raises(MismatchError, match="shape"):
        checkpoint.fill({"model/b": good, "model/a": bad})
    with pytest.raises(MismatchError, match="absent"):
        checkpoint.fill({"model/b": good, "model/x": bad})
    with pytest.raises(NotFoundError, match="model/x"):
        checkpoint.fill({"model/b": good, "model/x": print})

    assert not good.any()


def test_damage_anywhere_leaves_every_place_untouched(tmp_path: pathlib.Path) -> None:
    checkpoint = save(tmp_path)
    (file,) = (tmp_path / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")  # the last array
    place = np.zeros((2, 3))

    with pytest.raises(IntegrityError, match="model/b"):
        checkpoint.fill({"model/a": place, "model/b": print})

    assert not place.any()


def test_a_save_after_it_is_a_child_when_it_resumes(tmp_path: pathlib.Path) -> None:
    first = save(tmp_path)
    with ckptfmt.open(tmp_path) as store:
        store[1].fill({"model/b": np.zeros(4, np.int8)})
        assert store.save(STATE).parent is None
    with ckptfmt.open(tmp_path) as store:
        store[1].fill({"model/b": np.zeros(4, np.int8)}, resumes=True)
        assert store.save(STATE).parent == (first.number, first.id)


def test_places_that_share_memory_are_refused_untouched(tmp_path: pathlib.Path) -> None:
    checkpoint = save(tmp_path)
    memory = np.zeros(80, np.uint8)
    floats, bytes_ = memory[:48].view(np.float64).reshape(2, 3), memory[44:48].view(np.int8)
    folded = np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8))

    with pytest.raises(MismatchError, match="overlap") as caught:
        checkpoint.fill({"model/a": floats, "model/b": bytes_})
    assert caught.value.where["paths"] == ("model/a", "model/b")
    with pytest.raises(MismatchError, match="memory of its own"):
        checkpoint.fill({"model/a": folded, "model/b": np.zeros(4, np.int8)})
    with pytest.raises(MismatchError, match="memory of its own"):
        checkpoint.load(select="model/a", into={"model": {"a": folded}})

    assert not memory.any()
    assert not folded.any()


def test_places_that_share_memory_are_filled_when_what_is_stored_agrees(
    tmp_path: pathlib.Path,
) -> None:
    whole = np.arange(12.0).reshape(3, 4)
    state = {"model": {"whole": whole.copy(), "part": whole[1:, ::-2].copy()}}
    with ckptfmt.open(tmp_path) as store:
        checkpoint = store.save(state)
    memory = np.zeros((3, 4))
    places = {"model/whole": memory, "model/part": memory[1:, ::-2]}

    checkpoint.fill(places)
    assert np.array_equal(memory, whole)

    memory[...] = 0
    with pytest.raises(MismatchError, match="overlap"):
        checkpoint.fill({**places, "model/part": memory[1:, ::2]})
    assert not memory.any()


def test_tied_arrays_are_not_written_over_each_other(tmp_path: pathlib.Path) -> None:
    square = np.arange(4.0).reshape(2, 2)
    with ckptfmt.open(tmp_path) as store:
        checkpoint = store.save({"a": square, "b": square})
    memory, line = np.zeros((2, 2)), np.zeros((1, 2))

    with pytest.raises(MismatchError, match="overlap"):  # same elements, in another order
        checkpoint.load(into={"a": memory, "b": memory.T})
    rows = [ckptfmt.Shard(line, start=(n, 0), global_shape=(2, 2)) for n in (0, 1)]
    with pytest.raises(MismatchError, match="one array"):  # two parts, one place
        checkpoint.load(into={"a": rows[0], "b": rows[1]})
    assert not memory.any()
    assert not line.any()

    loaded = checkpoint.load(into={"a": memory, "b": memory})
    assert loaded["a"] is loaded["b"]
    assert np.array_equal(memory, square)


def test_two_views_of_one_memory_are_filled_as_they_were_saved(tmp_path: pathlib.Path) -> None:
    square = np.arange(4.0).reshape(2, 2)
    with ckptfmt.open(tmp_path) as store:
        checkpoint = store.save({"a": square, "b": square.T})
    memory = np.zeros((2, 2))

    loaded = checkpoint.load(into={"a": memory, "b": memory.T})

    assert np.array_equal(memory, square)
    assert np.array_equal(loaded["b"], square.T)
