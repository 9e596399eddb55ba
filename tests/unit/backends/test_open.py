"""Which backend a path or URL leads to."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import register_implementation

import ckptfmt
from ckptfmt.backends import LocalBackend, MemoryBackend, open_backend
from ckptfmt.backends.fsspec import FsspecBackend
from ckptfmt.backends.single import open_file
from ckptfmt.errors import BackendError, UsageError


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_a_path_is_local(tmp_path: pathlib.Path, scheme: str) -> None:
    backend = open_backend(f"{scheme}{tmp_path}/run 1%20")

    assert isinstance(backend, LocalBackend)
    assert backend.url == f"{tmp_path}/run 1%20"


def test_a_path_object_is_local(tmp_path: pathlib.Path) -> None:
    assert open_backend(tmp_path).url == str(tmp_path)


def test_any_other_scheme_is_fsspec() -> None:
    backend = open_backend("memory://a/b", storage_options={})

    assert isinstance(backend, FsspecBackend)
    assert backend.url == "memory://a/b"


@pytest.mark.parametrize("url", ["", "file://", "file://relative", "local://x"])
def test_a_url_without_a_path_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_backend(url)


@pytest.mark.parametrize("url", ["s3://b/x", "gs://b", "file:///tmp/x"])
def test_a_url_that_pathlib_took_a_slash_from_is_no_folder(url: str) -> None:
    """Else a run would be saved into a folder `s3:` of wherever it was started."""
    for act in (open_backend, open_file):
        with pytest.raises(UsageError, match="two slashes"):
            act(pathlib.Path(url))


@pytest.mark.parametrize("path", ["./s3:/b", "a:/b", "run:/b", "s3", "s3:b", "/s3:/b"])
def test_a_folder_may_have_a_colon(path: str) -> None:
    assert isinstance(open_backend(path), LocalBackend)


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_tilde_is_the_home_of_the_user(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Any]
) -> None:
    """As a shell has it, through which a path within a program never went."""
    monkeypatch.setenv("HOME", str(tmp_path))

    assert open_backend(kind("~/runs/a")).url == f"{tmp_path}/runs/a"
    assert open_file(kind("~/a.safetensors"))[0].url == str(tmp_path)


@pytest.mark.parametrize("path", ["./~/a", "a/~", "~no such user/a", "~1"])
def test_other_tildes_are_names(
    path: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert open_backend(path).url == f"{tmp_path}/{path.removeprefix('./')}"


def test_a_home_that_nobody_knows_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    for path in ("~", "~/a"):
        with pytest.raises(UsageError, match="home folder"):
            open_backend(path)


@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
def test_a_query_behind_a_bucket_is_refused(scheme: str) -> None:
    """Its client would make it a part of each name; a signature may be what it holds."""
    with pytest.raises(UsageError, match="storage_options") as caught:
        open_backend(f"{scheme}://b/x?sig=hidden")

    assert "hidden" not in str(caught.value)


def test_capitals_are_the_same_scheme(tmp_path: pathlib.Path) -> None:
    assert isinstance(open_backend(f"FILE://{tmp_path}"), LocalBackend)
    assert open_backend("Memory://A/b").url == "memory://A/b"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("://x", "no file system"),
        ("1x://x", "no file system"),
        ("nosuch://x", "no file system"),
        ("memory://a\n", "control characters"),
        ("memory://a/\x1b[0m", "control characters"),
    ],
)
def test_what_is_no_url_is_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_backend(url)


def test_options_that_a_client_refuses_are_named() -> None:
    class Picky(MemoryFileSystem):
        protocol = "picky"

        def __init__(self, account: str = "", **options: str) -> None:
            if not account:
                raise ValueError("no account; secret is geheim")
            super().__init__(**options)

    register_implementation("picky", Picky, clobber=True)

    with pytest.raises(BackendError, match="no such URL or option") as caught:
        open_backend("picky://a", storage_options={"acount": "geheim"})

    assert caught.value.where["options"] == ["acount"]
    assert "geheim" not in str(caught.value)


def test_a_local_store_has_no_options(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(tmp_path, storage_options={"token": "SECRET"})

    assert "token" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_options_beside_a_backend_are_refused() -> None:
    with pytest.raises(UsageError, match="already"):
        ckptfmt.open(MemoryBackend(), storage_options={"key": "x"})


def test_a_local_store_does_not_import_fsspec() -> None:
    code = (
        "import sys, ckptfmt.backends as backends; backends.open_backend('/x'); "
        "sys.exit('fsspec' in sys.modules)"
    )
    top = pathlib.Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=top)
