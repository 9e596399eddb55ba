"""The calls most people need: open a store, save and load in one line."""

from __future__ import annotations

import os

from ckptfmt.backends import open_backend
from ckptfmt.backends.base import Backend
from ckptfmt.format import codec as codecs
from ckptfmt.format import digest as digests
from ckptfmt.options import Sources, WriteOptions
from ckptfmt.store import Store
from ckptfmt.training import retention


def open(
    url: str | os.PathLike[str] | Backend,
    *,
    keep: retention.Keep | None = None,
    durable: bool = True,
    digest: str | None = None,
    codec: str = codecs.RAW,
    threads: int | None = None,
    storage_options: dict[str, object] | None = None,
    sources: Sources | None = None,
) -> Store:
    """Open the store at a URL; nothing is created before the first save.

    Args:
        url: A path, any URL fsspec knows, or a `Backend`.
        keep: Retention rules, applied after each save; None keeps everything.
        durable: False skips every fsync: faster, and a power cut may then take the newest
            checkpoints (not a killed process: that never does).
        digest: `xxh3-128` (default for a new lineage) or `sha256`; None inherits.
        codec: `raw` or `zstd`.
        threads: For digests, copies and reads; None: by the number of cores.
        storage_options: For the fsspec filesystem of the URL.
        sources: Clock and randomness, for tests.

    Raises:
        UsageError: an argument is out of range.
        FormatError: something else lies there.
        UnsupportedError: a store of another format version.
        BackendError: storage failed.
    """
    options = WriteOptions(
        durable=durable,
        digest=None if digest is None else digests.chosen(digest).name,
        codec=codecs.chosen(codec),
        threads=threads or max(1, min(4, os.cpu_count() or 1)),
        sources=sources or Sources(),
    )
    if isinstance(url, str | os.PathLike):
        backend = open_backend(url, storage_options=storage_options)
    else:
        backend = url
    return Store(backend, options=options, keep=keep)
