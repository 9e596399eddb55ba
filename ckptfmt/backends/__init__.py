"""Where checkpoints are kept: one contract, and the backends that keep it."""

from __future__ import annotations

import os

from ckptfmt.backends.base import Backend as Backend
from ckptfmt.backends.base import Buffer as Buffer
from ckptfmt.backends.base import Capabilities as Capabilities
from ckptfmt.backends.base import Entry as Entry
from ckptfmt.backends.memory import MemoryBackend as MemoryBackend

__all__ = ["Backend", "Buffer", "Capabilities", "Entry", "MemoryBackend", "open_backend"]


def open_backend(
    url: str | os.PathLike[str], *, storage_options: dict[str, object] | None = None
) -> Backend:
    """Return the backend for a path or URL; nothing is read or created yet.

    A plain path and `file://` are the local disk, every other scheme goes through fsspec.

    Args:
        url: The text behind `file://` is taken as it stands: it is not percent-decoded.
        storage_options: Handed to the fsspec file system; a local store has none.

    Raises:
        UsageError: unknown scheme, or options for a local store.
        BackendError: the package that serves the scheme is missing or refuses its options.
    """
    raise NotImplementedError
