"""A backend that fails once, at a chosen change: crash sweeps count through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import final

from ckptfmt.backends import Backend, Buffer, Capabilities, Entry
from ckptfmt.errors import BackendError, CheckpointError, ConflictError


class Crash(BaseException):
    """The process died here. No handler of the library can catch it by accident."""


@final
class FaultyBackend:
    """`inner`, but its `at`-th change (create, replace, write, delete; from 1) goes wrong.

    After a `Crash` every further call crashes, too: a dead process neither cleans up nor
    reads. After any other error the backend works again.

    Args:
        at: Number of the change; 0 never fails, and only counts.
        after: Let the change take effect first, so that the caller does not learn of it.
        torn: If the change is a `write`, leave the first half of the bytes under its key; with
            `after` this has no effect.
        error: What the caller gets: None is a `Crash`; an OSError comes as a `BackendError`
            with it as the cause, as from a real backend; anything else comes as it is.
        lose_reply: If the change is a `create`, let it take effect and answer `ConflictError`:
            what clients do that repeat a request whose reply was lost.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        at: int = 0,
        after: bool = False,
        torn: bool = False,
        error: BaseException | None = None,
        lose_reply: bool = False,
    ) -> None:
        self._inner = inner
        self._at = at
        self._after = after
        self._torn = torn
        self._error = error
        self._lose_reply = lose_reply
        self._dead = False
        self.mutations = 0  # changes asked for so far, the failed one included

    @property
    def url(self) -> str:
        """That of the inner backend."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner backend."""
        return self._inner.capabilities

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Pass on, or go wrong."""

        def change() -> None:
            self._inner.create(key, data, durable=durable)

        if self._is_due() and self._lose_reply:
            change()
            raise ConflictError("object exists", key=key, url=self.url)
        self._do(key, change)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Pass on, or go wrong."""
        self._is_due()
        self._do(key, lambda: self._inner.replace(key, data, durable=durable))

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Pass on, or go wrong, perhaps half-way."""
        if self._is_due() and self._torn and not self._after:
            part = b"".join(blocks)[: nbytes // 2]
            self._inner.write(key, [part], nbytes=len(part), durable=durable)
        self._do(key, lambda: self._inner.write(key, blocks, nbytes=nbytes, durable=durable))

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Pass on."""
        self._check_alive()
        return self._inner.read(key, offset, nbytes)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Pass on."""
        self._check_alive()
        self._inner.read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Pass on."""
        self._check_alive()
        return self._inner.map(key, offset, nbytes)

    def list(self, prefix: str) -> dict[str, Entry]:
        """Pass on."""
        self._check_alive()
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        """Pass on, or go wrong."""
        self._is_due()
        self._do(key, lambda: self._inner.delete(key))

    def _check_alive(self) -> None:
        if self._dead:
            raise Crash("this process is dead")

    def _is_due(self) -> bool:
        """Count one more change; return whether it is the one that goes wrong."""
        self._check_alive()
        self.mutations += 1
        return self.mutations == self._at

    def _do(self, key: str, change: Callable[[], None]) -> None:
        """Make the change just counted, or go wrong before or after it."""
        if self.mutations != self._at:
            change()
            return
        if self._after:
            change()
        if self._error is None:
            self._dead = True
            raise Crash(f"at change {self._at}, key {key!r}")
        if isinstance(self._error, OSError) and not isinstance(self._error, CheckpointError):
            raise BackendError("injected", key=key, url=self.url) from self._error
        raise self._error
