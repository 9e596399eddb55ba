"""A proxy for HTTP/1.1 on loopback that does to requests what networks and servers do.

It understands messages, so that a fault hits a chosen request at a chosen moment, and it keeps
the answers to listings, so that an old one can be given again.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

REFUSE: Final = "refuse"  # the connection breaks before the request is sent on
LOSE: Final = "lose"  # the server does as asked, and the connection breaks before its answer
RESET: Final = "reset"  # the connection breaks within the answer
SHORT: Final = "short"  # the answer ends early, in good order
STALE: Final = "stale"  # a listing is answered as it was before `reset`
ERROR: Final = "error"  # status 500, and the server never hears of it
SLOW_DOWN: Final = "slow down"  # status 503, as object stores throttle
LATE: Final = "late"  # the server does as asked, and answers after the client gave up
FULL: Final = "full"  # status 507: no room to store anything
FORBID: Final = "forbid"  # status 403, as to credentials without a right
ELSEWHERE: Final = "elsewhere"  # status 301: another region
SLOW: Final = "slow"  # every piece of request and answer takes a while
PASS: Final = "pass"

LATE_SECONDS: Final = 3.0
SLOW_SECONDS: Final = 0.05
PIECE_NBYTES: Final = 64 * 1024
CHANGING: Final = frozenset({"PUT", "POST", "DELETE", "PATCH", "MOVE", "MKCOL"})
BODYLESS: Final = frozenset({204, 304})
ANSWERS: Final = {
    ERROR: (500, "InternalError"),
    SLOW_DOWN: (503, "SlowDown"),
    FULL: (507, "InsufficientStorage"),
    FORBID: (403, "AccessDenied"),
    ELSEWHERE: (301, "PermanentRedirect"),
}
# What clients read instead of the text.
BESIDES: Final = {
    "AccessDenied": "x-ms-error-code: AuthorizationPermissionMismatch",
    "PermanentRedirect": "x-amz-bucket-region: eu-north-1",  # whose endpoint this is not
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, as a fault may want to know it."""

    number: int  # from 1, since `reset`
    method: str
    target: str

    @property
    def changes(self) -> bool:
        """Whether it asks for a change of what is stored."""
        return self.method in CHANGING

    @property
    def stores(self) -> bool:
        """Whether it asks for space."""
        return self.method in {"PUT", "POST"} and "delete" not in self.target

    @property
    def lists(self) -> bool:
        """Whether it asks an S3 bucket for a listing."""
        return self.method == "GET" and re.search(r"[?&]list-type=2", self.target) is not None


