"""How inputs are made travels with the checkpoint, comes out again, and is compared."""

from __future__ import annotations

import errno
import math
import os
import pathlib
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import BackendError, ConflictError, NotFoundError, StateError

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


def test_a_folder_without_hard_links_is_no_obstacle(
    saved: ckptfmt.Checkpoint, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)

    for _ in range(2):
        assert saved.extract(tmp_path / "out", names="words.txt") == [
            tmp_path / "out/words.txt"
        ]
    assert os.listdir(tmp_path / "out") == ["words.txt"]
    assert (tmp_path / "out/words.txt").read_bytes() == FILES["words.txt"]
    (tmp_path / "out/labels.json").write_bytes(b"mine")
    with pytest.raises(ConflictError, match=r"labels\.json"):
        saved.extract(tmp_path / "out")


def test_preprocessing_is_compared_as_it_would_be_saved(saved: ckptfmt.Checkpoint) -> None:
    here: dict[str, Any] = {**SCALER, "mean": (np.float64(0.5), np.float64(0.25))}

    assert saved.check_preprocessing(preprocessing=here) == []
    here["mean"] = [np.float64(0.5), np.float32(0.25)]  # computes in another precision
    assert [f.name for f in saved.check_preprocessing(preprocessing=here)] == [
        "preprocessing/mean/1"
    ]
    with pytest.raises(StateError, match=r"tolist.*preprocessing"):
        saved.check_preprocessing(preprocessing={**SCALER, "mean": np.array([0.5, 0.25])})


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
