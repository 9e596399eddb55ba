"""One object uploaded in parts: several requests in flight, memory bounded, nothing left over.

    blocks ─► parts of equal size (the one copy) ─► requests on the client's event loop ─► done

At most `in_flight` parts are on their way and one is being filled: that is the byte budget. A
part has a time-out and is tried again after a random pause; whatever goes wrong in the end, the
upload is aborted, so that the server keeps none of its parts.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from ckptfmt.backends._failures import Failures, is_final
from ckptfmt.errors import BackendError

MAX_PARTS: Final = 10_000  # of S3; Azure takes 50,000
MIB: Final = 2**20

T = TypeVar("T")

_log: Final = logging.getLogger("ckptfmt")


def _pause(attempt: int) -> float:
    """Return a random time to wait: many writers that failed together come back apart."""
    return random.uniform(0, min(10.0, 0.2 * 2**attempt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How requests are sent. The byte budget of one object is (in_flight + 1) * part_nbytes."""

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


class Parts(Protocol):
    """The requests of one upload; coroutines of the client's event loop."""

    async def begin(self) -> None:
        """Announce the upload."""
        ...

    async def send(self, number: int, data: bytes) -> object:
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
            return await asyncio.wait_for(request(), policy.seconds(nbytes))
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

    async def send(number: int, data: bytes) -> None:
        receipts[number] = await again(lambda: parts.send(number, data), len(data), policy)

    whole = False
    try:
        run(loop, again(parts.begin, 0, policy)).result()
        for number, data in enumerate(joined(blocks, policy.part(nbytes)), 1):
            flight.add(run(loop, send(number, data)))
            del data  # the request owns it: gone as soon as it is sent
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


def joined(blocks: Iterable[memoryview], nbytes: int) -> Iterator[bytes]:
    """Cut and join the blocks to pieces of `nbytes` each; the last one may be shorter."""
    held: list[memoryview] = []
    room = nbytes
    for block in blocks:
        while block.nbytes >= room:
            held.append(block[:room])
            yield b"".join(held)
            block, held, room = block[room:], [], nbytes
        if block.nbytes:
            held.append(block)
            room -= block.nbytes
    if held:
        yield b"".join(held)


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
