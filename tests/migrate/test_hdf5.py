"""HDF5: what Keras writes is read; what reaches out of the file, or lies, is refused."""

from __future__ import annotations

import json
import pathlib
import resource
import struct
import time
import zipfile
from typing import Any

import numpy as np
import pytest

from ckptfmt import errors, migrate
from ckptfmt.migrate import apart

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

    source = migrate.open(tmp_path / "x.keras")
    checkpoint = migrate.migrate(source, tmp_path / "store", verify=True).checkpoint

    assert (source.format, source.producer) == ("keras-v3", "Keras 3.8.0")

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


def _hanging(path: pathlib.Path) -> None:
    """Write a file over which libhdf5 1.8 to 2.0 never ends: free space of no length."""
    with _write(path) as file:
        file.attrs["text"] = "some text"  # of variable length: in a heap
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    at = heap + 16
    while data[at : at + 2] != b"\0\0":  # to object 0, the free space
        (nbytes,) = struct.unpack_from("<Q", data, at + 8)
        at += 16 + -(-nbytes // 8) * 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)


def test_a_file_over_which_the_library_hangs_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "LIMIT_SECONDS", 2.0)
    _hanging(tmp_path / "x")
    with _write(tmp_path / "good") as file:
        file["a"] = np.ones(3)
    began = time.monotonic()

    with pytest.raises(errors.FormatError, match="hangs") as caught:
        migrate.open(tmp_path / "x")

    assert caught.value.where["file"] == "x"
    assert time.monotonic() - began < 30
    assert [path for path, _ in migrate.open(tmp_path / "good").arrays()] == [("a",)]


def test_a_file_that_asks_for_much_memory_is_an_error(tmp_path: pathlib.Path) -> None:
    with _write(tmp_path / "x") as file:  # 3 GiB of text that is not there
        file.create_dataset("texts", (3,), f"S{2**30 - 1}", chunks=(1,))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

    with pytest.raises(errors.FormatError, match="memory"):
        migrate.open(tmp_path / "x")

    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before < 2**20  # KiB


def test_an_array_is_unpacked_in_parts(tmp_path: pathlib.Path) -> None:
    values = np.random.default_rng(1).integers(0, 9, (3_000, 2_001)).astype("<i8")  # 48 MB
    with _write(tmp_path / "x") as file:
        file.create_dataset("a", data=values, compression="gzip", chunks=(700, 2_001))

    ((_, array),) = migrate.open(tmp_path / "x").arrays()

    assert np.asarray(array).tobytes() == values.tobytes()


def test_a_reader_that_waited_too_long_is_replaced(tmp_path: pathlib.Path) -> None:
    with _write(tmp_path / "x") as file:
        file["a"] = np.ones(3)
    migrate.open(tmp_path / "x")
    (child,) = apart._idle.values()
    child._process.kill()
    child._process.wait()

    assert [path for path, _ in migrate.open(tmp_path / "x").arrays()] == [("a",)]


def test_a_reader_that_cannot_start_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _write(tmp_path / "x") as file:
        file["a"] = np.ones(3)
    monkeypatch.setattr(apart, "_PROGRAM", str(tmp_path / "absent.py"))
    monkeypatch.setattr(apart, "_idle", {})

    with pytest.raises(errors.BackendError, match="import h5py"):
        migrate.open(tmp_path / "x")
