"""The processes that save one checkpoint together.

    Group         what a save needs of them: bring bytes to rank 0, and back (spec §8.7)
    Single        the group of one
    SocketGroup   plain processes, on one machine or several, over TCP

Frameworks bring their own `Group` over whatever they use to talk; `docs/many-ranks.md` shows
two. The core never starts a process.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Protocol, final

from ckptfmt.errors import BackendError, UsageError

MAX_NBYTES: Final = 2**32  # of one message
PORT: Final = 29417

_HELLO: Final = struct.Struct("<8sII")  # magic, rank, size
_MAGIC: Final = b"ckptfmt1"
_FRAME: Final = struct.Struct("<4sQQ")  # which call, how many there were, bytes that follow
_GATHER: Final = b"gath"
_BROADCAST: Final = b"bcst"
_HELLO_SECONDS: Final = 5.0  # a stranger that connects and says nothing holds nobody up
_RETRY_SECONDS: Final = 0.05


class Group(Protocol):
    """Ranks 0 to size - 1 that call the same methods in the same order.

    Methods are called from the thread that called `save`, never from a background thread,
    where they could interleave with the training's own collectives.
    """

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size. Rank 0 plans and commits."""
        ...

    @property
    def size(self) -> int:
        """Number of processes, >= 1; fixed for the life of the group."""
        ...

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes] | None:
        """Bring one value per rank to rank 0.

        Args:
            value: This rank's contribution.
            timeout_seconds: How long to wait for the others; None waits for ever.

        Returns:
            On rank 0 the values in the order of ranks, None on every other rank.

        Raises:
            BackendError: a rank did not answer in time; the message names it.
        """
        ...

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        """Return rank 0's value on every rank; what the others pass is ignored.

        Raises:
            BackendError: rank 0 did not answer in time.
        """
        ...

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return once every rank has called it.

        Raises:
            BackendError: a rank did not arrive in time; the message names it.
        """
        ...


@final
class Single:
    """The group of one process: every exchange is with itself and returns at once.

    Stateless and thread-safe. It lets single-process code run the many-rank path instead of
    asking whether there is a group.
    """

    __slots__ = ()

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes] | None:
        """Return `[value]`."""
        return [value]

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        """Return `value`."""
        return value

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return."""


