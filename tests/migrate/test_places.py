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
        ("dcp-lightning-2rank", ""),
        ("dcp-lightning-2rank", "/__1_0.distcp"),
        ("orbax-v0-direct", ""),
        ("orbax-v1-composite", "/orbax.checkpoint"),
        ("deepspeed-sockeye", ""),
        ("deepspeed-sockeye", "/global_step4000/zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    ],
)
def test_a_url_gives_what_the_disk_gives(
    name: str, below: str, memory: fsspec.AbstractFileSystem
) -> None:
    folder = corpus.OWN / "files" / name
    memory.put(f"{folder}/", f"/migrate/{name}/", recursive=True)

    assert corpus.read(f"{BASE}/{name}{below}") == corpus.read(f"{folder}{below}")


@pytest.mark.parametrize(
    "name", ["epoch=3-step=50.npz", "my model.npz", "modèle.npz", ".a.npz"]
)
def test_files_behind_a_url_have_names_of_their_own(
    name: str, memory: fsspec.AbstractFileSystem, tmp_path: pathlib.Path
) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    memory.pipe(f"/migrate/x/{name}", (tmp_path / "x.npz").read_bytes())

    assert migrate.open(f"{BASE}/x/{name}").files == (name,)
    assert migrate.open(f"{BASE}/x").files == (name,)


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("name", ["orbax-v0-direct", "orbax-v1-composite/state"])
def test_a_file_of_an_orbax_database_stands_for_all_of_it(
    name: str, where: str, memory: fsspec.AbstractFileSystem
) -> None:
    folder = corpus.OWN / "files" / name
    memory.put(f"{folder}/", f"/migrate/{name}/", recursive=True)
    whole = corpus.read(str(folder))
    base = str(folder) if where == "disk" else f"{BASE}/{name}"
    parts = [path for path in folder.rglob("*") if path.parent != folder]
    assert len(parts) > 5

    for part in parts:
        assert corpus.read(f"{base}/{part.relative_to(folder)}") == whole, part


@pytest.mark.parametrize("named", ["", "__0_0.distcp"])
def test_parts_without_their_metadata_are_no_checkpoint(
    named: str, tmp_path: pathlib.Path
) -> None:
    for file in (corpus.OWN / "files" / "dcp-lightning-2rank").glob("*.distcp"):
        (tmp_path / file.name).write_bytes(file.read_bytes())

    with pytest.raises(errors.NotFoundError, match="missing") as caught:
        migrate.open(tmp_path / named)

    assert caught.value.where["file"] == ".metadata"


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
