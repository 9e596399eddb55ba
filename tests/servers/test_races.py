"""Writers in processes of their own, at the same time, in one store."""

from __future__ import annotations

import pytest

from ckptfmt.testing.strategies import assert_same
from tests.servers import work
from tests.servers.conftest import Servers
from tests.servers.processes import CONTEXT, Victim
from tests.servers.work import Address

SECONDS = 240


@pytest.mark.parametrize(
    ("server", "writers"),
    [
        ("moto", 2),
        ("moto", 10),
        ("gcs", 2),
        *(
            pytest.param(name, writers, marks=pytest.mark.server)
            for name in ("azurite", "ceph", "swift", "sshd")
            for writers in (2, 10)
        ),
    ],
)
def test_each_number_has_one_winner_and_nobody_loses_data(
    servers: Servers, server: str, writers: int
) -> None:
    """Who loses is told (`ConflictError`), and its next try is a checkpoint like any other."""
    place = servers.place(server)
    address = Address(url=place.url, options=place.options())
    wins = 3 if writers == 2 else 1
    results = CONTEXT.Queue()
    jobs = [Victim(work.contend, address, n, wins, results) for n in range(writers)]
    for job in jobs:
        job.start()
    told = [results.get(timeout=SECONDS) for _ in jobs]
    assert [job.join(SECONDS) for job in jobs] == [0] * writers

    won = [one for _, mine, _ in told for one in mine]
    numbers = [number for number, _ in won]
    assert len(numbers) == len(set(numbers)) == writers * wins, "two winners of one number"
    store = address.open()
    assert {row.number: row.status for row in store.entries()} == dict.fromkeys(numbers, "ok")
    for number, seed in won:
        assert_same(store[number].load(), work.state(seed))
    if writers == 10:
        assert sum(lost for _, _, lost in told) > 0, "nobody was in anybody's way"
    store.save(work.state(1))
    work.check_tidy(address)
