"""One fault at a change of a store, on the servers that `test_faults` has no sweeps for.

How many changes an operation asks for is counted first. The merge check then tries a few of
them, drawn with the seed of the run; `make soak-servers` tries them all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from ckptfmt.backends import open_backend
from ckptfmt.errors import BackendError, ConflictError
from ckptfmt.testing.strategies import assert_same
from tests.servers import processes, proxy, work
from tests.servers.conftest import Servers, system
from tests.servers.proxy import Proxy
from tests.servers.test_faults import JOIN_SECONDS, LONG, At, addresses
from tests.servers.work import OPERATIONS

SERVERS: Final = ["gcs", "webdav", *system("azurite")]
FAULTS: Final = (
    proxy.REFUSE, proxy.LOSE, proxy.RESET, proxy.ERROR, proxy.SLOW_DOWN, proxy.LATE,
)  # fmt: skip

EVERY: Final = [
    pytest.param(False, id="drawn"),
    pytest.param(True, id="all", marks=LONG),
]
OPERATION: Final = "save-with-retention"
# Seconds that a client waits for an answer; less than the proxy's LATE_SECONDS.
HURRIED: Final[dict[str, dict[str, Any]]] = {
    "gcs": {"requests_timeout": 1}, "webdav": {"timeout": 1}, "azurite": {"read_timeout": 1},
}  # fmt: skip


@pytest.fixture
def between(servers: Servers, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Return a proxy before the server of this test, whose client tries again soon."""
    if server == "azurite":  # its client's first pause takes 15 s
        policies = pytest.importorskip("azure.storage.blob._shared.policies_async")
        monkeypatch.setattr(policies.ExponentialRetry, "get_backoff_time", lambda *_: 0.1)
    with Proxy(servers[server].port) as found:
        yield found


def drawn(total: int, seed: int, what: str, *, few: int, every: bool) -> list[int]:
    """Return which of `total` requests are hit: all, or a few that the seed decides."""
    assert total >= 4, "the operation did not come through the proxy"
    points = range(1, total + 1)
    return list(points) if every else random.Random(f"{seed} {what}").sample(points, few)


def changes(servers: Servers, server: str, between: Proxy) -> int:
    """Return how many changes the operation asks for when nothing goes wrong."""
    operation = OPERATIONS[OPERATION]
    direct, through = addresses(servers.place(server), between)
    operation.prepare(direct)
    between.reset()
    operation.run(through)
    return between.changes()


def may_fail(server: str, fault: str) -> bool:
    """Tell whether a client gives up at once: WebDAV's always, Google's when time is over."""
    return server == "webdav" or (server, fault) == ("gcs", proxy.LATE)


def attempt(act: Callable[[], object], *, told: bool) -> bool:
    """Return whether it succeeded; only a client that gives up at once may say it did not."""
    try:
        act()
    except BackendError:
        if told:
            return False
        raise
    return True


@pytest.mark.parametrize("server", ["gcs", *system("azurite")])
def test_an_object_whose_answer_was_lost_is_there(
    servers: Servers, server: str, between: Proxy
) -> None:
    """At whichever request: told, or found by the client's next try, which is a conflict."""
    for at in itertools.count(1):
        _, faulty = addresses(servers.place(server), between)
        backend = open_backend(faulty.url, storage_options=faulty.options)
        between.reset(hit := At(proxy.LOSE, at))
        with contextlib.suppress(ConflictError):
            backend.create("manifests/1", b"own")
        between.reset()
        assert backend.read("manifests/1") == b"own"
        if not hit.hits:
            break
    assert at > 1


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_fault_at_a_change_loses_nothing(
    servers: Servers, server: str, between: Proxy, fault: str, every: bool, seed: int
) -> None:
    operation = OPERATIONS[OPERATION]
    total = changes(servers, server, between)
    for at in drawn(total, seed, f"{server} {fault}", few=1, every=every):
        direct, faulty = addresses(servers.place(server), between)
        if fault == proxy.LATE:
            faulty.options.update(HURRIED[server])
        operation.prepare(direct)
        between.reset(hit := At(fault, at))
        act = functools.partial(operation.run, faulty)
        done = attempt(act, told=may_fail(server, fault))
        between.reset()
        assert hit.hits == 1
        work.check(direct, operation, done=done)


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("then", [proxy.REFUSE, proxy.PASS], ids=["before", "after"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_process_killed_at_a_change_leaves_all_or_nothing(
    servers: Servers, server: str, between: Proxy, then: str, every: bool, seed: int
) -> None:
    operation = OPERATIONS[OPERATION]
    total = changes(servers, server, between)
    for at in drawn(total, seed, f"{server} killed {then}", few=2, every=every):
        direct, faulty = addresses(servers.place(server), between)
        operation.prepare(direct)
        victim = processes.Victim(work.run, faulty, OPERATION)
        between.reset(hit := At(then, at, also=victim.kill))
        status = victim.run(JOIN_SECONDS)
        between.reset()
        assert hit.hits == 1
        assert status == -9
        work.check(direct, operation, done=False)


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("fault", [proxy.SHORT, proxy.RESET, proxy.ERROR])
@pytest.mark.parametrize("server", SERVERS)
def test_a_fault_at_a_request_of_a_reader_gives_no_wrong_answer(
    servers: Servers, server: str, between: Proxy, fault: str, every: bool, seed: int
) -> None:
    direct, faulty = addresses(servers.place(server), between)
    work.save(direct.open(), 1)
    work.save(direct.open(), 2)

    def load() -> None:
        assert_same(faulty.open().latest().load(), work.state(2))

    between.reset()
    load()
    total = len(between.requests)
    for at in drawn(total, seed, f"{server} {fault}", few=2, every=every):
        between.reset(hit := At(fault, at, kind=lambda request: True))
        attempt(load, told=may_fail(server, fault))
        between.reset()
        assert hit.hits == 1
        load()
