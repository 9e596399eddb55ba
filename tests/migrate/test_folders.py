"""Folders and sets: each file is read or listed, none hides another."""

from __future__ import annotations

import gzip
import json
import pathlib
import pickle
from typing import Final

import numpy as np
import pytest
import safetensors.numpy

from ckptfmt import errors, migrate
from tests.migrate import corpus


def part(path: pathlib.Path, name: str, value: float, **metadata: str) -> None:
    """Write a file of safetensors with one array."""
    array = np.full(2, value, np.float32)
    safetensors.numpy.save_file({name: array}, path, metadata=metadata or None)


def sharded(folder: pathlib.Path) -> None:
    """Write weights in two parts with an index."""
    part(folder / "p0.safetensors", "a", 1, first="precious")
    part(folder / "p1.safetensors", "b", 2, second="precious")
    names = {"a": "p0.safetensors", "b": "p1.safetensors"}
    index = {"metadata": {"total": 16}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_file_beside_its_parts_hides_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x").mkdir()
    sharded(tmp_path / "x")
    part(tmp_path / "x" / "model.safetensors", "old", 9)

    done = migrate.migrate(tmp_path / "x", tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    assert {path.rpartition("/")[2] for path in done.checkpoint.arrays} == {"a", "b", "old"}


def test_notes_of_each_part_and_of_the_index_stay(tmp_path: pathlib.Path) -> None:
    sharded(tmp_path)

    texts = " ".join(f"{n.path} {n.text}" for n in migrate.open(tmp_path).report.notes)

    assert "first" in texts
    assert "second" in texts
    assert '{"total": 16}' in texts


def test_folders_below_are_listed_as_left_out(tmp_path: pathlib.Path) -> None:
    part(tmp_path / "model.safetensors", "a", 1)
    (tmp_path / "checkpoint-500").mkdir()

    assert [note.path for note in migrate.open(tmp_path).report.notes] == ["checkpoint-500"]


def test_another_index_that_is_damaged_hinders_no_file(tmp_path: pathlib.Path) -> None:
    part(tmp_path / "model.safetensors", "a", 1)
    (tmp_path / "other.index.json").write_text("{")

    assert migrate.open(tmp_path / "model.safetensors").format == "safetensors"

    (tmp_path / "other.index.json").write_text('{"weight_map": {"a": "model.safetensors"')
    with pytest.raises(errors.FormatError, match="JSON"):
        migrate.open(tmp_path / "model.safetensors")


def test_a_prefix_is_the_index_and_never_a_guess(tmp_path: pathlib.Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.meta").write_bytes(b"x")

    assert migrate.open(tmp_path / "model").format == "safetensors-sharded"

    part(tmp_path / "other.a", "a", 1)
    part(tmp_path / "other.b", "b", 1)
    with pytest.raises(errors.UsageError, match="several files"):
        migrate.open(tmp_path / "other")


def test_hdf5_names_of_attributes_hide_no_dataset(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.ones(2)
        file["a"].attrs["b"] = 7
        file["a@b"] = np.zeros(2)

    with pytest.raises(errors.FormatError, match="one name"):
        migrate.open(tmp_path / "x.h5")


def test_hdf5_without_elements_is_read(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = np.ones(2)
        file["null"] = h5py.Empty("f4")
        file.create_dataset("none", (0, 3), "f4", maxshape=(None, 3))

    done = migrate.migrate(tmp_path / "x.h5", tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    assert done.checkpoint.arrays["model/none"].shape == (0, 3)


STRAY: Final = {
    "data.json": b'{"a": 1}\n{"a": 2}\n',
    "log.csv.gz": gzip.compress(b"a,b\n") + gzip.compress(b"1,2\n"),
    "notes.txt": b"(in progress) see the wiki\n",
    "history.pkl": pickle.dumps({"a": 1}, 2) + pickle.dumps({"a": 2}, 2),
}


@pytest.mark.parametrize("name", STRAY)
def test_a_file_of_another_kind_does_not_refuse_the_folder(
    name: str, tmp_path: pathlib.Path
) -> None:
    part(tmp_path / "model.safetensors", "a", 1)
    (tmp_path / name).write_bytes(STRAY[name])

    source = migrate.open(tmp_path)

    assert [path for path, _ in source.arrays()] == [("a",)]
    assert [note.path for note in source.report.notes] == [name]


@pytest.mark.parametrize("name", ["optimizer.pkl", "config.json", "x.safetensors"])
def test_what_is_called_a_part_must_be_readable(name: str, tmp_path: pathlib.Path) -> None:
    part(tmp_path / "model.safetensors", "a", 1)
    damaged = {"optimizer.pkl": b"\x80\x02}q", "config.json": b"{"}
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / name).write_bytes(damaged.get(name, whole[:-1]))

    with pytest.raises(errors.FormatError):
        migrate.open(tmp_path)
