"""Where a source may lie: files, folders, prefixes, parts, and the same behind a URL."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest

from ckptfmt import errors, migrate
from tests.migrate import corpus

BASE = "memory://migrate"


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/migrate"):
        files.rm("/migrate", recursive=True)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("torch-legacy-captum-titanic", ""),
        ("npy-djl", ""),
        ("tf-ckpt-lso", "/ckpt"),
        ("tf-ckpt-lso", "/ckpt.data-00001-of-00002"),
        ("tf-sm-counter", ""),
        ("pl-tabular-save", "/model.ckpt"),
    ],
)
def test_a_url_gives_what_the_disk_gives(
    name: str, below: str, memory: fsspec.AbstractFileSystem
) -> None:
    folder = corpus.OWN / "files" / name
    memory.put(f"{folder}/", f"/migrate/{name}/", recursive=True)

    assert corpus.read(f"{BASE}/{name}{below}") == corpus.read(f"{folder}{below}")


def test_nothing_behind_a_url_is_not_found(memory: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(errors.NotFoundError, match="no such file"):
        migrate.open(f"{BASE}/absent")


def test_an_index_behind_a_url_cannot_lead_out(memory: fsspec.AbstractFileSystem) -> None:
    index = json.dumps({"weight_map": {"a": "../secret"}})
    memory.pipe("/migrate/x/m.index.json", index.encode())

    with pytest.raises(errors.FormatError, match="plain relative"):
        migrate.open(f"{BASE}/x/m.index.json")


def test_nothing_there_is_not_found(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.NotFoundError, match="no such file"):
        migrate.open(tmp_path / "absent")


def test_a_link_that_its_user_names_is_followed(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "real.npy", np.arange(3))
    (tmp_path / "link").symlink_to(tmp_path / "real.npy")

    assert migrate.open(tmp_path / "link").format == "npy"


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(errors.UsageError, match="regular file"):
        migrate.open(tmp_path / "pipe")
