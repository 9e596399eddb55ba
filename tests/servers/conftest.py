"""Servers for the tests in this folder: each is started once a session, when first asked for.

CKPTFMT_SERVERS=name,name (set by the Makefile) names the servers that have to be there: what
is lacking then fails the test. All others are skipped, with the reason in the summary.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import pathlib
import shutil
import types
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.servers import azurite, ceph, gcs, moto, nginx, sshd, swift, webdav
from tests.servers.running import Server

# gcsfs would ask over gRPC what kind of bucket it has, and wait a minute for the emulator.
# Set before the first process is started, so that all of them have it.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

MODULES: Final[dict[str, types.ModuleType]] = {
    "moto": moto,
    "gcs": gcs,
    "webdav": webdav,
    "azurite": azurite,
    "ceph": ceph,
    "swift": swift,
    "sshd": sshd,
    "nginx": nginx,
}
REQUIRED: Final = frozenset(os.environ.get("CKPTFMT_SERVERS", "").split(",")) - {""}
NUMBERS: Final = itertools.count(1)


def system(*names: str) -> list[Any]:
    """Return parameters for servers that `make test-servers` starts."""
    return [pytest.param(name, marks=pytest.mark.server) for name in names]


class Place:
    """A new, empty place for one store on a running server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = f"{server.root}/{next(NUMBERS)}/run"

    def options(self, port: int | None = None) -> dict[str, Any]:
        """Return storage options; `port` is that of a proxy in front of the server."""
        return self.server.options(port or self.server.port)


class Servers:
    """All that run in this session."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.running: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        if name not in self.running:
            if reason := _lacking(MODULES[name]):
                if name in REQUIRED:
                    pytest.fail(f"{reason}, and CKPTFMT_SERVERS requires it")
                pytest.skip(reason)
            server: Server = MODULES[name].make(self.folder / name)
            self.running[name] = server
        return self.running[name].start()

    def place(self, name: str) -> Place:
        """Return a new place on a server, which is started if need be."""
        return Place(self[name])

    def stop(self) -> None:
        """Stop all of them."""
        for server in self.running.values():
            server.stop()


RUNNING: Final[pytest.StashKey[Servers]] = pytest.StashKey()


def _lacking(module: types.ModuleType) -> str:
    """Return why the tests of a server cannot run here, or ""."""
    if importlib.util.find_spec(module.CLIENT) is None:
        return f"{module.CLIENT} is not installed, the client of {module.__name__}"
    return str(module.lacking())


@pytest.fixture(scope="session")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Return the servers of this session; what they stored is removed, logs stay."""
    folder = tmp_path_factory.mktemp("servers")
    found = Servers(folder)
    request.config.stash[RUNNING] = found
    try:
        yield found
    finally:
        found.stop()
        for path in sorted(folder.glob("*/*")):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".log":
                path.unlink()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass what clients warn of: users see it as a warning, too, and no more."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default::ResourceWarning"))


@pytest.fixture(autouse=True)
def _sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Find what WebDAV's client left open now, and not in a test of something else."""
    yield
    if "webdav" in request.node.name:
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """Add the end of the servers' logs to the report of a test that failed."""
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    running = item.config.stash.get(RUNNING, None)
    if report.failed and running is not None:
        for server in running.running.values():
            if server.name in item.nodeid:
                report.sections.append((f"logs of {server.name}", server.logs()))
    return report  # type: ignore[return-value]
