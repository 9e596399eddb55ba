"""Requests that go wrong, processes and servers that die: one at every change of a store.

Whatever happens: what was committed loads bit by bit, nothing is half visible, the next save
succeeds, and after a `collect` nothing is left over.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator

import pytest

from ckptfmt.backends.fsspec import FsspecBackend, Policy
from ckptfmt.errors import BackendError, CheckpointError
from ckptfmt.testing.strategies import assert_same
from tests.servers import processes, proxy, work
from tests.servers.conftest import Place, Servers, system
from tests.servers.cut import Cut
from tests.servers.proxy import Proxy, Request
from tests.servers.work import OPERATIONS, Address, Operation

ALL = [pytest.param(name, id=name) for name in OPERATIONS]
# Minutes each: run by `make soak-servers`.
LONG = (pytest.mark.server, pytest.mark.soak, pytest.mark.timeout(1800))
LONG_CEPH = [pytest.param("ceph", marks=LONG)]
IMPATIENT = {"retries": {"max_attempts": 0}}  # of botocore; others try again as well
HURRIED = {"read_timeout": 1}  # seconds; less than the proxy's LATE_SECONDS
JOIN_SECONDS = 60
ONCE = (proxy.REFUSE, proxy.LOSE, proxy.RESET, proxy.ERROR, proxy.LATE)


class At:
    """Says what is done to the `at`-th request of a kind, and to `times - 1` after it."""

    def __init__(
        self,
        fault: str,
        at: int,
        *,
        times: float = 1,
        kind: Callable[[Request], bool] = lambda request: request.changes,
        also: Callable[[], object] = lambda: None,
    ) -> None:
        self._fault = fault
        self._at = at
        self._times = times
        self._kind = kind
        self._also = also
        self._lock = threading.Lock()
        self._seen = 0
        self.hits = 0

    def __call__(self, request: Request) -> str:
        with self._lock:
            if not self._kind(request):
                return proxy.PASS
            self._seen += 1
            if not self._at <= self._seen < self._at + self._times:
                return proxy.PASS
            self.hits += 1
            self._also()
            return self._fault


@pytest.fixture
def between(servers: Servers, server: str) -> Iterator[Proxy]:
    """Return a proxy before the server of this test."""
    with Proxy(servers[server].port) as found:
        yield found


def addresses(place: Place, between: Proxy) -> tuple[Address, Address]:
    """Return how a store is found directly, and through the proxy."""
    direct = Address(url=place.url, options=place.options())
    return direct, Address(url=place.url, options=place.options(between.port))


def sweep(
    servers: Servers, server: str, between: Proxy, operation: Operation, fault: str,
    **how: float,
) -> int:  # fmt: skip
    """Run an operation with a fault at its first change, its second, … ; return how many."""
    for at in itertools.count(1):
        direct, faulty = addresses(servers.place(server), between)
        if fault == proxy.LATE:
            faulty.options["config_kwargs"] = {**faulty.options["config_kwargs"], **HURRIED}
        operation.prepare(direct)
        between.reset(hit := At(fault, at, **how))
        operation.run(faulty)
        between.reset()
        if not hit.hits:
            return at - 1
        work.check(direct, operation, done=True)
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("save-with-retention", proxy.LOSE),
        ("save-with-retention", proxy.SLOW_DOWN),
        *(("save", fault) for fault in (*ONCE, proxy.SLOW)),
    ],
)
@pytest.mark.parametrize("server", ["moto"])
def test_one_fault_at_a_change_is_not_noticed(
    servers: Servers, server: str, between: Proxy, name: str, fault: str
) -> None:
    assert sweep(servers, server, between, OPERATIONS[name], fault) > 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "fault",
    [
        *ONCE[:2],
        *(pytest.param(fault, marks=LONG) for fault in ONCE[2:]),
    ],
)
@pytest.mark.parametrize("server", system("ceph"))
def test_one_fault_at_any_change_of_anything_is_not_noticed(
    servers: Servers, server: str, between: Proxy, fault: str, name: str
) -> None:
    assert sweep(servers, server, between, OPERATIONS[name], fault) > 3


@pytest.mark.parametrize("name", ["save-with-retention", "collect"])
@pytest.mark.parametrize("server", LONG_CEPH)
def test_a_server_that_throttles_is_waited_for(
    servers: Servers, server: str, between: Proxy, name: str
) -> None:
    assert sweep(servers, server, between, OPERATIONS[name], proxy.SLOW_DOWN, times=3) > 3


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("then", [proxy.REFUSE, proxy.PASS], ids=["before", "after"])
@pytest.mark.parametrize(
    ("server", "name"),
    [
        ("moto", "save-with-retention"),
        ("moto", "save-in-parts"),
        *(pytest.param("ceph", name, marks=LONG) for name in OPERATIONS),
    ],
)
def test_a_process_killed_at_a_change_leaves_all_or_nothing(
    servers: Servers, server: str, between: Proxy, then: str, name: str
) -> None:
    """The server never gets the request, or does as asked and has nobody to tell."""
    operation = OPERATIONS[name]
    for at in itertools.count(1):
        direct, faulty = addresses(servers.place(server), between)
        operation.prepare(direct)
        victim = processes.Victim(work.run, faulty, name)
        between.reset(hit := At(then, at, also=victim.kill))
        status = victim.run(JOIN_SECONDS)
        between.reset()
        assert status == (-9 if hit.hits else 0)
        if not hit.hits:
            assert at > 4
            return
        work.check(direct, operation, done=False)


@pytest.mark.parametrize("name", ["save-with-retention", "delete"])
@pytest.mark.parametrize("server", ["moto", *LONG_CEPH])
def test_a_network_that_is_cut_loses_nothing(
    servers: Servers, server: str, between: Proxy, name: str
) -> None:
    """From one change on nothing gets through, reads neither; the process lives and is told."""
    operation = OPERATIONS[name]
    for at in (1, 2, 4, 6) if server == "ceph" else (4,):
        place = servers.place(server)
        direct, faulty = addresses(place, between)
        faulty.options["config_kwargs"] = {**faulty.options["config_kwargs"], **IMPATIENT}
        operation.prepare(direct)
        cut = At(proxy.REFUSE, at)

        def everything(request: Request, cut: At = cut) -> str:
            return proxy.REFUSE if cut.hits else cut(request)

        between.reset(everything)
        done = False
        with contextlib.suppress(BackendError):
            operation.run(faulty)
            done = True
        between.reset()
        assert cut.hits
        work.check(direct, operation, done=done)


@pytest.mark.parametrize("fault", [proxy.SHORT, proxy.RESET, proxy.ERROR])
@pytest.mark.parametrize("server", ["moto", *LONG_CEPH])
def test_a_fault_at_any_request_of_a_reader_is_not_noticed(
    servers: Servers, server: str, between: Proxy, fault: str
) -> None:
    direct, faulty = addresses(servers.place(server), between)
    work.save(direct.open(), 1)
    work.save(direct.open(), 2)
    for at in itertools.count(1):
        between.reset(hit := At(fault, at, kind=lambda request: True))
        assert_same(faulty.open().latest().load(), work.state(2))
        between.reset()
        if not hit.hits:
            assert at > 4
            return


@pytest.mark.timeout(900)  # minutes of a core: each listing of a save, one by one
@pytest.mark.parametrize(
    ("server", "name"),
    [
        ("moto", "save-with-retention"),
        *(pytest.param("ceph", name, marks=LONG) for name in ("save", "delete", "collect")),
    ],
)
def test_old_listings_lose_nothing(
    servers: Servers, server: str, between: Proxy, name: str
) -> None:
    """No server that we know of does this; a cache in between might."""
    operation = OPERATIONS[name]
    for at in itertools.count(1):
        direct, faulty = addresses(servers.place(server), between)
        operation.prepare(direct)
        if operation.before:  # the proxy sees the listings as they were before the last save
            faulty.open().entries()
            between.reset()
        between.reset(hit := At(proxy.STALE, at, kind=lambda request: request.lists))
        done = False
        with contextlib.suppress(CheckpointError):
            operation.run(faulty)
            done = True
        between.reset()
        if not hit.hits:
            return
        work.check(direct, operation, done=done)


@pytest.mark.parametrize("fault", [proxy.LATE, proxy.LOSE, proxy.ERROR, proxy.RESET])
@pytest.mark.parametrize("server", ["moto", *LONG_CEPH])
def test_a_part_that_fails_is_sent_again(
    servers: Servers, server: str, between: Proxy, fault: str
) -> None:
    place = servers.place(server)
    direct, faulty = addresses(place, between)
    work.save(direct.open(), 1)
    data = bytes(range(256)) * (11 * 2**12)  # 11 MiB
    policy = Policy(part_nbytes=5 * 2**20, in_flight=2, patience=1.0, slowest=10 * 2**20)
    for at in itertools.count(1):
        backend = FsspecBackend(faulty.url, storage_options=faulty.options, policy=policy)
        between.reset(hit := At(fault, at, kind=lambda r: "partNumber=" in r.target))
        key = f"data/{at:024x}-model-0.safetensors"
        backend.write(key, [data], nbytes=len(data))
        between.reset()
        assert backend.read(key) == data
        if not hit.hits:
            assert at > 3
            break
    if server == "ceph" and fault == proxy.LATE:  # lists what was completed before a part came
        assert direct.open().collect().blocked == ()
    assert unfinished_uploads(direct) == []


@pytest.mark.parametrize("server", ["moto", *LONG_CEPH])
def test_an_upload_that_fails_for_good_leaves_no_parts(
    servers: Servers, server: str, between: Proxy
) -> None:
    direct, faulty = addresses(servers.place(server), between)
    data = b"x" * (11 * 2**20)
    policy = Policy(part_nbytes=5 * 2**20, in_flight=2, tries=2)
    faulty.options["config_kwargs"] = {**faulty.options["config_kwargs"], **IMPATIENT}
    backend = FsspecBackend(faulty.url, storage_options=faulty.options, policy=policy)
    fault = At(proxy.ERROR, 2, times=1e9, kind=lambda r: "partNumber=" in r.target)
    between.reset(fault)

    with pytest.raises(BackendError):
        backend.write("data/a", [data], nbytes=len(data))

    assert fault.hits
    assert backend.list("data") == {}
    assert unfinished_uploads(direct) == []


@pytest.mark.parametrize("by", ["collect", "the next save"])
@pytest.mark.parametrize("server", ["moto", *system("ceph")])
def test_parts_of_a_dead_writer_are_found_and_freed(
    servers: Servers, server: str, between: Proxy, by: str
) -> None:
    direct, faulty = addresses(servers.place(server), between)
    work.save(direct.open(), 1)
    victim = processes.Victim(work.run, faulty, "save-in-parts")
    fault = At(proxy.PASS, 2, kind=lambda r: "partNumber=" in r.target, also=victim.kill)
    between.reset(fault)
    assert victim.run(JOIN_SECONDS) == -9
    between.reset()
    assert len(unfinished_uploads(direct)) == 1
    reasons = [one.reason for one in direct.open().leftovers()]
    assert any("parts of an upload save of process" in reason for reason in reasons), reasons

    store = direct.open()
    if by == "collect":
        assert store.collect().uploads == ()  # its lease stands: it may live
        assert len(unfinished_uploads(direct)) == 1
        would = store.collect(dry_run=True, break_lease=True)
        assert len(unfinished_uploads(direct)) == 1
        freed = store.collect(break_lease=True)
        assert len(freed.uploads) == 1
        assert would == freed
    else:
        store.save(work.state(2))

    assert unfinished_uploads(direct) == []
    work.load(direct.open(), 1)


@pytest.mark.parametrize("name", ["save-in-parts", "delete"])
@pytest.mark.parametrize("server", ["moto", *LONG_CEPH])
def test_a_server_without_space_loses_nothing(
    servers: Servers, server: str, between: Proxy, name: str
) -> None:
    """From one change on nothing can be stored; reading and deleting go on."""
    operation = OPERATIONS[name]
    for at in (1, 2, 3, 5):
        direct, faulty = addresses(servers.place(server), between)
        faulty.options["config_kwargs"] = {**faulty.options["config_kwargs"], **IMPATIENT}
        operation.prepare(direct)
        full = At(proxy.FULL, at, times=1e9, kind=lambda request: request.stores)
        between.reset(full)
        done = False
        with contextlib.suppress(BackendError):
            operation.run(faulty)
            done = True
        between.reset()
        assert full.hits or at > 3
        assert not done or not full.hits
        assert unfinished_uploads(direct) == [], "a save that lives cleans up by itself"
        work.check(direct, operation, done=done)


def unfinished_uploads(address: Address) -> list[object]:
    """Return the multipart uploads that were begun below a store and neither way ended."""
    import s3fs

    client = s3fs.S3FileSystem(**address.options, skip_instance_cache=True)
    bucket, _, prefix = address.url.removeprefix("s3://").partition("/")
    found: list[object] = [
        upload["Key"]
        for upload in client.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
        if upload["Key"].startswith(prefix)
    ]
    return found


@pytest.mark.parametrize(
    ("server", "what", "points"),
    [
        pytest.param("ceph", "gateway", (3,), marks=pytest.mark.server),
        pytest.param("swift", "everything", (3,), marks=pytest.mark.server),
        pytest.param("ceph", "gateway", (2, 5, 8), marks=LONG),
        pytest.param("ceph", "everything", (5,), marks=LONG),
    ],
)
def test_a_server_killed_and_started_again_within_a_save(
    servers: Servers, server: str, between: Proxy, what: str, points: tuple[int, ...]
) -> None:
    operation = OPERATIONS["save-with-retention"]
    running = servers[server]
    names = ["gateway"] if what == "gateway" else [c.name for c in running.commands]
    for at in points:
        direct, faulty = addresses(servers.place(server), between)
        operation.prepare(direct)
        hit = At(proxy.REFUSE, at, also=lambda: running.kill(*names))
        between.reset(hit)
        done = False
        with contextlib.suppress(BackendError):
            operation.run(faulty)
            done = True
        between.reset()
        assert hit.hits == 1
        running.start()
        work.check(direct, operation, done=done)


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("what", ["network", "process"])
@pytest.mark.parametrize("name", ["save-with-retention", "save-in-parts"])
@pytest.mark.parametrize("server", system("sshd"))
def test_a_line_that_breaks_loses_nothing(
    servers: Servers, server: str, name: str, what: str
) -> None:
    """SFTP is one stream of bytes: it ends after so many tenths of them."""
    operation = OPERATIONS[name]
    place = servers.place(server)
    direct = Address(url=place.url, options=place.options())
    operation.prepare(direct)
    with Cut(servers[server].port, after=math.inf) as whole:
        operation.run(Address(url=place.url, options=place.options(whole.port)))
    for tenth in (3, 6, 9) if name == "save-in-parts" else range(1, 10):
        place = servers.place(server)
        direct = Address(url=place.url, options=place.options())
        operation.prepare(direct)
        killed: list[processes.Victim] = []

        def kill(killed: list[processes.Victim] = killed) -> None:
            for victim in killed:
                victim.kill()

        with Cut(servers[server].port, after=whole.sent * tenth / 10, then=kill) as line:
            faulty = Address(url=place.url, options=place.options(line.port))
            done = False
            if what == "process":
                killed.append(processes.Victim(work.run, faulty, name))
                assert killed[0].run(JOIN_SECONDS) in (0, -9)
            else:
                with contextlib.suppress(BackendError):
                    operation.run(faulty)
                    done = True
        work.check(direct, operation, done=done)
