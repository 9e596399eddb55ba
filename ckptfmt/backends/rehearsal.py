"""What changes would do to a store, without doing them: a dry run is the real run over this."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Sequence
from typing import final

from ckptfmt.backends.base import Backend, Buffer, Capabilities, Entry, Upload, Uploads
from ckptfmt.backends.memory import MemoryBackend
from ckptfmt.errors import ConflictError


@final
class Rehearsal:
    """`inner` as it would be after the changes asked for here, which reach only this object.

    What others change in `inner` meanwhile shows, except where a change here hides it.

    Args:
        now: The time of all changes made here, seconds since the epoch by the storage's clock.
    """

    def __init__(self, inner: Backend, *, now: float) -> None:
        self._inner = inner
        self._made = MemoryBackend(clock=lambda: now)
        self._touched: set[str] = set()  # keys made, replaced or deleted here
        self._ended: set[str] = set()  # uploads, by the storage's names

    @property
    def url(self) -> str:
        """That of the inner backend."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner backend, except that nothing done here lasts."""
        return dataclasses.replace(self._inner.capabilities, durable=False, maps=False)

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Remember an object; see `Backend.create`."""
        self._check_absent(key)
        self._made.create(key, data)
        self._touched.add(key)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Remember an object; see `Backend.replace`."""
        self._made.replace(key, data)
        self._touched.add(key)

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Remember an object, all of it in memory; see `Backend.write`."""
        self._check_absent(key)
        self._made.write(key, blocks, nbytes=nbytes)
        self._touched.add(key)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return a range; see `Backend.read`."""
        return self._holder(key).read(key, offset, nbytes)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target`; see `Backend.read_into`."""
        self._holder(key).read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Return a view; see `Backend.map`."""
        return self._holder(key).map(key, offset, nbytes)

    def list(self, prefix: str) -> dict[str, Entry]:
        """Return what would be directly below `prefix`; see `Backend.list`."""
        there = self._inner.list(prefix)
        found = {key: entry for key, entry in there.items() if key not in self._touched}
        return dict(sorted((found | self._made.list(prefix)).items()))

    def delete(self, key: str) -> None:
        """Hide an object; see `Backend.delete`."""
        self._made.delete(key)
        self._touched.add(key)

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """Return the uploads that would be left; see `Uploads.uploads`."""
        if not isinstance(self._inner, Uploads):
            return ()
        return [one for one in self._inner.uploads(prefix) if one.token not in self._ended]

    def end(self, upload: Upload) -> None:
        """Hide an upload; see `Uploads.end`."""
        self._ended.add(upload.token)

    def _holder(self, key: str) -> Backend:
        return self._made if key in self._touched else self._inner

    def _check_absent(self, key: str) -> None:
        if key not in self._touched and key in self._inner.list(posixpath.dirname(key)):
            raise ConflictError("object exists", key=key, url=self.url)
