"""A folder of a local or network file system (spec §3, §8.2).

A small object comes into being by `os.link`: temporary file, sync, link to the final name,
which fails if that is taken, sync of the folder. A data file is written under its final name,
which nobody else uses, and synced with its folder before the call returns.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Final, final

from ckptfmt.backends import _syscalls
from ckptfmt.backends._keys import (
    check_key,
    check_prefix,
    check_range,
    exactly,
    flat,
    inside,
    is_component,
)
from ckptfmt.backends._names import discard, hidden, name_new, remove_leftovers
from ckptfmt.backends._write import DIRECT_NBYTES, write_file
from ckptfmt.backends.base import Buffer, Capabilities, Entry
from ckptfmt.errors import BackendError, ConflictError, IntegrityError, NotFoundError

CAPABILITIES: Final = Capabilities(
    create_if_absent=True, strong_listing=True, ranged_read=True, durable=True, maps=True
)
READ_NBYTES: Final = 1 << 30  # one read call; Linux moves at most 2 GiB in one


@final
class LocalBackend:
    """Objects are the files below a folder; see `Backend` for what each method guarantees.

    The folder and those in it are created by the first write. Modes follow the umask. No
    descriptor, thread or lock outlives a call (mappings excepted, one descriptor per file), so
    that a fork at any time is harmless. A symbolic link is followed in a folder, never as the
    last component of a key: an object lies in the store.

    Where the file system has neither hard links nor an exclusive rename, `create` falls back to
    an exclusive open of the final name: still one winner, but a reader may see a part, and a
    crash may leave one.

    Args:
        path: The folder; relative to the current one of this moment.
        direct_nbytes: Durable files from this length on are written past the page cache.
        check: Returns a key or raises `UsageError`; by default the grammar of the contract.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        direct_nbytes: int = DIRECT_NBYTES,
        check: Callable[[str], str] = check_key,
    ) -> None:
        self._root = os.path.abspath(os.fspath(path))
        self._check = check
        self._direct_nbytes = direct_nbytes
        self._synced: set[str] = set()  # folders whose own names are known to be durable
        self._maps: weakref.WeakValueDictionary[tuple[int, ...], mmap.mmap] = (
            weakref.WeakValueDictionary()
        )

    @property
    def url(self) -> str:
        """The absolute path."""
        return self._root

    @property
    def capabilities(self) -> Capabilities:
        """Everything; durability is that of the file system's sync."""
        return CAPABILITIES

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by link if `key` is absent; see `Backend.create`."""
        with self._errors(key):
            path = self._prepared(key, durable)
            temporary = self._temporary(path, data, durable)
            try:
                self._publish(temporary, path, data, durable)
            finally:
                discard(temporary)
            if durable:
                _syscalls.sync_folder(os.path.dirname(path))

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by rename; see `Backend.replace`."""
        with self._errors(key):
            path = self._prepared(key, durable)
            temporary = self._temporary(path, data, durable)
            try:
                _syscalls.replace(temporary, path)
            except OSError:
                discard(temporary)
                raise
            if durable:
                _syscalls.sync_folder(os.path.dirname(path))

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Stream the blocks into a new file; see `Backend.write` and `_write.write_file`."""
        guard = functools.partial(self._errors, key)
        with guard():
            path = self._prepared(key, durable)
        write_file(
            path,
            exactly(key, blocks, nbytes),
            nbytes,
            durable=durable,
            guard=guard,
            direct_nbytes=self._direct_nbytes,
        )
        if durable:
            with guard():
                try:
                    _syscalls.sync_folder(os.path.dirname(path))
                except OSError:
                    discard(path)
                    raise

    def publish(
        self,
        key: str,
        blocks: Iterable[Buffer],
        *,
        nbytes: int,
        overwrite: bool,
        durable: bool = True,
    ) -> None:
        """Write a file of any length that appears whole, under a name that others use.

        Without `overwrite` an existing file stays as it is; on a file system that has neither
        hard links nor an exclusive rename, one that appears in the last moment is replaced.

        Raises:
            ConflictError: the file exists.
            BackendError: storage failed; no part of the file is left.
        """
        guard = functools.partial(self._errors, key)
        with guard():
            path = self._prepared(key, durable)
            if not overwrite and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, "file exists", path)
            temporary = hidden(path)
        write_file(
            temporary,
            exactly(key, blocks, nbytes),
            nbytes,
            durable=durable,
            guard=guard,
            direct_nbytes=self._direct_nbytes,
        )
        with guard():
            try:
                if overwrite or not name_new(temporary, path):
                    _syscalls.replace(temporary, path)
            finally:
                discard(temporary)
            if durable:
                _syscalls.sync_folder(os.path.dirname(path))

    def nbytes(self, key: str) -> int:
        """Return the length of one file.

        Raises:
            NotFoundError: no such file.
        """
        with self._errors(key), self._opened(key) as (_, size):
            return size

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Return a range; see `Backend.read`."""
        check_range(key, offset, nbytes)
        with self._errors(key), self._opened(key) as (fd, size):
            target = bytearray(inside(key, offset, nbytes, size))
            self._fill(key, fd, offset, memoryview(target))
        return bytes(target)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Read a range straight into `target`; see `Backend.read_into`."""
        for _ in self.read_each(key, offset, (target,)):
            pass

    def read_each(
        self, key: str, offset: int, targets: Iterable[memoryview]
    ) -> Iterator[memoryview]:
        """Read a range block by block, the file opened once; see `BlockReads.read_each`."""
        with self._errors(key), self._opened(key) as (fd, size):
            for target in targets:
                view = flat(target)
                check_range(key, offset, view.nbytes)
                inside(key, offset, view.nbytes, size)
                self._fill(key, fd, offset, view)
                offset += view.nbytes
                yield view

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Map the file, once for all views of it that live; see `Backend.map`.

        A file that another program shortens afterwards kills the process that touches the
        lost part (SIGBUS): data files are immutable, and nobody may cut them.
        """
        check_range(key, offset, nbytes)
        with self._errors(key), self._opened(key) as (fd, size):
            inside(key, offset, nbytes, size)
            if not nbytes:  # an empty file cannot be mapped
                return memoryview(b"")
            found = os.fstat(fd)
            identity = found.st_dev, found.st_ino, found.st_mtime_ns, size
            mapping = self._maps.get(identity)
            if mapping is None:
                # Whole, because Python keeps a descriptor for each mapping: one per file will
                # do, one per array would exhaust them.
                mapping = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
                self._maps[identity] = mapping
        return memoryview(mapping)[offset : offset + nbytes]

    def list(self, prefix: str) -> dict[str, Entry]:
        """Return the files in one folder; see `Backend.list`."""
        start = check_prefix(prefix) + "/" if prefix else ""
        found: dict[str, Entry] = {}
        with self._errors(prefix):
            try:
                scan = os.scandir(os.path.join(self._root, prefix))
            except FileNotFoundError:
                return found
            except NotADirectoryError as error:
                raise BackendError(
                    "a file, where the folder of a store was expected"
                    " (a checkpoint in one file is called *.safetensors)",
                    url=self.url,
                    key=prefix,
                ) from error
            with scan:
                for item in scan:
                    if not is_component(item.name) or item.is_dir(follow_symlinks=False):
                        continue
                    # Deleted since the folder was read: as if listed a moment later.
                    with contextlib.suppress(FileNotFoundError):
                        status = item.stat(follow_symlinks=False)
                        key = start + item.name
                        found[key] = Entry(
                            key=key, nbytes=status.st_size, modified=status.st_mtime
                        )
        return found

    def delete(self, key: str) -> None:
        """Remove a file; see `Backend.delete`."""
        with self._errors(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _syscalls.unlink(self._path(key))

    def _path(self, key: str) -> str:
        return os.path.join(self._root, self._check(key))

    def _prepared(self, key: str, durable: bool) -> str:
        """Return the path of a key whose folder exists, durably if that was asked for."""
        path = self._path(key)
        folder = os.path.dirname(path)
        if durable and folder not in self._synced:
            self._make(folder, durable)
            remove_leftovers(folder)
        elif not os.path.isdir(folder):  # new, or removed by somebody since
            self._make(folder, durable)
        return path

    def _make(self, folder: str, durable: bool) -> None:
        """Create a folder and those above it, and sync all names from the root's down.

        Also the names of those that exist: whoever made them may not have come to that yet.
        """
        parent = os.path.dirname(folder)
        try:
            _syscalls.make_folder(folder)
        except FileExistsError:
            if len(folder) > len(self._root) and parent not in self._synced:
                self._make(parent, durable)
        except FileNotFoundError:
            self._make(parent, durable)
            with contextlib.suppress(FileExistsError):
                _syscalls.make_folder(folder)
        if durable:
            # Above the store there are folders that we may use, but not open.
            with contextlib.suppress(PermissionError):
                _syscalls.sync_folder(parent)
            self._synced.add(folder)

    def _temporary(self, path: str, data: Buffer, durable: bool) -> str:
        """Write a file beside `path` whose name no listing shows."""
        temporary = hidden(path)
        self._fill_new(temporary, data, durable)
        return temporary

    def _fill_new(self, path: str, data: Buffer, durable: bool) -> None:
        view = flat(data)
        blocks = iter([view] if view.nbytes else [])
        guard = contextlib.nullcontext  # the caller translates errors
        write_file(path, blocks, view.nbytes, durable=durable, guard=guard)

    def _publish(self, temporary: str, path: str, data: Buffer, durable: bool) -> None:
        """Give the temporary file its final name, or raise FileExistsError."""
        if not name_new(temporary, path):
            self._fill_new(path, data, durable)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a file for reading; yield its descriptor and its length."""
        try:
            fd = _syscalls.open_read(self._path(key))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError("no such object", key=key, url=self.url) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                reason = "object is a symbolic link, which is not followed"
                raise BackendError(reason, key=key, url=self.url) from error
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BackendError("not a regular file", key=key, url=self.url)
            yield fd, status.st_size
        finally:
            _syscalls.close(fd)

    def _fill(self, key: str, fd: int, offset: int, target: memoryview) -> None:
        filled = 0
        while filled < target.nbytes:
            part = target[filled : filled + READ_NBYTES]
            count = _syscalls.read_at(fd, part, offset + filled)
            if not count:
                raise IntegrityError(
                    "object became shorter while it was read",
                    key=key,
                    offset=offset,
                    expected=target.nbytes,
                    found=filled,
                )
            filled += count

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn an OSError of the storage into a BackendError that says where."""
        try:
            yield
        except BackendError:  # an OSError, too: translated already
            raise
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise ConflictError("object exists", key=key, url=self.url) from error
            reason = error.strerror or type(error).__name__
            raise BackendError(reason, key=key, url=self.url) from error
