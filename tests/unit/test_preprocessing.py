"""How inputs are made travels with the checkpoint, comes out again, and is compared."""

from __future__ import annotations

import math
import os
import pathlib

import pytest

import ckptfmt
from ckptfmt.errors import BackendError, ConflictError, NotFoundError

SCALER = {"mean": [0.5, 0.25], "std": [1.0, math.nan], "vocabulary": "words.txt"}
FILES = {"words.txt": b"cat\ndog\n", "labels.json": b"[]"}


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> ckptfmt.Checkpoint:
    with ckptfmt.open(tmp_path / "run") as store:
        return store.save({"m": {}}, preprocessing=SCALER, artifacts=FILES)


def test_artifacts_come_out_as_files(saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a" / "b"

    paths = saved.extract(folder)

    assert {path.name: path.read_bytes() for path in paths} == FILES
    assert sorted(os.listdir(folder)) == sorted(FILES)
    assert saved.extract(folder, names=["words.txt"]) == [folder / "words.txt"]


def test_nothing_else_is_replaced(saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"mine")
    (tmp_path / "target").write_bytes(FILES["labels.json"])
    (tmp_path / "labels.json").symlink_to(tmp_path / "target")

    for name in FILES:
        with pytest.raises(ConflictError, match=f"artifact='{name}'"):
            saved.extract(tmp_path, names=[name])
    assert (tmp_path / "words.txt").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".*tmp"))


def test_what_cannot_be_extracted_is_named(
    saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(NotFoundError, match=r"../words.txt"):
        saved.extract(tmp_path, names=["../words.txt"])
    with pytest.raises(BackendError):
        saved.extract(tmp_path / "file")


def test_the_same_preprocessing_is_no_finding(
    saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path
) -> None:
    (path, _) = saved.extract(tmp_path / "out")

    assert saved.check_preprocessing() == []
    here = {path.name: path, "labels.json": b"[]"}
    assert saved.check_preprocessing(preprocessing=SCALER, artifacts=here) == []


def test_each_difference_is_a_finding_with_its_place(saved: ckptfmt.Checkpoint) -> None:
    other = {"mean": [0.5, 0.3], "std": [1.0], "extra": 1, "vocabulary": "words.txt"}

    found = saved.check_preprocessing(
        preprocessing=other, artifacts={"words.txt": b"cat\n", "new.txt": b""}
    )

    assert {f.name: (f.saved, f.now) for f in found[:3]} == {
        "preprocessing/mean/1": (0.25, 0.3),
        "preprocessing/std": ("2 values", "1 values"),
        "preprocessing/extra": (None, 1),
    }
    assert [f.name for f in found[3:]] == ["artifacts/words.txt", "artifacts/new.txt"]
    assert {f.severity for f in found} == {"error"}
    assert str(found[3].saved).startswith("sha256:")


def test_many_differences_are_counted(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run") as store:
        ckpt = store.save({"m": {}}, preprocessing={str(n): n for n in range(100)})

    found = ckpt.check_preprocessing(preprocessing={str(n): n + 1 for n in range(100)})

    assert len(found) == 13
    assert found[-1].saved == 100
