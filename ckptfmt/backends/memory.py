"""A backend in a dictionary: the contract and nothing else, the reference for all others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, final

from ckptfmt.backends._keys import check_key, check_prefix, check_range, exactly, flat, inside
from ckptfmt.backends.base import Buffer, Capabilities, Entry
from ckptfmt.errors import ConflictError, NotFoundError

CAPABILITIES: Final = Capabilities(
    create_if_absent=True, strong_listing=True, ranged_read=True, durable=False, maps=True
)


@final
class MemoryBackend:
    """Objects in this process, gone with it: for tests, and for checkpoints on their way.

    Every change is one assignment under a lock, so that an exception at any point (a `Crash`
    of `ckptfmt.testing` included) leaves the old state or the new one.

    Args:
        clock: The storage's clock, seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """A fixed text: there is no address that another process could use."""
        return "memory:"

    @property
    def capabilities(self) -> Capabilities:
        """Everything but durability."""
        return CAPABILITIES

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store a copy of `data` if `key` is absent; see `Backend.create`."""
        self._put_new(key, bytes(flat(data)))

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store a copy of `data` in place of what is there; see `Backend.replace`."""
        check_key(key)
        stored = bytes(flat(data))
        with self._lock:
            self._objects[key] = stored, self._clock()

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Join the blocks and store them if `key` is absent; see `Backend.write`."""
        check_key(key)
        with self._lock:
            if key in self._objects:  # found out before the first block is asked for
                raise ConflictError("object exists", key=key, url=self.url)
        stored = bytearray()
        for view in exactly(key, blocks, nbytes):
            stored += view
        self._put_new(key, bytes(stored))

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return a range; see `Backend.read`."""
        return bytes(self._view(key, offset, nbytes))

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Copy a range into `target`; see `Backend.read_into`."""
        view = flat(target)
        view[:] = self._view(key, offset, view.nbytes)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Return a view of the stored bytes, no copy; see `Backend.map`."""
        return self._view(key, offset, nbytes)

    def list(self, prefix: str) -> dict[str, Entry]:
        """Return what is directly below `prefix`; see `Backend.list`."""
        start = check_prefix(prefix) + "/" if prefix else ""
        with self._lock:
            found = sorted(self._objects.items())
        return {
            key: Entry(key=key, nbytes=len(data), modified=modified)
            for key, (data, modified) in found
            if key.startswith(start) and "/" not in key[len(start) :]
        }

    def delete(self, key: str) -> None:
        """Forget an object; see `Backend.delete`."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _put_new(self, key: str, stored: bytes) -> None:
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise ConflictError("object exists", key=key, url=self.url)
            self._objects[key] = stored, self._clock()

    def _view(self, key: str, offset: int, nbytes: int | None) -> memoryview:
        check_key(key)
        check_range(key, offset, nbytes)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise NotFoundError("no such object", key=key, url=self.url)
        data = found[0]
        length = inside(key, offset, nbytes, len(data))
        return memoryview(data)[offset : offset + length]
