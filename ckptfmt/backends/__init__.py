"""Where checkpoints are kept: one contract, and the backends that keep it."""

from __future__ import annotations

import os

from ckptfmt.backends._urls import local_path
from ckptfmt.backends.base import Backend as Backend
from ckptfmt.backends.base import BlockReads as BlockReads
from ckptfmt.backends.base import Buffer as Buffer
from ckptfmt.backends.base import Capabilities as Capabilities
from ckptfmt.backends.base import Entry as Entry
from ckptfmt.backends.base import Upload as Upload
from ckptfmt.backends.base import Uploads as Uploads
from ckptfmt.backends.local import LocalBackend as LocalBackend
from ckptfmt.backends.memory import MemoryBackend as MemoryBackend
from ckptfmt.errors import UsageError

__all__ = [
    "Backend",
    "BlockReads",
    "Buffer",
    "Capabilities",
    "Entry",
    "LocalBackend",
    "MemoryBackend",
    "Upload",
    "Uploads",
    "open_backend",
]


def open_backend(
    url: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Backend:
    """Return the backend for a path or URL; nothing is read or created yet.

    A plain path and `file://` are the local disk, every other scheme goes through fsspec.

    Args:
        url: The text behind `file://` is taken as it stands: it is not percent-decoded.
        storage_options: Handed to the fsspec file system; a local store has none.

    Raises:
        UsageError: unknown scheme, a URL that lost a slash (`pathlib.Path` does that), or
            options for a local store.
        BackendError: the package that serves the scheme is missing or refuses its options.
    """
    path = local_path(url)
    if path is None:
        from ckptfmt.backends.fsspec import FsspecBackend  # fsspec costs time to import

        return FsspecBackend(os.fspath(url), storage_options=storage_options)
    if storage_options:
        raise UsageError(
            "a local store has no storage options", options=sorted(storage_options)
        )
    if not path:
        raise UsageError("a store needs a path or URL", url=url)
    return LocalBackend(path)
