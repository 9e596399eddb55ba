"""What is no checkpoint by itself: its set is read, or the error says what to do."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from ckptfmt import errors, migrate
from tests.migrate import corpus

FILES = corpus.OWN / "files"


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        ("tf-sm-counter/saved_model.pb", "tf-v2"),
        ("tf-ckpt-lso/checkpoint", "tf-v2"),
        ("dcp-lightning-2rank/__1_0.distcp", "dcp"),
        ("tf-ckpt-lso/ckpt.data-00001-of-00002", "tf-v2"),
    ],
)
def test_any_member_stands_for_its_set(named: str, kind: str) -> None:
    source = migrate.open(FILES / named)

    assert source.format == kind
    assert named.partition("/")[2] != "saved_model.pb" or len(list(source.arrays())) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n",
            "git lfs pull",
        ),
        (b'{"a": 1}', "--formats"),
        (b"<!DOCTYPE html>", "--formats"),
    ],
)
def test_a_file_that_is_none_says_why(data: bytes, text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.bin").write_bytes(data)

    with pytest.raises(errors.UnsupportedError, match=text) as caught:
        migrate.open(tmp_path / "inner" / "x.bin")

    assert caught.value.where["source"] == "x.bin"


@pytest.mark.parametrize("below", [False, True])
def test_a_file_beside_a_checkpoint_leads_to_its_folder(
    below: bool, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(FILES / "tf-ckpt-lso", tmp_path / "x")
    file = tmp_path / "x" / "assets" / "data.json" if below else tmp_path / "x" / "data.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}")

    with pytest.raises(errors.UnsupportedError, match="name the folder") as caught:
        migrate.open(file)

    assert caught.value.where["folder"] == str(tmp_path / "x")
    assert migrate.open(str(caught.value.where["folder"])).format == "tf-v2"


def test_a_folder_of_folders_names_those_that_are_checkpoints(tmp_path: pathlib.Path) -> None:
    (tmp_path / "logs").mkdir()
    shutil.copytree(FILES / "tf-ckpt-lso", tmp_path / "step-5")

    with pytest.raises(errors.UnsupportedError, match=r"are checkpoints: step-5( |$)"):
        migrate.open(tmp_path)
    with pytest.raises(errors.UnsupportedError, match="no files in this folder"):
        migrate.open(tmp_path / "logs")
