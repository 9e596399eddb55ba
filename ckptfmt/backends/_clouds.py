"""Clients of which more is known than what fsspec promises: S3, GCS, Azure; SFTP in `_sftp`.

Recognised by what they offer, never imported: a URL of S3 costs no import of Azure.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, BinaryIO, Final, TypeVar

from fsspec.config import conf

from ckptfmt.backends._aws import lighten
from ckptfmt.backends._client import CLOUD, Client
from ckptfmt.backends._failures import Blocks, status
from ckptfmt.backends._sftp import Sftp
from ckptfmt.backends._unfinished import uploads
from ckptfmt.backends._upload import Content, Parts, Policy, again, run, upload
from ckptfmt.backends.base import Capabilities
from ckptfmt.errors import BackendError

T = TypeVar("T")

READ_NBYTES: Final = 2**18  # taken from a connection at once
GCS_BLOCK_NBYTES: Final = 16 * 2**20
IF_ABSENT: Final = {"If-None-Match": "*"}


def client_for(fs: Any, scheme: str, policy: Policy) -> Client:
    """Return what talks to a file system of fsspec in the best way known for it."""
    kinds: dict[str, type[Client]] = {
        **dict.fromkeys(("s3", "s3a"), S3),
        **dict.fromkeys(("gs", "gcs"), Gcs),
        **dict.fromkeys(("abfs", "abfss", "az"), Azure),
        **dict.fromkeys(("sftp", "ssh"), Sftp),
        "memory": Memory,
    }
    return kinds.get(scheme, Client)(fs, policy)


def options_for(scheme: str, options: Mapping[str, object]) -> dict[str, object]:
    """Return the options of a file system: the user's, and for S3 what many requests need.

    Connections, of which botocore keeps ten by default, where each request in flight wants
    one; and a name, because botocore puts together its own anew, twice for each request: a
    tenth of the processor time of a small one.
    """
    if scheme not in ("s3", "s3a"):
        return dict(options)
    given: Any = options.get("config_kwargs", conf.get(scheme, {}).get("config_kwargs"))
    own = {"max_pool_connections": 2 * CLOUD.requests, "user_agent": "ckptfmt"}
    return {**options, "config_kwargs": {**own, **(given or {})}}


class Memory(Client):
    """fsspec's memory: it looks, then stores, so that two threads can both create."""

    capabilities = dataclasses.replace(CLOUD, create_if_absent=False, durable=False, requests=1)
    folders = False


class Cloud(Client):
    """An object store: no folders, data files in parts."""

    capabilities = CLOUD
    folders = False

    @property
    def known(self) -> Capabilities:
        """What the service promises, given a client that sends the condition."""
        sends = self._conditional or isinstance(self, Azure)
        return dataclasses.replace(self.capabilities, create_if_absent=sends)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the client; a thread of fsspec's runs it."""
        loop: asyncio.AbstractEventLoop = self.fs.loop  # type: ignore[attr-defined]
        return loop

    def parts(self, path: str) -> Parts | None:
        """Return the requests of an upload in parts, where the client has them."""
        return None

    def _stream(self, path: str, blocks: Blocks, nbytes: int) -> None:
        parts = self.parts(path)
        if parts is None:
            super()._stream(path, blocks, nbytes)
        else:
            upload(parts, blocks, nbytes=nbytes, loop=self.loop, policy=self.policy)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return run(self.loop, work).result()


class S3(Cloud):
    """s3fs. Reads go into their final memory as they arrive, without a buffer between."""

    def __init__(self, fs: Any, policy: Policy) -> None:
        super().__init__(fs, policy)
        lighten(fs)

    def parts(self, path: str) -> Parts:
        """Return a multipart upload."""
        return _S3Parts(self.fs, self._at(path))

    def whole(self, path: str) -> bytes:
        """Return an object in one request; `cat_file` asks for its length first."""
        return self._wait(again(lambda: self._get(path), 0, self.policy))

    def into(self, path: str, offset: int, view: memoryview) -> int:
        """Stream a range into `view`."""
        return self._wait(
            again(lambda: self._fill(path, offset, view), view.nbytes, self.policy)
        )

    def uploads(self, folder: str) -> list[tuple[str, str, datetime.datetime]]:
        """Return the multipart uploads below a folder that were begun and not ended."""
        at = self._at(folder)
        return self._wait(again(lambda: uploads(self._call, **at), 0, self.policy))

    def end(self, path: str, upload: str) -> None:
        """Abort a multipart upload."""
        at = self._at(path)
        end = functools.partial(self._call, "abort_multipart_upload", **at, UploadId=upload)
        try:
            self._wait(again(end, 0, self.policy))
        except OSError as error:
            if status(error.__cause__ or error) == 404:
                raise FileNotFoundError(path) from error
            raise

    def size(self, path: str) -> int:
        """Return the length of an object; `info` of a missing one would list it, too."""
        found: int = self._wait(
            self._call("head_object", **self._at(path)),
        )["ContentLength"]
        return found

    def _call(self, name: str, **arguments: Any) -> Coroutine[Any, Any, Any]:
        found: Coroutine[Any, Any, Any] = self.fs._call_s3(name, **arguments)  # type: ignore[attr-defined]
        return found

    def _at(self, path: str) -> dict[str, str]:
        bucket, key, _ = self.fs.split_path(path)  # type: ignore[attr-defined]
        return {"Bucket": bucket, "Key": key}

    async def _get(self, path: str) -> bytes:
        answer = await self._call("get_object", **self._at(path))
        try:
            found: bytes = await answer["Body"].read()
        finally:
            answer["Body"].close()
        return found

    async def _fill(self, path: str, offset: int, view: memoryview) -> int:
        wanted = f"bytes={offset}-{offset + view.nbytes - 1}"
        answer = await self._call("get_object", **self._at(path), Range=wanted)
        try:
            nbytes: int = answer["ContentLength"]
            if offset and not str(answer.get("ContentRange", "")).startswith(
                f"bytes {offset}-"
            ):
                raise BackendError("storage ignored the range", offset=offset)
            at = 0
            body = answer["Body"]
            while at < nbytes <= view.nbytes and (data := await body.read(READ_NBYTES)):
                view[at : at + len(data)] = data
                at += len(data)
        finally:
            answer["Body"].close()
        return at if nbytes <= view.nbytes else nbytes


