"""One object uploaded in parts: several requests in flight, memory bounded, nothing left over.

    blocks ─► parts of equal size (views) ─► requests on the client's event loop ─► done

At most `in_flight` parts are on their way: that is the byte budget, of which what lies in the
caller's arrays costs nothing. A part has a time-out and is tried again after a random pause;
whatever goes wrong in the end, the upload is aborted, so that the server keeps none of its
parts.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from ckptfmt.backends._failures import Failures, is_final
from ckptfmt.errors import BackendError

MAX_PARTS: Final = 10_000  # of S3; Azure takes 50,000
MIB: Final = 2**20
SENT_NBYTES: Final = MIB // 2  # handed to a connection at once; what it cannot take is copied

T = TypeVar("T")

_log: Final = logging.getLogger("ckptfmt")


def _pause(attempt: int) -> float:
    """Return a random time to wait: many writers that failed together come back apart."""
    return random.uniform(0, min(10.0, 0.2 * 2**attempt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How requests are sent. The byte budget of one object is in_flight * part_nbytes."""

    part_nbytes: int = 16 * MIB
    in_flight: int = 8
    tries: int = 4
    patience: float = 60.0  # seconds that any request may take …
    slowest: int = MIB // 4  # … and one more for every so many bytes
    pause: Callable[[int], float] = _pause  # seconds before try n + 1

    def part(self, nbytes: int) -> int:
        """Return the length of the parts of an object."""
        return max(self.part_nbytes, math.ceil(nbytes / MAX_PARTS))

    def seconds(self, nbytes: int) -> float:
        """Return how long a request that moves so many bytes may take."""
        return self.patience + nbytes / self.slowest


class Content:
    """The bytes of one part, where they lie: views that stay as they are until it is sent.

    A file for clients that sign or check it first, an asynchronous iterator for those that
    send it. Joined bytes would be a copy, in new memory, of all that is saved.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._nbytes = sum(view.nbytes for view in views)
        self._at = 0

    def __len__(self) -> int:
        return self._nbytes

    def __bytes__(self) -> bytes:
        return b"".join(self._views)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        """Return all of it, from the beginning, wherever the file stands."""
        for view in self._views:
            for at in range(0, view.nbytes, SENT_NBYTES):
                yield view[at : at + SENT_NBYTES]

    def read(self, nbytes: int = -1) -> bytes:
        """Return a copy of the next bytes."""
        end = self._nbytes if nbytes < 0 else min(self._at + nbytes, self._nbytes)
        end = max(end, self._at)
        found, begin = [], 0
        for view in self._views:
            low, high = max(self._at - begin, 0), min(end - begin, view.nbytes)
            if low < high:
                found.append(view[low:high])
            begin += view.nbytes
        self._at = end
        return b"".join(found)

    def tell(self) -> int:
        """Return where `read` goes on."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Say where `read` shall go on."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._nbytes}
        self._at = origin[whence] + offset
        return self._at


class Parts(Protocol):
    """The requests of one upload; coroutines of the client's event loop."""

    async def begin(self) -> None:
        """Announce the upload."""
        ...

    def packed(self, content: Content) -> Any:
        """Return a part as `send` wants it; called by the thread that saves, not the loop's."""
        ...

    async def send(self, number: int, data: Any) -> object:
        """Send a part, 1 to MAX_PARTS; the same one may be sent again. Returns its receipt."""
        ...

    async def complete(self, receipts: Sequence[object]) -> None:
        """Make the object out of its parts, in order."""
        ...

    async def abort(self) -> None:
        """Make the server forget the parts; nothing to do when it was not begun."""
        ...


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine on the client's event loop, which another thread runs."""
    return asyncio.run_coroutine_threadsafe(work, loop)


async def again(
    request: Callable[[], Coroutine[Any, Any, T]], nbytes: int, policy: Policy
) -> T:
    """Send a request that may be repeated until it succeeds or trying is of no use.

    Raises:
        Exception: the client's error of the last try.
    """
    attempt = 1
    while True:
        try:
            async with asyncio.timeout(policy.seconds(nbytes)):  # `wait_for` makes a task
                return await request()
        except Exception as error:
            if attempt >= policy.tries or is_final(error):
                raise
            _log.debug("try %d failed: %s", attempt, type(error).__name__)
        await asyncio.sleep(policy.pause(attempt))
        attempt += 1


def upload(
    parts: Parts,
    blocks: Iterable[memoryview],
    *,
    nbytes: int,
    loop: asyncio.AbstractEventLoop,
    policy: Policy,
) -> None:
    """Upload the blocks as one object; an exception, also one of the blocks, leaves nothing.

    Raises:
        Exception: the client's error, or that of the blocks.
    """
    flight: set[Future[None]] = set()
    receipts: dict[int, object] = {}

    async def send(number: int, data: Any) -> None:
        receipts[number] = await again(lambda: parts.send(number, data), len(data), policy)

    whole = False
    try:
        run(loop, again(parts.begin, 0, policy)).result()
        for number, content in enumerate(cut(blocks, policy.part(nbytes)), 1):
            flight.add(run(loop, send(number, parts.packed(content))))
            del content  # the request owns it: gone as soon as it is sent
            while len(flight) >= policy.in_flight:
                flight = _settled(flight)
        while flight:
            flight = _settled(flight)
        order = [receipts[number] for number in sorted(receipts)]
        run(loop, asyncio.wait_for(parts.complete(order), policy.seconds(nbytes))).result()
        whole = True
    finally:
        if not whole:
            _abort(parts, flight, loop, policy)


def cut(blocks: Iterable[memoryview], nbytes: int) -> Iterator[Content]:
    """Cut the blocks into parts of `nbytes` each; the last one may be shorter."""
    held: list[memoryview] = []
    room = nbytes
    for block in blocks:
        while block.nbytes >= room:
            held.append(block[:room])
            yield Content(held)
            block, held, room = block[room:], [], nbytes
        if block.nbytes:
            held.append(block)
            room -= block.nbytes
    if held:
        yield Content(held)


def _settled(flight: set[Future[None]]) -> set[Future[None]]:
    """Wait for one request; raise its failure, else return those still under way."""
    done, rest = concurrent.futures.wait(flight, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return rest


def _abort(
    parts: Parts,
    flight: set[Future[None]],
    loop: asyncio.AbstractEventLoop,
    policy: Policy,
) -> None:
    """Stop what is under way, then forget the parts; a refusal is said, not raised."""
    for future in flight:
        future.cancel()
    concurrent.futures.wait(flight, timeout=policy.patience)
    try:
        with Failures():
            run(loop, again(parts.abort, 0, policy)).result()
    except BackendError as error:
        _log.warning("parts of an unfinished upload stay with the server: %s", error)
