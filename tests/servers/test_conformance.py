"""The contract of `Backend`, sentence by sentence, on every server."""

from __future__ import annotations

import pytest

from ckptfmt.backends import Backend, open_backend
from ckptfmt.testing.conformance import BackendConformance
from tests.servers.conftest import Servers


def system(*names: str) -> list[object]:
    """Return parameters for servers that `make test-servers` starts."""
    return [pytest.param(name, marks=pytest.mark.server) for name in names]


class TestBuckets(BackendConformance):
    """Where an upload is one atomic operation."""

    @pytest.fixture(params=["moto", "gcs", *system("ceph", "swift")])
    def backend(self, servers: Servers, request: pytest.FixtureRequest) -> Backend:
        place = servers.place(request.param)
        return open_backend(place.url, storage_options=place.options())


class TestFileServers(BackendConformance):
    """Where an upload is a file that grows: a reader can see a part of it."""

    test_create_is_never_seen_in_part = None
    test_replace_is_old_or_new_for_every_reader = None
    test_list_is_complete = None  # each upload asks for its folder: minutes

    @pytest.fixture(params=["webdav"])
    def backend(self, servers: Servers, request: pytest.FixtureRequest) -> Backend:
        place = servers.place(request.param)
        return open_backend(place.url, storage_options=place.options())
