"""A folder of this machine in front of slower storage: what was read stays at hand.

Only what cannot change is kept: data files, whose names are never reused, and manifests and
annotations as long as a listing of the storage shows them unchanged. Listings, intents and all
changes go straight through, so that no state is seen that no longer exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, final

from ckptfmt.backends._keys import flat
from ckptfmt.backends._urls import local_path
from ckptfmt.backends.base import (
    Backend,
    Buffer,
    Capabilities,
    Entry,
    Upload,
    Uploads,
)
from ckptfmt.errors import UsageError

_log: Final = logging.getLogger("ckptfmt")

IMMUTABLE: Final = "data/"
LISTED: Final = ("manifests/", "annotations/")  # kept while a listing shows them unchanged
DIGEST_NBYTES: Final = 32
SUFFIX: Final = ".range"
DEFAULT_NBYTES: Final = 10 * 2**30


@final
class CachedBackend:
    """`inner`, with the ranges that were read kept in a folder; see `Backend`.

    Several processes may share a folder: each range is one file, which appears whole under a
    name made of URL, key and range, with its SHA-256 in front. A damaged one is read again
    from the storage. The files least lately used go when there is too much. A folder that
    cannot be written is a warning, and no reason to fail.

    Args:
        folder: Created when needed, for the user alone: what is read may be private. Servers
            that differ by their options only, and not by their URL, need a folder each.
        max_nbytes: Of all files in the folder. Processes that fill it at the same time may
            each exceed it by a sixteenth.

    Raises:
        UsageError: no such folder can be: a URL, the store itself; less than 1 MiB.
    """

    def __init__(
        self,
        inner: Backend,
        folder: str | os.PathLike[str],
        *,
        max_nbytes: int = DEFAULT_NBYTES,
    ) -> None:
        if not isinstance(max_nbytes, int) or max_nbytes < 2**20:
            raise UsageError("expected a cache of at least 1 MiB", found=max_nbytes)
        path = local_path(folder)
        if not path:
            raise UsageError("a cache is a folder of this machine", found=folder)
        self._inner = inner
        self._folder = os.path.abspath(path)
        if self._folder == inner.url:
            raise UsageError("a store is no cache of its own", url=inner.url)
        self._max = max_nbytes
        self._unswept = max_nbytes  # bytes written since the folder was looked at: at once
        self._entries: dict[str, Entry] = {}  # as the last listings showed them
        self._warned = False

    @property
    def url(self) -> str:
        """That of the storage."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the storage, without its maps."""
        return dataclasses.replace(self._inner.capabilities, maps=False)

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Pass on."""
        self._entries.pop(key, None)
        self._inner.create(key, data, durable=durable)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Pass on."""
        self._entries.pop(key, None)
        self._inner.replace(key, data, durable=durable)

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Pass on."""
        self._inner.write(key, blocks, nbytes=nbytes, durable=durable)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return a range from the folder, else from the storage."""
        path = self._path(key, offset, nbytes)
        if path is None:
            return self._inner.read(key, offset, nbytes)
        with self._found(path) as found:
            if found is not None:
                return found
        data = self._inner.read(key, offset, nbytes)
        self._keep(path, memoryview(data))
        return data

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fill `target` from the folder, else from the storage."""
        view = flat(target)
        path = self._path(key, offset, view.nbytes)
        if path is None:
            self._inner.read_into(key, offset, target)
            return
        with self._found(path) as found:
            if found is not None and len(found) == view.nbytes:
                view[:] = found
                return
        self._inner.read_into(key, offset, target)
        self._keep(path, view)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Return a range, as `read` does."""
        return memoryview(self.read(key, offset, nbytes))

    def list(self, prefix: str) -> dict[str, Entry]:
        """Ask the storage."""
        found = self._inner.list(prefix)
        self._entries.update(found)
        for gone in [k for k in self._entries if k.rpartition("/")[0] == prefix]:
            if gone not in found:
                self._entries.pop(gone, None)
        return found

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """Ask the storage, if it keeps any."""
        return self._inner.uploads(prefix) if isinstance(self._inner, Uploads) else []

    def end(self, upload: Upload) -> None:
        """Pass on."""
        if isinstance(self._inner, Uploads):
            self._inner.end(upload)

    def delete(self, key: str) -> None:
        """Pass on."""
        self._entries.pop(key, None)
        self._inner.delete(key)

    def _path(self, key: str, offset: int, nbytes: int | None) -> str | None:
        """Return the file of a range; None for what is not kept."""
        state: tuple[object, ...] = ()
        if key.startswith(LISTED):
            entry = self._entries.get(key)
            if entry is None:
                return None
            state = entry.nbytes, entry.modified
        elif not key.startswith(IMMUTABLE):
            return None
        if nbytes is not None and nbytes > self._max // 4:
            return None
        name = repr((self.url, key, offset, nbytes, *state))
        return os.path.join(self._folder, hashlib.sha256(name.encode()).hexdigest() + SUFFIX)

    @contextlib.contextmanager
    def _found(self, path: str) -> Iterator[bytes | None]:
        """Yield the bytes of a kept range, or None; remove a file that is damaged."""
        data: bytes | None = None
        with self._harmless():
            try:
                with open(path, "rb") as file:
                    digest, data = file.read(DIGEST_NBYTES), file.read()
            except FileNotFoundError:
                pass
            else:
                if hashlib.sha256(data).digest() != digest:
                    data = None
                    _log.warning("cache file %s is damaged and removed", path)
                    os.unlink(path)
                else:
                    os.utime(path)  # used lately
        yield data

    def _keep(self, path: str, data: memoryview) -> None:
        """Write a range beside its name, then give it the name."""
        if data.nbytes > self._max // 4:
            return
        temporary = f"{path}.{secrets.token_hex(8)}"
        with self._harmless():
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(hashlib.sha256(data).digest())
                    file.write(data)
                os.replace(temporary, path)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            self._unswept += data.nbytes + DIGEST_NBYTES
            if self._unswept > self._max // 16:
                self._sweep()
                self._unswept = 0

    def _sweep(self) -> None:
        """Remove the files least lately used, and what dead processes left."""
        with os.scandir(self._folder) as scan:
            files = []
            for item in scan:
                if SUFFIX in item.name:
                    with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
                        status = item.stat(follow_symlinks=False)
                        files.append((status.st_mtime, status.st_size, item.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max - self._max // 16:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Go on without the folder when it fails; say so once."""
        try:
            yield
        except FileNotFoundError:
            pass  # swept by another process in this moment
        except OSError as error:
            if not self._warned:
                self._warned = True
                reason = error.strerror or type(error).__name__
                _log.warning("cache folder %s is not used: %s", self._folder, reason)
