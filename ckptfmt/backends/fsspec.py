"""Any fsspec URL: buckets, servers, other people's file systems (spec §3).

Few calls of fsspec are used, those that behave alike everywhere. Not used, on purpose:
`open(…, "wb")`, which commits what was written so far when an exception passes through it;
transactions; `glob`; `exists`, which answers from caches; ranges counted from the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import math
import os
import urllib.parse
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import BinaryIO, Final, Protocol, cast, final

from fsspec.core import url_to_fs

from ckptfmt.backends._keys import (
    check_key,
    check_prefix,
    check_range,
    exactly,
    flat,
    inside,
    is_component,
)
from ckptfmt.backends.base import Buffer, Capabilities, Entry
from ckptfmt.errors import (
    BackendError,
    CheckpointError,
    ConflictError,
    NotFoundError,
    UsageError,
)

UNKNOWN: Final = Capabilities(
    create_if_absent=False, strong_listing=False, ranged_read=False, durable=False, maps=False
)
CLOUD: Final = Capabilities(
    create_if_absent=True, strong_listing=True, ranged_read=True, durable=True, maps=False
)
KNOWN: Final[Mapping[str, Capabilities]] = {
    **dict.fromkeys(("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"), CLOUD),
    # It looks, then stores: two threads can both create.
    "memory": dataclasses.replace(CLOUD, create_if_absent=False, durable=False),
}
MODIFIED_FIELDS: Final = (
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "created",
)
# Those that name a user or container before the `@`; everywhere else it can be a token.
NAMED_USERS: Final = frozenset({"abfs", "abfss", "az", "sftp", "ssh", "smb", "hdfs"})
# Scheme → the extra of this distribution that brings its package.
EXTRAS: Final = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure",
    "az": "azure", "adl": "azure", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip
MISSING: Final = (FileNotFoundError, NotADirectoryError)
EXISTS_STATUS: Final = frozenset({409, 412})


class FileSystem(Protocol):
    """The calls of fsspec that are used."""

    def pipe_file(self, path: str, value: bytes, **options: str) -> None: ...
    def cat_file(self, path: str, **range_: int) -> bytes: ...
    def ls(self, path: str, detail: bool) -> list[dict[str, object]]: ...
    def info(self, path: str) -> dict[str, object]: ...
    def rm_file(self, path: str) -> None: ...
    def makedirs(self, path: str, exist_ok: bool) -> None: ...
    def invalidate_cache(self) -> None: ...
    def open(self, path: str, mode: str) -> BinaryIO: ...


@final
class FsspecBackend:
    """Objects behind a URL of fsspec; see `Backend` for what each method guarantees.

    A data file is assembled in memory and sent as a whole, because that is the one way of
    fsspec that never leaves a part behind after an exception: memory for `nbytes` of each
    `write` in flight is needed. Where the storage has no create-if-absent, `create` looks
    first; then only one writer at a time is safe, and `capabilities` says so. Where an upload
    is no atomic operation (a file system behind SFTP, say), a reader can see a part of it.

    Args:
        storage_options: Handed to the file system; never logged, never part of `url`.

    Raises:
        UsageError: unknown scheme, or a chain of them (`simplecache::s3://…`): a cache in
            front of a store would show states that no longer exist.
        BackendError: the package for the scheme is missing, or it refused the options.
    """

    def __init__(
        self, url: str, *, storage_options: Mapping[str, object] | None = None
    ) -> None:
        if "::" in url:  # not shown: it may hold credentials in more than one place
            raise UsageError("chained URLs are not supported", scheme=url.partition("::")[0])
        self._url = without_credentials(url)
        self._address = url
        self._options = dict(storage_options or {})
        self._scheme = url.partition("://")[0]
        self._resolved = self._resolve()
        self._capabilities = self._known()

    @property
    def url(self) -> str:
        """The URL without user, password, query and fragment."""
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """What is known of the scheme; a server of one's own making promises less."""
        return self._capabilities

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by one conditional upload; see `Backend.create`."""
        fs, path = self._at(check_key(key))
        self._put_new(fs, path, key, bytes(flat(data)))

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by one upload; see `Backend.replace`."""
        fs, path = self._at(check_key(key))
        with _Errors(key, self._url):
            self._make_folder(fs, path)
            fs.pipe_file(path, bytes(flat(data)))

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Join the blocks and upload them; see `Backend.write`."""
        fs, path = self._at(check_key(key))
        self._put_new(fs, path, key, b"".join(exactly(key, blocks, nbytes)))
        with _Errors(key, self._url):
            found = _size(fs, path)
            if found != nbytes:  # some clients damage an upload and report success
                fs.rm_file(path)
                reason = "storage kept another length than was sent"
                raise BackendError(reason, key=key, url=self._url, expected=nbytes, found=found)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Fetch a range; see `Backend.read`."""
        check_range(key, offset, nbytes)
        fs, path = self._at(check_key(key))
        with _Errors(key, self._url, reading=True):
            if nbytes is None and not offset:
                return fs.cat_file(path)
            if not nbytes:  # the rest, or nothing: the object must be long enough
                nbytes = inside(key, offset, nbytes, _size(fs, path))
                if not nbytes:
                    return b""
            try:
                data = fs.cat_file(path, start=offset, end=offset + nbytes)
            except OSError:
                inside(key, offset, nbytes, _size(fs, path))  # s3fs: beyond the end is EINVAL
                raise
            if len(data) == nbytes:
                return data
            inside(key, offset, nbytes, _size(fs, path))
            with fs.open(path, "rb") as file:  # sshfs ignores the range of `cat_file`
                file.seek(offset)
                data = file.read(nbytes)
            if len(data) == nbytes:
                return data
        raise BackendError(
            "storage returned another length than asked for",
            key=key,
            url=self._url,
            offset=offset,
            expected=nbytes,
            found=len(data),
        )

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fetch a range and copy it; see `Backend.read_into`."""
        view = flat(target)
        view[:] = self.read(key, offset, view.nbytes)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Fetch a range; see `Backend.map`."""
        return memoryview(self.read(key, offset, nbytes))

    def list(self, prefix: str) -> dict[str, Entry]:
        """Ask the storage for one folder; see `Backend.list`."""
        check_prefix(prefix)
        fs, folder = self._at(prefix)
        found: dict[str, Entry] = {}
        with _Errors(prefix, self._url):
            fs.invalidate_cache()
            try:
                items = fs.ls(folder, detail=True)
            except MISSING:
                return found
            for item in items:
                path = str(item["name"]).rstrip("/")
                name = path.rpartition("/")[2]
                itself = path.strip("/") == folder.strip("/")
                if itself or item["type"] == "directory" or not is_component(name):
                    continue
                key = f"{prefix}/{name}" if prefix else name
                nbytes = cast(int, item["size"])
                found[key] = Entry(key=key, nbytes=nbytes, modified=_modified(item))
        return found

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        fs, path = self._at(check_key(key))
        with _Errors(key, self._url), contextlib.suppress(*MISSING):
            fs.rm_file(path)

    def _put_new(self, fs: FileSystem, path: str, key: str, data: bytes) -> None:
        with _Errors(key, self._url):
            self._make_folder(fs, path)
            if _takes_mode(fs):
                fs.pipe_file(path, data, mode="create")
                return
            fs.invalidate_cache()
            try:
                fs.info(path)
            except MISSING:
                fs.pipe_file(path, data)
            else:
                raise ConflictError("object exists", key=key, url=self._url)

    def _make_folder(self, fs: FileSystem, path: str) -> None:
        # Never on a bucket: with s3fs a mistyped bucket would come into being.
        if self._scheme not in KNOWN:
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _at(self, key: str) -> tuple[FileSystem, str]:
        """Return the file system and the path of a key or folder in it."""
        pid, fs, root = self._resolved
        if pid != os.getpid():  # clients keep threads and sockets, which a fork does not copy
            self._resolved = pid, fs, root = self._resolve()
        return fs, f"{root}/{key}" if key else root

    def _resolve(self) -> tuple[int, FileSystem, str]:
        with _Errors("", self._url):
            try:
                fs, root = url_to_fs(self._address, **self._options)
            except ValueError as error:
                raise UsageError("no file system for this URL", url=self._url) from error
        return os.getpid(), cast(FileSystem, fs), str(root).rstrip("/")

    def _known(self) -> Capabilities:
        known = KNOWN.get(self._scheme, UNKNOWN)
        fs = self._resolved[1]
        if getattr(fs, "endpoint_url", None) or "endpoint_url" in str(self._options):
            return dataclasses.replace(known, create_if_absent=False, strong_listing=False)
        if not _takes_mode(fs):
            return dataclasses.replace(known, create_if_absent=False)
        return known


