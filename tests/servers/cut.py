"""A relay for TCP on loopback that breaks the line after so many bytes, whatever they mean."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

PIECE_NBYTES = 4096


class Cut:
    """Stands between clients and the server on a port of loopback.

    Args:
        port: Where the server listens.
        after: Bytes that clients may send; then `then` is called, and all lines break at once,
            as new ones do.
    """

    def __init__(
        self, port: int, *, after: float, then: Callable[[], object] = lambda: None
    ) -> None:
        self._upstream = port
        self._after = after
        self._then = then
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []
        self.sent = 0  # by clients
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether the line is broken."""
        return self.sent > self._after

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()
        self._break()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
            except OSError:  # closed
                return
            with self._lock:
                self._lines += [client, server]
            if self.over:
                self._break()
            for one, other, counts in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass, args=(one, other, counts), daemon=True
                ).start()

    def _pass(self, one: socket.socket, other: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(PIECE_NBYTES):
                if counts:
                    with self._lock:
                        was, self.sent = self.over, self.sent + len(data)
                    if self.over:
                        if not was:
                            self._then()
                        break
                other.sendall(data)
        if self.over:
            self._break()
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _break(self) -> None:
        """Reset all lines, as a lost network looks from both sides."""
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            with contextlib.suppress(OSError):
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.shutdown(socket.SHUT_RDWR)
