"""What is asked of a file system of fsspec, in the calls that behave alike everywhere.

Not used, on purpose: `with open(…, "wb")`, which commits what was written so far when an
exception passes through it; transactions; `glob`; `exists`, which answers from caches; ranges
counted from the end. Clients that can do better have a subclass in `_clouds`.
"""

from __future__ import annotations

import contextlib
import datetime
import inspect
import logging
import math
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Final, Protocol, cast

from ckptfmt.backends._failures import MISSING, Blocks, Failures, says_exists
from ckptfmt.backends._upload import Policy
from ckptfmt.backends.base import Capabilities
from ckptfmt.errors import BackendError, NotFoundError

UNKNOWN: Final = Capabilities(
    create_if_absent=False, strong_listing=False, ranged_read=False, durable=False, maps=False
)
# An object store, as its service promises.
CLOUD: Final = Capabilities(
    create_if_absent=True,
    strong_listing=True,
    ranged_read=True,
    durable=True,
    maps=False,
    requests=64,
)
MODIFIED_FIELDS: Final = (
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "created",
)
PIECE_NBYTES: Final = 4 * 2**20  # handed to a file at once; some clients take bytes only

_log: Final = logging.getLogger("ckptfmt")


class FileSystem(Protocol):
    """The calls of fsspec that are used."""

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None: ...
    def cat_file(self, path: str, **range_: int) -> bytes: ...
    def ls(self, path: str, detail: bool) -> list[dict[str, object]]: ...
    def info(self, path: str) -> dict[str, object]: ...
    def rm_file(self, path: str) -> None: ...
    def makedirs(self, path: str, exist_ok: bool) -> None: ...
    def invalidate_cache(self) -> None: ...
    def open(self, path: str, mode: str, **options: Any) -> BinaryIO: ...


class Client:
    """Any file system. Errors are the client's own; the backend translates them."""

    capabilities: ClassVar[Capabilities] = UNKNOWN
    folders: ClassVar[bool] = True  # must be made before a file can lie in them

    def __init__(self, fs: Any, policy: Policy) -> None:
        self.fs: FileSystem = fs
        self.policy = policy
        self._made: set[str] = set()
        self._making = threading.Lock()
        self._conditional = "mode" in inspect.signature(self.fs.pipe_file).parameters

    @property
    def known(self) -> Capabilities:
        """What this client can promise."""
        return self.capabilities

    def prepare(self, path: str) -> None:
        """Make the folder of a file, where storage has folders.

        Never on a bucket: with s3fs a mistyped bucket would come into being.
        """
        folder = path.rpartition("/")[0]
        if not self.folders or folder in self._made:
            return
        with self._making:
            try:
                self.fs.makedirs(folder, exist_ok=True)
            except OSError:  # another process made a part of it at the same time
                self.fs.makedirs(folder, exist_ok=True)
        self.first_look(folder)
        self._made.add(folder)

    def first_look(self, folder: str) -> None:
        """Tidy up, once a process, in a folder that will be written to."""

    def create(self, path: str, data: bytes) -> None:
        """Store a small object if it is absent, in one request where that is possible."""
        if self._conditional:
            self.fs.pipe_file(path, data, mode="create")
            return
        self.check_absent(path)
        self.fs.pipe_file(path, data)

    def replace(self, path: str, data: bytes) -> None:
        """Store a small object."""
        self.fs.pipe_file(path, data)

    def check_absent(self, path: str) -> None:
        """Raise `FileExistsError` where an object is."""
        with contextlib.suppress(*MISSING):
            self.size(path)
            raise FileExistsError(path)

    def write(self, path: str, blocks: Blocks, nbytes: int) -> None:
        """Store a large object under a key that is absent; an exception leaves none.

        Nobody else uses the key. So what is there in full length after a failure is ours: the
        storage's answer was lost, and the client tried again against its own object.
        """
        self.check_absent(path)
        with _Settled(self, path, blocks, nbytes):
            self._send(path, blocks, nbytes)

    def _send(self, path: str, blocks: Blocks, nbytes: int) -> None:
        if nbytes <= self.policy.part_nbytes:
            self.create(path, b"".join(blocks))
        else:
            self._stream(path, blocks, nbytes)

    def _stream(self, path: str, blocks: Blocks, nbytes: int) -> None:
        with _Written(self, path, blocks) as file:
            for block in blocks:
                for piece in _pieces(block):
                    file.write(piece)

    def new_file(self, path: str) -> BinaryIO:
        """Open a file that is written from its beginning."""
        return self.fs.open(path, "wb")

    def discard(self, file: BinaryIO) -> None:
        """Give a file up before it is whole, where closing it is not the only way."""

    def whole(self, path: str) -> bytes:
        """Return an object."""
        return self.fs.cat_file(path)

    def into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill `view` from an offset; return how many bytes there were (if less, undefined)."""
        data = self.fs.cat_file(path, start=offset, end=offset + view.nbytes)
        if len(data) > view.nbytes and len(data) == self.size(path):
            data = data[offset : offset + view.nbytes]  # sshfs, and plain web servers, give all
        elif len(data) != view.nbytes:
            with self.fs.open(path, "rb") as file:  # sshfs ignores the range of `cat_file`
                file.seek(offset)
                data = file.read(view.nbytes)
        if len(data) == view.nbytes:
            view[:] = data
        return len(data)

    def uploads(self, folder: str) -> list[tuple[str, str, datetime.datetime]]:
        """Return path, id and time of each upload in parts that was begun and not ended."""
        return []

    def end(self, path: str, upload: str) -> None:
        """Give an upload up."""

    def size(self, path: str) -> int:
        """Return the length of an object, from storage and not from a cache."""
        self.fs.invalidate_cache()
        return cast(int, self.fs.info(path)["size"])


def modified(item: Mapping[str, object]) -> float:
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


class _Settled:
    """Looks after a failed upload whether the object is there all the same."""

    def __init__(self, client: Client, path: str, blocks: Blocks, nbytes: int) -> None:
        self._client = client
        self._path = path
        self._blocks = blocks
        self._nbytes = nbytes

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or error is self._blocks.failed:
            return False
        try:
            with Failures(reading=True):
                return self._client.size(self._path) == self._nbytes
        except (BackendError, NotFoundError):
            return False  # the first error is the one to tell


class _Written:
    """A file that is closed when it is whole, and removed when it is not."""

    def __init__(self, client: Client, path: str, blocks: Blocks) -> None:
        self._client = client
        self._path = path
        self._blocks = blocks
        self._file = client.new_file(path)

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._file.close()
            return
        try:
            with Failures():
                self._client.discard(self._file)
                self._file.close()  # commits, wherever the line above did nothing …
                if error is self._blocks.failed or not says_exists(error):
                    with contextlib.suppress(*MISSING):
                        self._client.fs.rm_file(self._path)  # … which is undone here
        except BackendError as failed:
            _log.warning("a part of %s may have stayed: %s", self._path, failed)


def _pieces(block: memoryview) -> Iterator[bytes]:
    for at in range(0, block.nbytes, PIECE_NBYTES):
        yield bytes(block[at : at + PIECE_NBYTES])