@dataclass(kw_only=True)
class _Message:
    first: bytes = b""
    head: bytes = b""
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Proxy:
    """Stands between clients and the server on a port of loopback.

    Args:
        port: Where the server listens.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._lock = threading.Lock()
        self._listings: dict[str, _Message] = {}  # the last answers
        self._old: dict[str, _Message] = {}  # the last answers before `reset`
        self._open: set[socket.socket] = set()
        self._fault: Callable[[Request], str] = lambda request: PASS
        self.requests: list[Request] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reset()
        self._socket.close()

    def reset(self, fault: Callable[[Request], str] | None = None) -> None:
        """Count requests from 1 again, and from now on do what `fault` says of each."""
        with self._lock:
            self.requests = []
            self._old = dict(self._listings)
            self._fault = fault or (lambda request: PASS)
            clients, self._open = self._open, set()
        for client in clients:  # kept alive from before: a fault may be in their way
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def changes(self) -> int:
        """Return how many requests since `reset` asked for a change."""
        with self._lock:
            return sum(request.changes for request in self.requests)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        upstream: socket.socket | None = None
        try:
            upstream = socket.create_connection(("127.0.0.1", self._upstream))
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client.makefile("rb") as asked, upstream.makefile("rb") as answered:
                while self._exchange(client, asked, upstream, answered):
                    pass
        except (OSError, ValueError):  # one side went away, or speaks something else
            _break(client)
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()
            if upstream is not None:
                upstream.close()

    def _exchange(self, client, asked, upstream, answered) -> bool:  # type: ignore[no-untyped-def]
        """Pass one request and its answer; return whether another may follow."""
        message = _read_head(asked)
        if not message.first:
            return False
        if message.headers.get("expect", "").lower() == "100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            message.head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", message.head)
        _read_body(asked, message)
        method, target, _ = message.first.decode("latin-1").split(" ", 2)
        with self._lock:
            number = len(self.requests) + 1
            request = Request(number=number, method=method, target=target)
            self.requests.append(request)
            fault = self._fault
        what = fault(request)
        if what == REFUSE:
            _break(client)
            return False
        if what in ANSWERS:
            client.sendall(_refusal(*ANSWERS[what], head=method == "HEAD"))
            return True
        pause = SLOW_SECONDS if what == SLOW else 0.0
        _send(upstream, message.head + message.body, pause)
        answer = _read_answer(answered, method)
        return self._reply(client, request, answer, what, pause)

    def _reply(
        self, client: socket.socket, request: Request, answer: _Message, what: str, pause: float
    ) -> bool:
        if what == LOSE:
            _break(client)
            return False
        if what == LATE:
            time.sleep(LATE_SECONDS)
        if request.lists:
            with self._lock:
                self._listings[request.target] = answer
                if what == STALE:
                    answer = self._old.get(request.target, answer)
        if what in (RESET, SHORT):
            client.sendall(answer.head + answer.body[: len(answer.body) // 2])
            if what == RESET:
                time.sleep(0.02)
                _break(client)
            return False
        _send(client, answer.head + answer.body, pause)
        return answer.headers.get("connection", "").lower() != "close"


def _read_head(stream) -> _Message:  # type: ignore[no-untyped-def]
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
        lines.append(line)
    if not lines or not line:
        return _Message()
    headers = {}
    for field_ in lines[1:]:
        name, _, value = field_.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return _Message(first=lines[0].strip(), head=b"".join(lines) + b"\r\n", headers=headers)


def _read_body(stream, message: _Message) -> None:  # type: ignore[no-untyped-def]
    if "chunked" in message.headers.get("transfer-encoding", "").lower():
        parts = []
        while True:
            parts.append(size := stream.readline())
            nbytes = int(size.split(b";")[0], 16)
            parts.append(_exactly(stream, nbytes) + stream.readline())
            if not nbytes:
                break
        message.body = b"".join(parts)
    else:
        message.body = _exactly(stream, int(message.headers.get("content-length", "0")))


def _read_answer(stream, method: str) -> _Message:  # type: ignore[no-untyped-def]
    while True:
        answer = _read_head(stream)
        if not answer.first:
            raise OSError("the server closed the connection")
        status = int(answer.first.split()[1])
        if status >= 200:
            break
    if method != "HEAD" and status not in BODYLESS:
        _read_body(stream, answer)
    return answer


def _exactly(stream, nbytes: int) -> bytes:  # type: ignore[no-untyped-def]
    data: bytes = stream.read(nbytes)
    if len(data) != nbytes:
        raise OSError("connection closed within a message")
    return data


def _send(target: socket.socket, data: bytes, pause: float) -> None:
    if not pause:
        target.sendall(data)
        return
    for at in range(0, len(data), PIECE_NBYTES):
        target.sendall(data[at : at + PIECE_NBYTES])
        time.sleep(pause)


def _refusal(status: int, code: str, *, head: bool) -> bytes:
    text = (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    )
    lines = [f"HTTP/1.1 {status} {code}", "Content-Type: application/xml"]
    if code in BESIDES:
        lines.append(BESIDES[code])
    lines += [f"Content-Length: {0 if head else len(text)}", "", ""]
    return "\r\n".join(lines).encode() + (b"" if head else text)


def _break(client: socket.socket) -> None:
    """Reset a connection, as a lost network looks from the other side."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.shutdown(socket.SHUT_RD)
