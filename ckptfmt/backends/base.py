"""The contract between ckptfmt and storage (spec §3): a flat mapping from keys to byte strings.

A backend knows nothing of checkpoints. `ckptfmt.testing.BackendConformance` has one test for
each sentence below; a third party's backend that passes it can be given to `ckptfmt.open`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes to be stored. A memoryview is contiguous; it is not kept after the call returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of a listing."""

    key: str  # whole key, as given to `read`
    nbytes: int  # length of the object
    modified: float  # seconds since the epoch by the STORAGE's clock, never by ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload in parts that was begun and not ended: no object yet, but space is taken."""

    key: str
    token: str  # the storage's name for it
    began: float  # seconds since the epoch by the STORAGE's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend guarantees beyond the contract; False also means "not known"."""

    create_if_absent: bool  # of several concurrent `create` of one key, at most one succeeds
    strong_listing: bool  # `list` shows every object whose creation was acknowledged
    ranged_read: bool  # a part of an object is read without moving the whole of it
    durable: bool  # what was acknowledged with `durable=True` survives a loss of power
    maps: bool  # `map` hands out the stored bytes without copying them
    requests: int = 1  # in flight at once that make it fast: latency, not bytes, is the cost


class Backend(Protocol):
    """A flat mapping from keys to immutable byte strings.

    Keys are relative: one or more components of `[A-Za-z0-9._-]`, joined by `/`, none of which
    starts with a dot; anything else is `UsageError`. Methods may be called from several
    threads, and in a child after a fork. Failures other than those listed raise `BackendError`
    with the storage's error as its cause; then the outcome of a change is unknown.
    """

    @property
    def url(self) -> str:
        """Where the objects are, for messages; holds no credentials."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can promise.

        Nothing is taken back while it lives. What is not known at first may be learned, once
        and for all, with the first `create`.
        """
        ...

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` under `key` if, and only if, the key is absent.

        All or nothing: no reader ever sees a part, and a crash of the process leaves none. On
        return the object is visible to every reader and, unless `durable` is False, durable:
        it survives a loss of power, which before the return leaves all or nothing as well.

        Raises:
            ConflictError: the key exists; its object is unchanged.
        """
        ...

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` under `key`, whether or not the key exists.

        Atomic: every reader sees the old object or the new one, never a mixture and never
        none; so does every reader after a crash, or a loss of power if `durable`. Durable on
        return, as in `create`.
        """
        ...

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Store the concatenation of `blocks` under `key`, which must be absent.

        For large objects under names that nobody else uses. Other readers may see the key
        before the call returns, and a crash may leave a part of the object under it. Durable
        on return, as in `create`. An exception raised by `blocks` propagates unchanged and
        leaves no object.

        Args:
            blocks: Taken one at a time by the calling thread. A block must stay unchanged
                until the call returns: some are gathered and written together.
            nbytes: Sum of the lengths of the blocks, known before the first one.

        Raises:
            ConflictError: the key exists; its object is unchanged.
            BackendError: the blocks have more or less than `nbytes` bytes; no object is left.
        """
        ...

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return exactly `nbytes` bytes from `offset`, or the rest if `nbytes` is None.

        Raises:
            NotFoundError: no such key.
            IntegrityError: the range ends beyond the object; never a short read.
        """
        ...

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target`, which is contiguous and writable, with the bytes from `offset`.

        Raises:
            NotFoundError: no such key.
            IntegrityError: the range ends beyond the object; `target` is then undefined.
        """
        ...

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Return a read-only view of `nbytes` bytes from `offset`.

        Without a copy where `capabilities.maps` is True, else like `read`. The view stays
        valid as long as it is referenced, also after the object was deleted.

        Raises:
            NotFoundError: no such key.
            IntegrityError: the range ends beyond the object.
        """
        ...

    def list(self, prefix: str) -> dict[str, Entry]:
        """Return the objects directly below the folder `prefix`, by key.

        Complete, from the storage and not from a cache; a missing folder is empty. Objects
        that are not complete yet because of a `create` or `replace` under way, now or when
        the machine died, never show.

        Args:
            prefix: A folder such as `manifests`, without a final `/`; "" is the top folder.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object under `key`; a key that does not exist is fine.

        Atomic. Not durable: after a loss of power the object may be back, until the next
        durable change in the same folder.
        """
        ...


@runtime_checkable
class Uploads(Protocol):
    """What a backend offers beside `Backend` whose storage keeps the parts of dead uploads.

    Most need not: a file system keeps none, some services drop them after a week.
    """

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """Return the uploads begun and not ended of keys directly below the folder `prefix`.

        Raises:
            BackendError: storage failed, or refuses to tell.
        """
        ...

    def end(self, upload: Upload) -> None:
        """Give an upload up and free its parts: whoever goes on with it fails.

        Raises:
            NotFoundError: it was ended meanwhile.
        """
        ...


@runtime_checkable
class BlockReads(Protocol):
    """What a backend offers beside `Backend` whose reads cost little beside their bytes.

    Who digests what is read reads it in blocks that still lie in the processor's cache then.
    """

    def read_each(
        self, key: str, offset: int, targets: Iterable[memoryview]
    ) -> Iterator[memoryview]:
        """Fill one target after the other with the bytes from `offset` on.

        Yields:
            Each target when it is filled; the next one may be the same memory.

        Raises:
            NotFoundError: no such key.
            IntegrityError: the range ends beyond the object; that target is then undefined.
        """
        ...
