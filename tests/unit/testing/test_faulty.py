"""The faulty backend fails where it is told, and then like the real thing."""

from __future__ import annotations

import errno

import pytest

from ckptfmt.backends import Backend, MemoryBackend
from ckptfmt.errors import BackendError, ConflictError, UsageError
from ckptfmt.testing.faulty import Crash, FaultyBackend


def use(backend: Backend) -> None:
    backend.create("a/1", b"1")
    backend.list("a")
    backend.write("a/2", [b"22", b"22"], nbytes=4)
    backend.read("a/1")
    backend.replace("a/1", b"111")
    backend.delete("a/2")


STATES = [{}, {"a/1": b"1"}, {"a/1": b"1", "a/2": b"2222"}, {"a/1": b"111", "a/2": b"2222"}]


def found(backend: Backend) -> dict[str, bytes]:
    return {key: backend.read(key) for key in backend.list("a")}


def test_changes_are_counted() -> None:
    backend = FaultyBackend(MemoryBackend())

    use(backend)

    assert backend.mutations == 4


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_crash_comes_before_or_after_the_change(at: int, after: bool) -> None:
    disk = MemoryBackend()

    with pytest.raises(Crash):
        use(FaultyBackend(disk, at=at, after=after))

    assert found(disk) == [*STATES, {"a/1": b"111"}][at - 1 + after]


def test_a_number_beyond_the_last_change_does_nothing() -> None:
    disk = MemoryBackend()

    use(FaultyBackend(disk, at=5))

    assert found(disk) == {"a/1": b"111"}


def test_a_dead_process_does_nothing_more() -> None:
    disk = MemoryBackend()
    backend = FaultyBackend(disk, at=1)
    with pytest.raises(Crash):
        backend.create("a/1", b"1")

    for call in (
        lambda: backend.create("a/2", b"1"),
        lambda: backend.replace("a/2", b"1"),
        lambda: backend.write("a/2", [], nbytes=0),
        lambda: backend.delete("a/1"),
        lambda: backend.read("a/1"),
        lambda: backend.read_into("a/1", 0, memoryview(bytearray(1))),
        lambda: backend.map("a/1", 0, 1),
        lambda: backend.list("a"),
    ):
        with pytest.raises(Crash):
            call()
    assert found(disk) == {}


def test_no_handler_catches_a_crash() -> None:
    assert not issubclass(Crash, Exception)


def test_a_torn_write_leaves_the_first_half() -> None:
    disk = MemoryBackend()

    with pytest.raises(Crash):
        use(FaultyBackend(disk, at=2, torn=True))

    assert found(disk) == {"a/1": b"1", "a/2": b"22"}


@pytest.mark.parametrize("at", [1, 3, 4])
def test_only_writes_tear(at: int) -> None:
    disk = MemoryBackend()

    with pytest.raises(Crash):
        use(FaultyBackend(disk, at=at, torn=True))

    assert found(disk) == STATES[at - 1]


def test_an_os_error_comes_as_from_a_backend_and_only_once() -> None:
    disk = MemoryBackend()
    backend = FaultyBackend(disk, at=1, error=OSError(errno.ENOSPC, "full"))

    with pytest.raises(BackendError) as caught:
        backend.create("a/1", b"1")
    use(backend)

    assert caught.value.errno == errno.ENOSPC
    assert caught.value.where["key"] == "a/1"


@pytest.mark.parametrize("error", [UsageError("x"), BackendError("x"), KeyboardInterrupt()])
def test_any_other_error_comes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        FaultyBackend(MemoryBackend(), at=1, error=error).create("a/1", b"1")

    assert caught.value is error


def test_a_lost_reply_makes_a_client_conflict_with_itself() -> None:
    disk = MemoryBackend()
    backend = FaultyBackend(disk, at=1, lose_reply=True)

    with pytest.raises(ConflictError):
        backend.create("a/1", b"1")

    assert found(disk) == {"a/1": b"1"}
    backend.delete("a/1")
    use(backend)
