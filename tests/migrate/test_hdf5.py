"""HDF5: what Keras writes is read; what reaches out of the file, or lies, is refused."""

from __future__ import annotations

import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest

from ckptfmt import errors, migrate

h5py = pytest.importorskip("h5py", reason="h5py is not installed: no HDF5 was read")


def _write(path: pathlib.Path) -> Any:
    return h5py.File(path, "w")


def test_filters_and_layouts_give_equal_bits(tmp_path: pathlib.Path) -> None:
    values = np.arange(600, dtype="<f4").reshape(20, 30)
    with _write(tmp_path / "x") as file:
        file["plain"] = values
        file["big"] = values.astype(">f8")
        file.create_dataset("packed", data=values, compression="gzip", shuffle=True)
        file.create_dataset("checked", data=values, chunks=(7, 7), fletcher32=True)
        file["flags"] = values > 5
        file["scalar"] = np.int64(3)

    found = {
        path[0]: np.asarray(array) for path, array in migrate.open(tmp_path / "x").arrays()
    }

    for name in ("plain", "packed", "checked"):
        assert found[name].tobytes() == values.tobytes(), name
    assert found["big"].dtype == np.dtype(">f8")
    assert found["big"].tobytes() == values.astype(">f8").tobytes()
    assert found["flags"].dtype == np.bool_
    assert found["scalar"] == 3


def test_a_keras_archive_is_split_into_sections(tmp_path: pathlib.Path) -> None:
    with _write(tmp_path / "w") as file:
        file["layers/dense/vars/0"] = np.ones((2, 3), "<f4")
        file["optimizer/vars/0"] = np.int64(7)
        file.create_group("vars")
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0"}))
        archive.writestr("config.json", json.dumps({"class_name": "Sequential"}))
        archive.write(tmp_path / "w", "model.weights.h5")

    checkpoint = migrate.migrate(
        tmp_path / "x.keras", tmp_path / "store", verify=True
    ).checkpoint

    assert set(checkpoint.arrays) == {"model/dense/vars/0", "optimizer/vars/0"}
    assert checkpoint.architecture == {"class_name": "Sequential"}


def _soft(file: Any, _: pathlib.Path) -> None:
    file["a"] = np.ones(3)
    file["b"] = h5py.SoftLink("/a")


def _external_link(file: Any, other: pathlib.Path) -> None:
    file["b"] = h5py.ExternalLink(str(other), "/a")


def _external_storage(file: Any, other: pathlib.Path) -> None:
    file.create_dataset("b", (4,), "u1", external=[(str(other), 0, 4)])


def _virtual(file: Any, other: pathlib.Path) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(other), "a", (3,))
    file.create_virtual_dataset("b", layout)


def _bomb(file: Any, _: pathlib.Path) -> None:
    file.create_dataset("b", (2**40,), "u1", chunks=(2**20,))


def _twice(file: Any, _: pathlib.Path) -> None:
    file["g/a"] = np.ones(3)
    file["g/again"] = file["g"]


def _unknown_filter(file: Any, _: pathlib.Path) -> None:
    file.create_dataset("b", data=np.ones(300), compression="lzf")


def _reference(file: Any, _: pathlib.Path) -> None:
    file["a"] = np.ones(3)
    file.create_dataset("b", data=[file["a"].ref], dtype=h5py.ref_dtype)


@pytest.mark.parametrize(
    "attack",
    [
        _soft, _external_link, _external_storage, _virtual, _bomb, _twice, _unknown_filter,
        _reference,
    ],
)  # fmt: skip
def test_what_reaches_out_or_lies_is_refused(attack: Any, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "other"
    with _write(other) as file:
        file["a"] = np.ones(3)
    with _write(tmp_path / "x") as file:
        file["layers/vars/0"] = np.ones(2)
        attack(file, other)

    with pytest.raises(errors.FormatError) as caught:
        migrate.open(tmp_path / "x")

    assert caught.value.where["path"] in ("/b", "/g/again")


def test_a_user_block_is_refused(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "y", "w") as file:
        file["a"] = np.ones(3)
    (tmp_path / "x").write_bytes(bytes(512) + (tmp_path / "y").read_bytes())

    with pytest.raises(errors.CheckpointError):
        migrate.open(tmp_path / "x")
