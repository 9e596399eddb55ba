"""The contract of `Backend`, sentence by sentence, on every server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptfmt.backends import Backend, open_backend
from ckptfmt.testing.conformance import BackendConformance
from tests.servers.conftest import Servers, system


class TestBuckets(BackendConformance):
    """Where an upload is one atomic operation."""

    @pytest.fixture(params=["moto", "gcs", *system("azurite", "ceph")])
    def backend(self, servers: Servers, request: pytest.FixtureRequest) -> Backend:
        place = servers.place(request.param)
        return open_backend(place.url, storage_options=place.options())


class TestRacyBuckets(BackendConformance):
    """Where conditions are checked, but two creates at one time may both be told they won.

    That is why a save reads its manifest back: test_races shows one winner for each number.
    """

    test_create_has_one_winner = None

    @pytest.fixture(params=system("swift"))
    def backend(self, servers: Servers, request: pytest.FixtureRequest) -> Backend:
        place = servers.place(request.param)
        return open_backend(place.url, storage_options=place.options())


class TestFileServers(BackendConformance):
    """Where an upload is a file that grows: a reader can see a part of it."""

    test_create_is_never_seen_in_part = None
    test_replace_is_old_or_new_for_every_reader = None
    LISTED = 150  # the WebDAV client lists a folder before it stores a file in it

    @pytest.fixture(params=["webdav", *system("sshd")])
    def backend(self, servers: Servers, request: pytest.FixtureRequest) -> Iterator[Backend]:
        place = servers.place(request.param)
        backend = open_backend(place.url, storage_options=place.options())
        yield backend
        client = backend._resolved[1].fs.client  # type: ignore[attr-defined]
        getattr(client, "http", client).close()  # they leave it to the garbage collector
