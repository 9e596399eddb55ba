"""Any fsspec URL: buckets, servers, other people's file systems (spec §3).

The contract lives here: keys, ranges, listings, forks, errors. How a file system is asked for
it lives in `_client`, for those of which more is known in `_clouds`; uploads in parts are in
`_upload`, what clients raise in `_failures`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast, final

from fsspec.core import url_to_fs
from fsspec.registry import get_filesystem_class

from ckptfmt.backends._client import Client, modified
from ckptfmt.backends._clouds import client_for, options_for
from ckptfmt.backends._failures import MISSING, Blocks, Failures, OnFailure, lacks_bucket
from ckptfmt.backends._keys import (
    check_key,
    check_range,
    exactly,
    flat,
    inside,
)
from ckptfmt.backends._secrets import secrets
from ckptfmt.backends._upload import Policy
from ckptfmt.backends._urls import checked, without_credentials
from ckptfmt.backends.base import Buffer, Capabilities, Entry, Upload
from ckptfmt.errors import BackendError, ConflictError, UsageError

_log: Final = logging.getLogger("ckptfmt")


@final
class FsspecBackend:
    """Objects behind a URL of fsspec; see `Backend` for what each method guarantees.

    A data file goes up in parts of 16 MiB, at most eight on their way (`policy`), where the
    storage takes parts; elsewhere it is streamed in order. Where the storage has no
    create-if-absent, `create` looks first; then only one writer at a time is safe, and
    `capabilities` says so. Where an upload is no atomic operation (WebDAV, say), a reader can
    see a part of it.

    The file system belongs to this backend alone: nobody else's listings are in its cache,
    and it keeps none itself. A child makes its own after a fork.

    Args:
        storage_options: Handed to the file system; never logged, never part of `url`.
        policy: Sizes, tries and time-outs of requests.
        check: Which keys there are; files that others wrote have names of their own.

    Raises:
        UsageError: unknown scheme, or a chain of them (`simplecache::s3://…`); a control
            character.
        BackendError: the package for the scheme is missing, or it refused the options.
    """

    def __init__(
        self,
        url: str,
        *,
        storage_options: Mapping[str, object] | None = None,
        policy: Policy | None = None,
        check: Callable[[str], str] = check_key,
    ) -> None:
        self._check = check
        self._address = checked(url)
        self._url = without_credentials(self._address)
        self._options = dict(storage_options or {})
        self._secrets = secrets(url, self._options)
        self._policy = policy or Policy()
        self._inherited: list[Client] = []
        self._resolved = self._resolve()
        self._doubted = self._is_unknown_server()
        self._capabilities = self._known()

    @property
    def url(self) -> str:
        """The URL without user, password, query and fragment."""
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        """What is known of the scheme, or was learned by the first `create`.

        A server of one's own making (`endpoint_url`) is trusted with create-if-absent after it
        was seen to refuse one.
        """
        return self._capabilities

    def create(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by one conditional upload; see `Backend.create`."""
        client, path = self._at(self._check(key))
        content = bytes(flat(data))
        with self._failures(key):
            client.prepare(path)
            client.create(path, content)
        if self._doubted:
            self._doubted = False
            self._create_again(client, path, content)

    def _create_again(self, client: Client, path: str, content: bytes) -> None:
        """Learn whether a server nobody knows heeds the condition: it must refuse this.

        One that does not overwrites the object with its own bytes, which changes nothing.
        """
        try:
            with self._failures(""):
                client.create(path, content)
        except ConflictError:
            promised = client.known.create_if_absent
            self._capabilities = dataclasses.replace(
                self._capabilities, create_if_absent=promised
            )
        except BackendError as error:
            _log.debug("not learned whether %s heeds conditions: %s", self._url, error)

    def replace(self, key: str, data: Buffer, *, durable: bool = True) -> None:
        """Store `data` by one upload; see `Backend.replace`."""
        client, path = self._at(self._check(key))
        with self._failures(key):
            client.prepare(path)
            client.replace(path, bytes(flat(data)))

    def write(
        self, key: str, blocks: Iterable[Buffer], *, nbytes: int, durable: bool = True
    ) -> None:
        """Upload the blocks as they come; see `Backend.write`."""
        client, path = self._at(self._check(key))
        own = Blocks(exactly(key, blocks, nbytes))
        with self._failures(key, own=own):
            client.prepare(path)
            client.write(path, own, nbytes)
            found = client.size(path)
            if found != nbytes:  # some clients damage an upload and report success
                client.fs.rm_file(path)
                reason = "storage kept another length than was sent"
                raise BackendError(reason, key=key, url=self._url, expected=nbytes, found=found)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Fetch a range; see `Backend.read`."""
        check_range(key, offset, nbytes)
        client, path = self._at(self._check(key))
        if nbytes is None and not offset:
            with self._failures(key, reading=True):
                return client.whole(path)
        return bytes(self._range(key, offset, nbytes))

    def _range(self, key: str, offset: int, nbytes: int | None) -> bytearray:
        check_range(key, offset, nbytes)
        client, path = self._at(self._check(key))
        if not nbytes:  # the rest, or nothing: the object must be long enough
            with self._failures(key, reading=True):
                nbytes = inside(key, offset, nbytes, client.size(path))
        found = bytearray(nbytes)
        self.read_into(key, offset, memoryview(found))
        return found

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fetch a range into `target`; see `Backend.read_into`."""
        view = flat(target)
        check_range(key, offset, view.nbytes)
        client, path = self._at(self._check(key))
        with self._failures(key, reading=True, offset=offset):
            if not view.nbytes:
                inside(key, offset, 0, client.size(path))
                return
            with OnFailure(lambda: inside(key, offset, view.nbytes, client.size(path))):
                found = client.into(path, offset, view)  # past the end: EINVAL, 416, nothing
            if found != view.nbytes:
                inside(key, offset, view.nbytes, client.size(path))
                raise BackendError(
                    "storage returned another length than asked for",
                    key=key,
                    url=self._url,
                    offset=offset,
                    expected=view.nbytes,
                    found=found,
                )

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        """Fetch a range; see `Backend.map`."""
        return memoryview(self._range(key, offset, nbytes)).toreadonly()

    def list(self, prefix: str) -> dict[str, Entry]:
        """Ask the storage for one folder; see `Backend.list`."""
        self._prefix(prefix)
        client, folder = self._at(prefix)
        found: dict[str, Entry] = {}
        with self._failures(prefix):
            client.fs.invalidate_cache()
            try:
                items = client.fs.ls(folder, detail=True)
            except MISSING as error:
                if lacks_bucket(error):
                    raise
                return found
            for item in items:
                path = str(item["name"]).rstrip("/")
                name = path.rpartition("/")[2]
                itself = path.strip("/") == folder.strip("/")
                if itself or item["type"] == "directory" or not self._is_name(name):
                    continue
                key = f"{prefix}/{name}" if prefix else name
                size = item["size"]  # a web server's index does not say
                nbytes = client.size(path) if size is None else cast(int, size)
                found[key] = Entry(key=key, nbytes=nbytes, modified=modified(item))
        return found

    def uploads(self, prefix: str) -> Sequence[Upload]:
        """Ask the storage for dead uploads; see `Uploads.uploads`."""
        self._prefix(prefix)
        client, folder = self._at(prefix)
        found = []
        with self._failures(prefix):
            for path, token, began in client.uploads(folder):
                name = path.removeprefix(f"{folder}/")
                if path != name and self._is_name(name):
                    key = f"{prefix}/{name}" if prefix else name
                    found.append(Upload(key=key, token=token, began=began.timestamp()))
        return found

    def end(self, upload: Upload) -> None:
        """Give an upload up; see `Uploads.end`."""
        client, path = self._at(self._check(upload.key))
        with self._failures(upload.key, reading=True):
            client.end(path, upload.token)

    def delete(self, key: str) -> None:
        """Remove an object; see `Backend.delete`."""
        client, path = self._at(self._check(key))
        with self._failures(key), contextlib.suppress(*MISSING):
            client.fs.rm_file(path)

    def _prefix(self, prefix: str) -> str:
        return self._check(prefix) if prefix else prefix

    def _is_name(self, name: str) -> bool:
        try:
            return bool(self._check(name))
        except UsageError:
            return False

    def _failures(self, key: str, **options: Any) -> Failures:
        return Failures(
            key=key, url=self._url, hidden=self._secrets, given=self._options, **options
        )

    def _at(self, key: str) -> tuple[Client, str]:
        """Return the client and the path of a key or folder in it."""
        pid, client, root = self._resolved
        if pid != os.getpid():  # clients keep threads and sockets, which a fork does not copy
            # Kept: its end would close the parent's connection, whose socket we share.
            self._inherited.append(client)
            self._resolved = pid, client, root = self._resolve()
        return client, f"{root}/{key}" if key else root

    def _resolve(self) -> tuple[int, Client, str]:
        scheme = self._address.partition("://")[0]
        with self._failures(""):
            try:
                get_filesystem_class(scheme)
            except ValueError as error:
                raise UsageError("no file system for this URL", url=self._url) from error
            options = options_for(scheme, self._options)
            fs, root = url_to_fs(self._address, **options, skip_instance_cache=True)
            if (cache := getattr(fs, "dircache", None)) is not None:
                # One thread's listing, begun earlier, could fill what another just emptied.
                cache.use_listings_cache = False
            client = client_for(fs, scheme, self._policy)
        return os.getpid(), client, str(root).rstrip("/")

    def _is_unknown_server(self) -> bool:
        """Return whether the service is somebody's own, behind the protocol of a known one."""
        fs = self._resolved[1].fs
        return bool(getattr(fs, "endpoint_url", None)) or "endpoint_url" in str(self._options)

    def _known(self) -> Capabilities:
        known = self._resolved[1].known
        if self._doubted:
            return dataclasses.replace(known, create_if_absent=False, strong_listing=False)
        return known
