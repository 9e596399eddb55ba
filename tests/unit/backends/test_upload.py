"""Uploads in parts: order, budget, tries, time-outs, and what is left when they fail."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import Iterator, Sequence

import pytest

from ckptfmt.backends._upload import SENT_NBYTES, Content, Policy, cut, upload

FAST = Policy(part_nbytes=4, in_flight=3, tries=3, pause=lambda attempt: 0.0)


class Refused(Exception):
    status = 403


class Busy(Exception):
    status = 503


class Parts:
    """A server of parts that does as it is told."""

    def __init__(self, fails: dict[int, list[Exception]] | None = None) -> None:
        self.fails = fails or {}
        self.sent: dict[int, bytes] = {}
        self.tries: list[int] = []
        self.flying = self.most = 0
        self.object: bytes | None = None
        self.events: list[str] = []
        self.hang = False

    async def begin(self) -> None:
        self.events.append("begin")

    def packed(self, content: Content) -> bytes:
        assert threading.current_thread() is threading.main_thread()
        return bytes(content)

    async def send(self, number: int, data: bytes) -> object:
        self.tries.append(number)
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            await asyncio.sleep(60 if self.hang else 0.001 * (number % 3))
        finally:
            self.flying -= 1
        if left := self.fails.get(number):
            raise left.pop(0)
        self.sent[number] = data
        return number

    async def complete(self, receipts: Sequence[object]) -> None:
        self.events.append("complete")
        assert receipts == sorted(self.sent)
        self.object = b"".join(self.sent[n] for n in sorted(self.sent))

    async def abort(self) -> None:
        self.events.append("abort")
        assert not self.flying
        self.sent.clear()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def blocks(*lengths: int) -> list[memoryview]:
    data = memoryview(bytes(range(sum(lengths))))
    ends = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    return [data[end - n : end] for n, end in zip(lengths, ends, strict=True)]


@pytest.mark.parametrize("lengths", [(), (4,), (3,), (1, 1, 1, 1, 1), (9, 0, 4, 3), (40, 1)])
def test_parts_are_equal_and_in_order(lengths: tuple[int, ...]) -> None:
    found = list(cut(blocks(*lengths), 4))

    assert b"".join(map(bytes, found)) == bytes(range(sum(lengths)))
    assert all(len(part) == 4 for part in found[:-1])
    assert all(0 < len(part) <= 4 for part in found)


async def sent(content: Content) -> list[memoryview]:
    return [view async for view in content]


def test_what_is_sent_is_the_memory_of_the_blocks() -> None:
    memory = bytearray(3 * SENT_NBYTES + 9)
    own = memoryview(memory)

    parts = list(cut([own[:5], own[5:]], 2 * SENT_NBYTES))
    memory[:] = random.Random(0).randbytes(len(memory))  # no copy of the zeros was made

    views = [asyncio.run(sent(part)) for part in parts]
    assert [sum(map(len, part)) for part in views] == [2 * SENT_NBYTES, SENT_NBYTES + 9]
    assert b"".join(view for part in views for view in part) == memory
    assert all(len(view) <= SENT_NBYTES for part in views for view in part)
    assert asyncio.run(sent(parts[0])) == views[0]  # sent again, from its beginning


@pytest.mark.parametrize("lengths", [(9,), (1,) * 9, (4, 5), (0, 3, 0, 6)])
def test_a_part_is_a_file(lengths: tuple[int, ...]) -> None:
    """For clients that sign or check what they send: like `io.BytesIO`, call by call."""
    content, rng = Content(blocks(*lengths)), random.Random(1)
    like = io.BytesIO(bytes(range(9)))
    assert len(content) == 9

    for _ in range(300):
        if rng.random() < 0.3:
            whence = rng.randrange(3)
            offset = rng.randrange(-4, 1) if whence == io.SEEK_END else rng.randrange(3)
            assert content.seek(offset, whence) == like.seek(offset, whence)
        nbytes = rng.randrange(-1, 12)
        assert content.read(nbytes) == like.read(nbytes)
        assert content.tell() == like.tell()


@pytest.mark.parametrize("lengths", [(50,), (7, 0, 30), (1,) * 41])
def test_the_object_is_the_blocks_in_order(
    loop: asyncio.AbstractEventLoop, lengths: tuple[int, ...]
) -> None:
    parts = Parts()

    upload(parts, blocks(*lengths), nbytes=sum(lengths), loop=loop, policy=FAST)

    assert parts.object == bytes(range(sum(lengths)))
    assert parts.events == ["begin", "complete"]
    assert parts.most == FAST.in_flight


def test_no_block_is_asked_for_beyond_the_budget(loop: asyncio.AbstractEventLoop) -> None:
    parts, taken = Parts(), 0

    def counted() -> Iterator[memoryview]:
        nonlocal taken
        for block in blocks(*(4,) * 20):
            assert taken - len(parts.sent) <= FAST.in_flight
            taken += 1
            yield block

    upload(parts, counted(), nbytes=80, loop=loop, policy=FAST)

    assert taken == 20


def test_the_parts_of_a_huge_object_are_not_too_many() -> None:
    assert Policy().part(2**30) == 16 * 2**20
    assert 2**40 / Policy().part(2**40) <= 10_000


def test_a_part_is_tried_again(loop: asyncio.AbstractEventLoop) -> None:
    parts = Parts({2: [Busy(), ConnectionResetError()]})

    upload(parts, blocks(12), nbytes=12, loop=loop, policy=FAST)

    assert parts.object == bytes(range(12))
    assert parts.tries.count(2) == 3


@pytest.mark.parametrize(("errors", "tries"), [([Busy(), Busy(), Busy()], 3), ([Refused()], 1)])
def test_a_part_that_fails_for_good_leaves_nothing(
    loop: asyncio.AbstractEventLoop, errors: list[Exception], tries: int
) -> None:
    last = errors[-1]
    parts = Parts({2: errors})

    with pytest.raises(type(last)) as caught:
        upload(parts, blocks(40), nbytes=40, loop=loop, policy=FAST)

    assert caught.value is last
    assert parts.tries.count(2) == tries
    assert parts.events == ["begin", "abort"]
    assert not parts.sent


def test_a_part_that_hangs_is_given_up(loop: asyncio.AbstractEventLoop) -> None:
    parts = Parts()
    parts.hang = True
    policy = Policy(part_nbytes=4, tries=2, patience=0.02, pause=lambda attempt: 0.0)

    with pytest.raises(TimeoutError):
        upload(parts, blocks(4), nbytes=4, loop=loop, policy=policy)

    assert parts.tries == [1, 1]
    assert parts.events == ["begin", "abort"]


@pytest.mark.parametrize("error", [KeyError("own"), KeyboardInterrupt()], ids=repr)
def test_an_error_of_the_blocks_leaves_nothing(
    loop: asyncio.AbstractEventLoop, error: BaseException
) -> None:
    parts = Parts()

    def broken() -> Iterator[memoryview]:
        yield from blocks(4, 4, 4, 4)
        raise error

    with pytest.raises(type(error)) as caught:
        upload(parts, broken(), nbytes=40, loop=loop, policy=FAST)

    assert caught.value is error
    assert parts.events == ["begin", "abort"]
    assert not parts.sent


def test_pauses_are_random_and_bounded() -> None:
    pauses = {Policy().pause(attempt) for attempt in range(1, 30) for _ in range(10)}

    assert len(pauses) > 250
    assert all(0 <= pause <= 10 for pause in pauses)