@final
class SocketGroup:
    """Processes that talk over TCP; rank 0 listens, the others connect to it.

    A rank that dies is noticed at once, by the end of its connection. After any failure the
    group is closed, so that nobody waits for it and no late answer is taken for the next one.
    Not thread-safe. Messages are neither encrypted nor signed: use it on a network where
    everybody may be a rank. A context manager.

    Args:
        rank: This process.
        size: Number of processes.
        host, port: Where rank 0 listens.
        timeout_seconds: How long to wait until all have connected.

    Raises:
        UsageError: the rank is not below the size.
        BackendError: not all ranks connected in time, or the port is taken.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        timeout_seconds: float = 60.0,
    ) -> None:
        if not 0 <= rank < size:
            raise UsageError("expected 0 <= rank < size", rank=rank, size=size)
        self._rank = rank
        self._size = size
        self._calls = 0
        self._peers: dict[int, socket.socket] = {}  # all others on rank 0, rank 0 elsewhere
        until = time.monotonic() + timeout_seconds
        try:
            if rank == 0 and size > 1:
                self._listen(host, port, until)
            elif rank:
                self._peers[0] = self._connect(host, port, until)
        except OSError as error:
            self.close()
            if isinstance(error, BackendError):
                raise
            raise BackendError(
                "the group did not come together", rank=rank, host=host, port=port
            ) from error

    @property
    def rank(self) -> int:
        """This process; 0 listens."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._size

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes] | None:
        """Bring one value per rank to rank 0; see `Group.gather`."""
        with self._call(timeout_seconds) as until:
            if self._rank:
                self._send(0, _GATHER, value, until)
                return None
            return [value, *(self._receive(n, _GATHER, until) for n in range(1, self._size))]

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        """Return rank 0's value on every rank; see `Group.broadcast`."""
        with self._call(timeout_seconds) as until:
            if self._rank:
                return self._receive(0, _BROADCAST, until)
            for peer in range(1, self._size):
                self._send(peer, _BROADCAST, value, until)
            return value

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return once every rank has called it; see `Group.barrier`."""
        self.gather(b"", timeout_seconds)
        self.broadcast(b"", timeout_seconds)

    def close(self) -> None:
        """End all connections; whoever waits for this rank gets an error."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def __enter__(self) -> SocketGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self, host: str, port: int, until: float) -> None:
        with socket.create_server((host, port), backlog=self._size) as server:
            while len(self._peers) < self._size - 1:
                server.settimeout(max(0.0, until - time.monotonic()) or 1e-3)
                try:
                    peer, _ = server.accept()
                except TimeoutError as error:
                    absent = sorted(set(range(1, self._size)) - self._peers.keys())
                    raise BackendError("ranks did not connect in time", ranks=absent) from error
                self._welcome(peer)

    def _welcome(self, peer: socket.socket) -> None:
        """Let a rank in; a stranger, or a rank that is here already, is turned away."""
        until = time.monotonic() + _HELLO_SECONDS
        try:
            magic, rank, size = _HELLO.unpack(_exactly(peer, _HELLO.size, until))
            free = 0 < rank < self._size and rank not in self._peers
            if magic != _MAGIC or size != self._size or not free:
                raise ConnectionError("no rank of this group")
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(_MAGIC)
        except OSError:
            peer.close()
            return
        self._peers[rank] = peer

    def _connect(self, host: str, port: int, until: float) -> socket.socket:
        while True:  # rank 0 may not be listening yet
            left = until - time.monotonic()
            try:
                peer = socket.create_connection((host, port), timeout=max(left, 1e-3))
                break
            except OSError:
                if left <= _RETRY_SECONDS:
                    raise
                time.sleep(_RETRY_SECONDS)
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.sendall(_HELLO.pack(_MAGIC, self._rank, self._size))
            if _exactly(peer, len(_MAGIC), until) != _MAGIC:
                raise ConnectionError("something else listens there")
        except OSError:
            peer.close()
            raise
        return peer

    @contextlib.contextmanager
    def _call(self, timeout_seconds: float | None) -> Iterator[float | None]:
        """Number one call; whatever goes wrong in it ends the group."""
        if self._size > 1 and not self._peers:
            raise BackendError("the group is closed, or has failed before", rank=self._rank)
        self._calls += 1
        done = False
        try:
            yield None if timeout_seconds is None else time.monotonic() + timeout_seconds
            done = True
        finally:
            if not done:
                self.close()

    def _send(self, peer: int, call: bytes, value: bytes, until: float | None) -> None:
        if len(value) > MAX_NBYTES:
            raise UsageError("message too long", nbytes=len(value), expected=MAX_NBYTES)
        sock = self._peers[peer]
        with _translated(peer, "did not take a message"):
            _limit(sock, until)
            sock.sendall(_FRAME.pack(call, self._calls, len(value)) + value)

    def _receive(self, peer: int, call: bytes, until: float | None) -> bytes:
        sock = self._peers[peer]
        with _translated(peer, "did not answer"):
            found, count, nbytes = _FRAME.unpack(_exactly(sock, _FRAME.size, until))
            if (found, count) != (call, self._calls) or nbytes > MAX_NBYTES:
                raise BackendError(
                    f"rank {peer} made another call: all ranks must save the same number of"
                    " times",
                    rank=peer,
                    expected=(call, self._calls),
                    found=(found, count),
                )
            return _exactly(sock, nbytes, until)


@contextlib.contextmanager
def _translated(peer: int, problem: str) -> Iterator[None]:
    try:
        yield
    except BackendError:
        raise
    except TimeoutError as error:
        raise BackendError(f"rank {peer} {problem} in time", rank=peer) from error
    except OSError as error:
        raise BackendError(f"rank {peer} {problem}: it has gone", rank=peer) from error


def _limit(sock: socket.socket, until: float | None) -> None:
    sock.settimeout(None if until is None else max(until - time.monotonic(), 1e-3))


def _exactly(sock: socket.socket, nbytes: int, until: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < nbytes:
        _limit(sock, until)
        if not (part := sock.recv(min(nbytes - len(parts), 2**20))):
            raise ConnectionError("connection ended")
        parts += part
    return bytes(parts)