class _S3Parts:
    """A multipart upload of S3."""

    def __init__(self, fs: Any, at: Mapping[str, str]) -> None:
        self._fs = fs
        self._at = dict(at)
        self._id: str | None = None

    async def begin(self) -> None:
        answer = await self._fs._call_s3("create_multipart_upload", **self._at)
        self._id = answer["UploadId"]

    def packed(self, content: Content) -> Content:
        return content

    async def send(self, number: int, data: Content) -> object:
        answer = await self._fs._call_s3(
            "upload_part", **self._at, UploadId=self._id, PartNumber=number, Body=data
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def complete(self, receipts: Sequence[object]) -> None:
        await self._fs._call_s3(
            "complete_multipart_upload",
            **self._at,
            UploadId=self._id,
            MultipartUpload={"Parts": list(receipts)},
        )

    async def abort(self) -> None:
        if self._id is not None:
            await self._fs._call_s3("abort_multipart_upload", **self._at, UploadId=self._id)


class Gcs(Cloud):
    """gcsfs. Always the resumable upload: the other one damages bodies that look like MIME.

    An object is one stream of requests there, one after the other.
    """

    def create(self, path: str, data: bytes) -> None:
        """Store a small object if it is absent."""
        self._put(path, data, **({"mode": "create"} if self._conditional else {}))

    def replace(self, path: str, data: bytes) -> None:
        """Store a small object."""
        self._put(path, data)

    def _put(self, path: str, data: bytes, **options: str) -> None:
        # A chunk as long as the data makes it a resumable upload of one chunk.
        put = functools.partial(
            self.fs.pipe_file, path, data, chunksize=max(1, len(data)), **options
        )
        try:
            put()
        except FileNotFoundError:
            # Its session is gone: expired, or at its end, whose answer was lost. A new one then
            # finds the object there. Without a bucket there is no session either.
            put()

    def new_file(self, path: str) -> BinaryIO:
        mode = "xb" if self._conditional else "wb"
        return self.fs.open(path, mode, block_size=GCS_BLOCK_NBYTES)

    def discard(self, file: BinaryIO) -> None:
        """Make the server forget the parts of a file."""
        file.discard()  # type: ignore[attr-defined]


class Azure(Cloud):
    """adlfs: blocks are staged side by side, then committed as one blob."""

    def create(self, path: str, data: bytes) -> None:
        """Store a small object if it is absent; `overwrite` is adlfs's word for it."""
        self.fs.pipe_file(path, data, overwrite=False)

    def parts(self, path: str) -> Parts:
        """Return the staging of blocks."""
        return _AzureParts(self.fs, path)


class _AzureParts:
    """Blocks of Azure. Those never committed go by themselves, after a week."""

    def __init__(self, fs: Any, path: str) -> None:
        container, name, _ = fs.split_path(path)
        self._service = fs.service_client
        self._at = {"container": container, "blob": name}

    async def begin(self) -> None:
        pass

    def packed(self, content: Content) -> bytes:
        return bytes(content)

    async def send(self, number: int, data: bytes) -> object:
        name = f"{number:08}"
        async with self._service.get_blob_client(**self._at) as client:
            await client.stage_block(name, data, length=len(data))
        return name

    async def complete(self, receipts: Sequence[object]) -> None:
        async with self._service.get_blob_client(**self._at) as client:
            await client.commit_block_list(list(receipts), headers=IF_ABSENT)

    async def abort(self) -> None:
        pass
