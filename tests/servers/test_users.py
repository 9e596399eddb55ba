"""What people with a bucket of their own run into: an error of ours that says the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

import ckptfmt
from ckptfmt.errors import BackendError
from tests.servers import proxy, work
from tests.servers.conftest import Servers, system
from tests.servers.proxy import Proxy
from tests.servers.running import free_port
from tests.servers.work import Address

IMPATIENT: Final[dict[str, Any]] = {"config_kwargs": {"retries": {"max_attempts": 0}}}
WRONG: Final[dict[str, dict[str, Any]]] = {
    "ceph": {"secret": "hidden-secret"},
    "swift": {"secret": "hidden-secret"},
    "azurite": {
        "connection_string": "DefaultEndpointsProtocol=http;AccountName=account;"
        "AccountKey=aGlkZGVuLXNlY3JldA==;BlobEndpoint=http://127.0.0.1:{port}/account;"
    },
    "sshd": {"key_filename": None, "password": "hidden-secret"},
}


def refused(address: Address, way_out: str, *acts: Callable[[ckptfmt.Store], object]) -> None:
    """Assert that each act fails with an error that says `way_out` and shows no secret."""
    for act in acts:
        with pytest.raises(BackendError, match=way_out) as failed:
            act(address.open())
        text = str(failed.value) + repr(failed.value.where)
        assert address.url in text
        assert "hidden-secret" not in text
        assert "aGlkZGVuLXNlY3JldA" not in text


def save(store: ckptfmt.Store) -> object:
    return store.save(work.state(1))


@pytest.mark.parametrize("server", system(*WRONG))
def test_wrong_credentials(servers: Servers, server: str) -> None:
    place = servers.place(server)
    options = place.options() | {
        name: value.format(port=place.server.port) if isinstance(value, str) else value
        for name, value in WRONG[server].items()
    }
    refused(Address(url=place.url, options=options), "credentials", save, list)


@pytest.mark.parametrize("server", ["moto", "gcs", "webdav", *system("azurite")])
def test_credentials_that_may_only_read(servers: Servers, server: str) -> None:
    """What is there can be loaded; whatever would change it is refused, and says why."""
    place = servers.place(server)
    work.save(Address(url=place.url, options=place.options()).open(), 1)
    with Proxy(place.server.port) as between:
        between.reset(lambda r: proxy.FORBID if r.changes else proxy.PASS)
        reader = Address(url=place.url, options=place.options(between.port))

        work.load(reader.open(), 1)
        refused(
            reader, "lack a right", save, lambda store: store.delete([1]),
            lambda store: store.tag(1, "good"),
        )  # fmt: skip


def test_a_bucket_in_another_region(servers: Servers) -> None:
    place = servers.place("moto")
    with Proxy(place.server.port) as between:
        between.reset(lambda r: proxy.ELSEWHERE)
        address = Address(url=place.url, options=place.options(between.port))

        refused(address, "another region", save, list)


@pytest.mark.parametrize("server", ["moto", "webdav", *system("sshd")])
def test_a_server_that_nobody_runs(servers: Servers, server: str) -> None:
    place = servers.place(server)
    options = place.options(free_port())
    if server == "moto":
        options["config_kwargs"] = {**options["config_kwargs"], **IMPATIENT["config_kwargs"]}
    refused(Address(url=place.url, options=options), "nobody answers there", save, list)


@pytest.mark.parametrize(
    "server", ["moto", "gcs", "webdav", *system("azurite", "ceph", "sshd", "swift")]
)
def test_names_with_spaces_and_signs(servers: Servers, server: str) -> None:
    """Such as people give to folders; the client of WebDAV loses names with a percent sign."""
    place = servers.place(server)
    url = f"{place.url}/my runs/a+b & c=1, {'' if server == 'webdav' else '100 %25 '}[é]"
    address = Address(url=url, options=place.options())
    work.save(address.open(keep=ckptfmt.keep(last=1)), 1)
    work.save(address.open(keep=ckptfmt.keep(last=1)), 2)
    work.save(address.open(), 3, work.large)

    work.load(address.open(), 2)
    work.load(address.open(), 3, work.large)
    work.check_tidy(address)


def test_a_proxy_of_the_network(servers: Servers) -> None:
    """Given as its client wants it; only the proxy reaches the server."""
    place = servers.place("moto")
    with Proxy(place.server.port) as between:
        options = place.options()
        options["endpoint_url"] = "http://localhost:1"
        proxies = {"proxies": {"http": f"http://127.0.0.1:{between.port}"}}
        options["config_kwargs"] = {**options["config_kwargs"], **proxies}
        address = Address(url=place.url, options=options)
        work.save(address.open(), 1)
        work.load(address.open(), 1)
        assert between.requests
