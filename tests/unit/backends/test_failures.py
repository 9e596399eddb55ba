"""A client's failure tells its user what to do, as far as the client says."""

from __future__ import annotations

import importlib
import sys

import pytest

import ckptfmt
from ckptfmt.backends._failures import Failures
from ckptfmt.errors import BackendError


class NoCredentialsError(Exception):
    """Named as that of botocore."""


class ProfileNotFound(Exception):
    """Named as that of botocore."""


class ClientError(Exception):
    """As that of botocore: the answer is an attribute."""

    def __init__(self, status: int) -> None:
        super().__init__("geheim")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NoCredentialsError(), "no credentials that it takes"),
        (ProfileNotFound(), "no credentials that it takes"),
        (ClientError(401), "no credentials that it takes"),
        (PermissionError("Forbidden"), "the credentials are wrong"),
        (ClientError(403), "the credentials are wrong"),
        (OSError("Forbidden: geheim"), "lack a right"),  # of gcsfs
        (ClientError(301), "another region"),
        (ClientError(507), "no room left"),
        (ConnectionRefusedError(), "nobody answers there"),
        (FileNotFoundError("bucket"), "make it first"),
        (NotImplementedError(), "it can only be read"),
        (ClientError(405), "it can only be read"),
        (ClientError(501), "it can only be read"),
        (TypeError("unexpected keyword argument 'kye'"), "no such URL or option"),
    ],
    ids=str,
)
def test_the_way_out_is_named(error: Exception, says: str) -> None:
    outer = OSError("wrapped")
    outer.__cause__ = error

    for raised in (error, outer):
        with pytest.raises(BackendError, match="storage failed: ") as caught, Failures(url="u"):
            raise raised

        assert says in str(caught.value)
        assert "geheim" not in str(caught.value)


def test_what_nobody_knows_is_only_named() -> None:
    with (
        pytest.raises(BackendError, match=r"^storage failed \[error='ZeroDivisionError'"),
        Failures(),
    ):
        1 / 0  # noqa: B018


@pytest.mark.parametrize(
    ("url", "package", "way_out"),
    [
        ("s3://b/x", "s3fs", "pip install 'ckptfmt[s3]'"),
        ("http://h/x", "aiohttp", "pip install 'ckptfmt[http]'"),
        ("webdav://h/x", "webdav4", "pip install webdav4"),
    ],
)
def test_a_missing_package_is_named(
    url: str, package: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = importlib.import_module("fsspec.registry")  # the attribute is something else
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(registry._registry, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(BackendError, match="is not installed") as caught:
        ckptfmt.open(url)

    assert way_out in str(caught.value)
