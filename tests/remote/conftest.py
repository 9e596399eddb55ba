"""A bucket for all tests of this folder, emptied of its log before each."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.remote import bucket as server


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Bucket]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    with server.running(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@pytest.fixture
def bucket(running: server.Bucket, tmp_path: pathlib.Path) -> Iterator[server.Bucket]:
    """Return the bucket, answering at once and without failures."""
    running.ask("set")
    running.log()
    yield running
    running.ask("set")