def without_credentials(url: str) -> str:
    """Return `url` without what may be secret: user and password, query, fragment."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user or parts.scheme not in NAMED_USERS:
        user = at = ""
    return f"{parts.scheme}://{user}{at}{host}{parts.path}"


class _Errors:
    """Turns whatever a client raises into our errors; their texts may hold secrets.

    A context manager and no `except` clause: clients raise types of their own, of which no
    base class but Exception is common, and those may only be known after they are imported.
    """

    def __init__(self, key: str, url: str, *, reading: bool = False) -> None:
        self._where = {"key": key, "url": url}
        self._reading = reading

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, CheckpointError):
            return
        if self._reading and isinstance(error, MISSING):
            raise NotFoundError("no such object", **self._where) from error
        if not self._reading and _says_exists(error):
            raise ConflictError("object exists", **self._where) from error
        if isinstance(error, ImportError):
            scheme = str(self._where.get("url", "")).partition("://")[0]
            extra = EXTRAS.get(scheme)
            way_out = f": pip install 'ckptfmt[{extra}]'" if extra else ""
            reason = f"the package for {scheme}:// is not installed{way_out}"
            raise BackendError(reason, **self._where) from error
        raise BackendError(
            "storage failed", error=type(error).__name__, **self._where
        ) from error


def _says_exists(error: BaseException | None) -> bool:
    """Return whether an upload was refused because the key is taken."""
    while error is not None:
        if isinstance(error, FileExistsError) or _status(error) in EXISTS_STATUS:
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> object:
    """Return the HTTP status that a client noted on its error, wherever it noted it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if response is not None:
            return response
    for name in ("status", "status_code", "code"):
        found = getattr(error, name, None)
        if isinstance(found, int):
            return found
    return None


def _takes_mode(fs: FileSystem) -> bool:
    """Return whether `pipe_file` knows `mode="create"`; others would overwrite silently."""
    return "mode" in inspect.signature(fs.pipe_file).parameters


def _size(fs: FileSystem, path: str) -> int:
    fs.invalidate_cache()
    return cast(int, fs.info(path)["size"])


def _modified(item: Mapping[str, object]) -> float:
    """Return the storage's time of an object; without one it is never old."""
    for field in MODIFIED_FIELDS:
        found = item.get(field)
        if isinstance(found, str):
            try:
                found = datetime.datetime.fromisoformat(found)
            except ValueError:
                continue
        if isinstance(found, datetime.datetime):
            return found.timestamp()
        if isinstance(found, int | float):
            return float(found)
    return math.inf
