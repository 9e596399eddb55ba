"""Which backend a path or URL leads to."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from ckptfmt.backends import LocalBackend, open_backend
from ckptfmt.backends.fsspec import FsspecBackend
from ckptfmt.errors import UsageError


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


def test_a_local_store_has_no_options(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_backend(tmp_path, storage_options={"token": "SECRET"})

    assert "token" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_local_store_does_not_import_fsspec() -> None:
    code = (
        "import sys, ckptfmt.backends as backends; backends.open_backend('/x'); "
        "sys.exit('fsspec' in sys.modules)"
    )
    top = pathlib.Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=top)
