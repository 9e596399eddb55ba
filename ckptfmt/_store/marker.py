"""The file that tells a store from any other folder."""

from __future__ import annotations

import json
import logging
import os
from typing import Final

from ckptfmt.backends.base import Backend
from ckptfmt.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptfmt.format import layout
from ckptfmt.format.features import MARKER_VERSION, READABLE_MARKERS

_log: Final = logging.getLogger("ckptfmt")

IN_MEMORY: Final = "memory:"  # the URL of any `MemoryBackend`

_ABOUT: Final = (
    "A ckptfmt store: training checkpoints as plain safetensors files in data/, committed by"
    " the manifests in manifests/. Copy data/ first, manifests/ after it, never intents/."
)


def check(backend: Backend) -> bool:
    """Return whether the marker is there.

    Raises:
        FormatError: something else lies there.
        UnsupportedError: a store of another format version.
    """
    url = backend.url
    try:
        found = json.loads(backend.read(layout.MARKER))
    except NotFoundError:
        return False
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError("not a ckptfmt store: its marker is no JSON", url=url) from error
    if not isinstance(found, dict) or found.get("format") != "ckptfmt":
        raise FormatError("not a ckptfmt store", url=url, found=found)
    if type(found.get("version")) not in (int, str):
        raise FormatError("marker without a version", url=url, found=found)
    if found["version"] not in READABLE_MARKERS:
        raise UnsupportedError(
            "store has another format version: upgrade ckptfmt",
            url=url,
            expected=MARKER_VERSION,
            found=found.get("version"),
        )
    return True


def check_apart(source: Backend, target: Backend) -> None:
    """Refuse two names of one place, as far as names tell.

    Raises:
        UsageError: what is copied there is there, and what goes there is gone here.
    """
    if source is target or (_place(source) == _place(target) != IN_MEMORY):
        raise UsageError("source and target are the same store", url=source.url)


def _place(backend: Backend) -> str:
    url = backend.url
    return url.rstrip("/") if "://" in url or url == IN_MEMORY else os.path.realpath(url)


def leave(backend: Backend, *, durable: bool) -> None:
    """Create the marker, or check the one that somebody else was faster with."""
    content = {"format": "ckptfmt", "version": MARKER_VERSION, "about": _ABOUT}
    try:
        backend.create(
            layout.MARKER, json.dumps(content, indent=1).encode() + b"\n", durable=durable
        )
    except ConflictError:
        check(backend)


def warn_of_limits(backend: Backend) -> None:
    """Say what this backend cannot promise."""
    if not backend.capabilities.create_if_absent:
        _log.warning(
            "%s cannot create a file only if it is absent: only ONE writer at a time is safe"
            " here",
            backend.url,
        )
