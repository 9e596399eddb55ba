"""Several writers, readers and a collector on one store for long, killed again and again.

CKPTFMT_SOAK_MINUTES says for how long. Nothing that was acknowledged may be lost or wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import random
import signal
import time

import pytest

import ckptfmt
from ckptfmt.errors import BackendError, ConflictError, NotFoundError
from ckptfmt.testing.strategies import assert_same
from tests.servers import work
from tests.servers.conftest import Servers, system
from tests.servers.processes import Victim
from tests.servers.work import Address

MINUTES = float(os.environ.get("CKPTFMT_SOAK_MINUTES", "30"))
KEEP = ckptfmt.keep(last=4)
STARTED = itertools.count(1)


def write(address: Address, log: pathlib.Path, life: int) -> None:
    """Save for ever; note before each save what it will hold, after it which number it got."""
    with log.open("a", encoding="utf-8") as notes:
        for own in itertools.count(life * 100_000):
            store = address.open(keep=KEEP)
            try:
                # One lineage: the rules keep the end of each.
                parent = store.latest() if len(store) else None
                saved = store.save(work.state(own), counters={"seen": own}, parent=parent)
            except (ConflictError, NotFoundError):
                continue  # somebody was faster, or deleted what had been the newest
            notes.write(json.dumps([saved.number, own]) + "\n")
            notes.flush()


def read(address: Address) -> None:
    """Load the newest checkpoint for ever, and compare it bit by bit."""
    while True:
        store = address.open()
        try:
            found = store.latest()
            loaded = found.load()
        except NotFoundError:
            continue  # none yet, or deleted by a writer's rules meanwhile: the next is newer
        assert_same(loaded, work.state(loaded["step"]))
        assert found.counters["seen"] == loaded["step"]


def collect(address: Address) -> None:
    """Collect for ever; never break a lease, for the writers live."""
    while True:
        address.open().collect()
        time.sleep(0.5)


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 600)
@pytest.mark.parametrize("server", ["local", "moto", *system("ceph")])
def test_nothing_is_lost_however_long(
    servers: Servers, server: str, tmp_path: pathlib.Path, seed: int
) -> None:
    if server == "local":
        address = Address(url=str(tmp_path / "store"))
    else:
        place = servers.place(server)
        address = Address(url=place.url, options=place.options())
    dice, log = random.Random(seed), tmp_path / "acknowledged"
    log.touch()
    jobs: dict[str, Victim] = {}

    def begin(name: str) -> None:
        kind = name.partition("-")[0]
        arguments: dict[str, tuple[object, ...]] = {
            "writer": (write, address, log, next(STARTED)),
            "reader": (read, address),
            "collector": (collect, address),
        }
        jobs[name] = Victim(*arguments[kind])  # type: ignore[arg-type]
        jobs[name].start()

    for name in ("writer-1", "writer-2", "writer-3", "reader-1", "reader-2", "collector-1"):
        begin(name)
    until, kills = time.monotonic() + MINUTES * 60, 0
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.5, 4.0))
        for name, job in jobs.items():
            assert job.alive(), f"{name} ended by itself: {job.join(0)}"
        name = dice.choice(sorted(jobs))
        jobs[name].kill()
        assert jobs[name].join(60) == -signal.SIGKILL
        kills += 1
        begin(name)
    for job in jobs.values():
        job.kill()
        job.join(60)
    told = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    check(address, dict(told), kills)


def check(address: Address, acknowledged: dict[int, int], kills: int) -> None:
    """Assert that the newest are there and right, and that leftovers can be tidied up."""
    store = address.open()
    rows = {row.number: row.status for row in store.entries()}
    present = [number for number, status in rows.items() if status == "ok"]
    print(f"{len(acknowledged)} saves acknowledged, {kills} kills, {len(present)} present")
    assert len(acknowledged) > MINUTES
    assert set(rows.values()) <= {"ok", "tombstone"}
    assert max(present) >= max(acknowledged)
    for number in present:
        own = store[number].load()["step"]
        assert_same(store[number].load(), work.state(own))
        assert acknowledged.get(number, own) == own
    newest = sorted(present)[-4:]
    kept = {number for number in acknowledged if number >= newest[0]}
    assert kept <= set(present), "an acknowledged checkpoint that the rules keep is gone"
    try:
        store.save(work.state(work.NEXT))
    except BackendError as error:
        raise AssertionError("the next save failed") from error
    work.check_tidy(address)
