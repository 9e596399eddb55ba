"""One file that is a whole checkpoint or export, under a name its user chose."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckptfmt.backends import open_backend
from ckptfmt.backends._urls import local_path
from ckptfmt.backends.base import Backend, Buffer
from ckptfmt.backends.local import LocalBackend
from ckptfmt.errors import NotFoundError, UsageError


def open_file(
    url: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> tuple[Backend, str]:
    """Return the folder of a file as a backend, and the file's key in it.

    On the local disk any file name will do, and a symbolic link to the file is followed:
    its user named it, not a manifest.

    Raises:
        UsageError: the URL names no file.
    """
    text = os.fspath(url)
    if "\0" in text:
        raise UsageError("a path holds no NUL", found=text)
    path = local_path(text)
    if path is not None:
        folder, name = os.path.split(os.path.realpath(path))
        return LocalBackend(folder, check=_plain_name), _plain_name(name)
    folder, _, name = text.rpartition("/")
    if not name or folder.endswith(":/"):
        raise UsageError("expected the URL of a file", url=text)
    return open_backend(folder, storage_options=storage_options), name


def open_foreign(
    url: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Backend:
    """Return a folder behind a URL, to be read: its files have names that others gave them.

    Such as `.metadata` or `epoch=3.ckpt`, which are no keys of a store and of which a store's
    backend, therefore, sees nothing.
    """
    from ckptfmt.backends.fsspec import FsspecBackend  # fsspec costs time to import

    return FsspecBackend(os.fspath(url), storage_options=storage_options, check=_foreign_key)


def _foreign_key(key: str) -> str:
    """Return a key whose components may be any names; what has a meaning in a URL is none."""
    odd = any(sign in key for sign in "\0\\?#")
    if odd or any(part in ("", ".", "..") for part in key.split("/")):
        raise UsageError("expected the name of a file behind a URL", found=key)
    return key


def file_nbytes(backend: Backend, key: str) -> int:
    """Return the length of a file.

    Raises:
        NotFoundError: no such file.
        BackendError: storage failed.
    """
    if isinstance(backend, LocalBackend):
        return backend.nbytes(key)
    entry = backend.list("").get(key)
    if entry is None:
        raise NotFoundError("no such file", key=key, url=backend.url)
    return entry.nbytes


def publish(
    backend: Backend, key: str, blocks: Iterable[Buffer], *, nbytes: int, overwrite: bool
) -> None:
    """Write one file that appears whole; durable on return.

    On the local disk it is streamed; elsewhere it is assembled in memory and sent in one
    upload, so that no reader ever sees a part.

    Raises:
        ConflictError: it exists and `overwrite` is False.
        BackendError: storage failed.
    """
    if isinstance(backend, LocalBackend):
        backend.publish(key, blocks, nbytes=nbytes, overwrite=overwrite)
    elif overwrite:
        backend.replace(key, b"".join(blocks))
    else:
        backend.write(key, blocks, nbytes=nbytes)


def _plain_name(name: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise UsageError("expected the name of a file", found=name)
    return name
