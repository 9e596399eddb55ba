"""Single, the group of one; SocketGroup, plain processes over TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ckptfmt.errors import BackendError, UsageError
from ckptfmt.group import Group, Single, SocketGroup

GROUP: Group = Single()  # type-checked: Single is a Group


def test_single_is_rank_zero_of_one() -> None:
    assert (GROUP.rank, GROUP.size) == (0, 1)


def test_gather_returns_the_only_value() -> None:
    value = b"rows"

    gathered = GROUP.gather(value, 0.0)

    assert gathered == [value]
    assert gathered is not None
    assert gathered[0] is value


def test_broadcast_returns_its_value() -> None:
    value = b"plan"

    assert GROUP.broadcast(value, timeout_seconds=0.0) is value


def test_barrier_does_not_wait() -> None:
    GROUP.barrier(timeout_seconds=0.0)
    GROUP.barrier()


def test_single_has_no_state() -> None:
    with pytest.raises(AttributeError):
        GROUP.rank = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        GROUP.state = 1  # type: ignore[attr-defined]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextlib.contextmanager
def groups(size: int) -> Iterator[list[SocketGroup]]:
    """Yield the ends of one group, all in this process."""
    port = free_port()
    with ThreadPoolExecutor(size) as pool:
        ends = list(pool.map(lambda n: SocketGroup(n, size, port=port), range(size)))
    yield ends
    for end in ends:
        end.close()


def on_all(ends: list[SocketGroup], act: Callable[[SocketGroup], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(ends)) as pool:
        return list(pool.map(act, ends))


def test_values_reach_rank_zero_in_the_order_of_ranks() -> None:
    with groups(3) as ends:
        assert [(end.rank, end.size) for end in ends] == [(0, 3), (1, 3), (2, 3)]
        for _ in range(2):
            gathered = on_all(ends, lambda end: end.gather(b"%d" % end.rank * 100_000, 5))
            assert gathered == [[b"0" * 100_000, b"1" * 100_000, b"2" * 100_000], None, None]


def test_what_rank_zero_says_reaches_all() -> None:
    with groups(3) as ends:
        assert on_all(ends, lambda end: end.broadcast(b"%d" % end.rank, 5)) == [b"0"] * 3
        assert on_all(ends, lambda end: end.barrier(5)) == [None] * 3


def test_a_barrier_waits_for_the_last() -> None:
    late = threading.Event()

    def arrive(end: SocketGroup) -> bool:
        if end.rank == 1:
            time.sleep(0.1)
            late.set()
        end.barrier(5)
        return late.is_set()

    with groups(2) as ends:
        assert on_all(ends, arrive) == [True, True]


def test_a_silent_rank_is_named_at_the_deadline() -> None:
    with groups(3) as ends:
        began = time.monotonic()
        ends[1].gather(b"", 5)
        with pytest.raises(BackendError, match="rank 2 did not answer in time"):
            ends[0].gather(b"", 0.2)
        assert 0.15 < time.monotonic() - began < 3


def test_a_dead_rank_is_noticed_at_once() -> None:
    with groups(2) as ends:
        ends[1].close()
        with pytest.raises(BackendError, match="rank 1 did not answer: it has gone"):
            ends[0].gather(b"", 60)


def test_a_failure_ends_the_group_for_all() -> None:
    with groups(3) as ends:
        with pytest.raises(BackendError):
            ends[0].gather(b"", 0.05)
        with pytest.raises(BackendError, match="rank 0 did not answer: it has gone"):
            ends[1].broadcast(b"", 60)
        with pytest.raises(BackendError, match="failed before"):
            ends[0].gather(b"", 60)


def test_ranks_that_call_different_methods_are_told() -> None:
    with groups(2) as ends:
        ends[1].gather(b"", 5)
        ends[1].gather(b"", 5)
        ends[0].gather(b"", 5)
        ends[0].broadcast(b"", 5)
        with pytest.raises(BackendError, match="rank 0 made another call"):
            ends[1].broadcast(b"", 5)


def test_a_rank_that_never_connects_is_named() -> None:
    with pytest.raises(BackendError, match=r"did not connect in time.*\[1, 2\]"):
        SocketGroup(0, 3, port=free_port(), timeout_seconds=0.1)


def test_a_group_without_rank_zero_does_not_come_together() -> None:
    with pytest.raises(BackendError, match="did not come together"):
        SocketGroup(1, 2, port=free_port(), timeout_seconds=0.2)


def test_strangers_are_turned_away() -> None:
    """One that says nothing sensible, and one that takes a rank twice."""
    port = free_port()
    with ThreadPoolExecutor(4) as pool:
        root = pool.submit(SocketGroup, 0, 3, port=port, timeout_seconds=20)
        first = pool.submit(SocketGroup, 1, 3, port=port).result()
        for hello in (b"GET / HTTP/1.1\r\n", struct.pack("<8sII", b"ckptfmt1", 1, 3)):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(hello)
                assert stranger.recv(8) == b""
        second = pool.submit(SocketGroup, 2, 3, port=port).result()
        ends = [root.result(), first, second]
        assert on_all(ends, lambda end: end.gather(b"x", 5)) == [[b"x"] * 3, None, None]
        for end in ends:
            end.close()


def test_a_rank_lies_below_the_size() -> None:
    for rank, size in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(UsageError, match="rank < size"):
            SocketGroup(rank, size)


def test_a_group_of_one_needs_no_network() -> None:
    with SocketGroup(0, 1) as alone:
        assert alone.gather(b"x") == [b"x"]
        assert alone.broadcast(b"y") == b"y"
        alone.barrier()
