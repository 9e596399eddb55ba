"""SFTP: small objects are stored aside and renamed; a channel serves one call at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import re
import secrets
from collections.abc import Callable
from types import GeneratorType, TracebackType
from typing import Any, BinaryIO, Final

from ckptfmt.backends._client import CLOUD, Client, modified
from ckptfmt.backends._failures import MISSING
from ckptfmt.backends._upload import Policy, run

ASIDE: Final = re.compile(r"\.tmp-[0-9a-f]{16}")
LEFTOVER_SECONDS: Final = 24 * 3600


class Sftp(Client):
    """A file system behind SSH (sshfs, or fsspec's own over paramiko).

    Small objects are stored aside and renamed: no reader sees a part. The protocol's own
    rename refuses to replace (OpenSSH links, then unlinks), so that of several writers one
    wins.
    """

    capabilities = dataclasses.replace(CLOUD, durable=False, requests=8)

    def __init__(self, fs: Any, policy: Policy) -> None:
        super().__init__(fs, policy)
        if hasattr(fs, "ftp"):
            fs.ftp = _Channels(fs.client)

    def first_look(self, folder: str) -> None:
        """Remove the hidden files of processes that died here more than a day ago.

        Age is counted to the last change of the folder: both times are by the server's clock.
        """
        with contextlib.suppress(OSError):
            changed = modified(self.fs.info(folder))
            for item in self.fs.ls(folder, detail=True):
                path = str(item["name"])
                old = changed - modified(item) > LEFTOVER_SECONDS
                if old and ASIDE.fullmatch(path.rpartition("/")[2]) is not None:
                    self.fs.rm_file(path)

    def new_file(self, path: str) -> BinaryIO:
        file = super().new_file(path)
        if hasattr(file, "set_pipelined"):  # paramiko waits for each 32 KiB by default
            file.set_pipelined(True)
        return file

    def create(self, path: str, data: bytes) -> None:
        """Store a small object if it is absent."""
        with _Aside(self, path, data) as name:
            self._rename("rename", name, path)

    def replace(self, path: str, data: bytes) -> None:
        """Store a small object."""
        with _Aside(self, path, data) as name:
            self._rename("posix_rename", name, path)

    def _rename(self, kind: str, old: str, new: str) -> None:
        fs: Any = self.fs
        if (paramiko := getattr(fs, "ftp", None)) is not None:
            getattr(paramiko, kind)(old, new)
            return

        async def rename() -> None:
            async with fs._pool.get() as channel:
                await getattr(channel, kind)(old, new)

        run(fs.loop, rename()).result()

    def into(self, path: str, offset: int, view: memoryview) -> int:
        """Read a range of a file; the `cat_file` of sshfs fetches the whole of it."""
        with self.fs.open(path, "rb") as file:
            file.seek(offset)
            data = file.read(view.nbytes)
        if len(data) == view.nbytes:
            view[:] = data
        return len(data)


class _Channels:
    """The SFTP client of paramiko, each in use by one call or open file at a time.

    It mixes up the answers of two threads. Servers allow ten on a connection by default.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with contextlib.ExitStack() as borrowed:
                channel = self._take()
                borrowed.callback(self._free.put, channel)
                found = getattr(channel, name)(*arguments, **named)
                if isinstance(found, GeneratorType):
                    # A generator asks the server while it runs: not on a channel given back.
                    found = iter(list(found))
                if name == "open":
                    borrowed.callback(found.close)
                    found.close = borrowed.pop_all().close
                return found

        return call

    def _take(self) -> Any:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            return self._connection.open_sftp()


class _Aside:
    """A small file under a name that listings do not show, gone afterwards."""

    def __init__(self, client: Client, path: str, data: bytes) -> None:
        folder = path.rpartition("/")[0]
        self._client = client
        self._path = path
        self._data = data
        self._name = f"{folder}/.tmp-{secrets.token_hex(8)}"

    def __enter__(self) -> str:
        self._client.fs.pipe_file(self._name, self._data)
        return self._name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return
        with contextlib.suppress(*MISSING):
            self._client.fs.rm_file(self._name)
        if isinstance(error, Exception):
            self._client.check_absent(self._path)  # the server only says "failure"
