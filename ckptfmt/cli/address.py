"""Addresses as people type them, and the stores and bundles they name."""

from __future__ import annotations

from typing import Final

import ckptfmt
from ckptfmt import Store
from ckptfmt._store.bundle import SUFFIX
from ckptfmt.api import split_address
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.format import layout

HELP: Final = "such as runs/a@12, runs/a@latest, runs/a@best:val_loss or model.safetensors"
STORE_HELP: Final = "a folder, or any URL that fsspec knows"


def is_bundle(url: str) -> bool:
    """Tell whether a URL names a bundle, which is one checkpoint, instead of a store."""
    return url.endswith(SUFFIX)


def expect_bundle(url: str) -> str:
    """Return the URL of a bundle.

    Raises:
        UsageError: it does not end like one.
    """
    if not is_bundle(url):
        raise UsageError(f"a bundle's name ends in {SUFFIX}", found=url)
    return url


def expect_store(url: str) -> str:
    """Return the URL of a store.

    Raises:
        UsageError: it names a bundle, or one checkpoint of a store.
    """
    if is_bundle(url):
        raise UsageError("a bundle is one checkpoint, a store was expected", found=url)
    store, which = split_address(url)
    if which is not None:
        raise UsageError(
            "one checkpoint, a store was expected: leave out what names the one",
            found=url,
            store=store,
        )
    return url


def open_store(url: str) -> Store:
    """Open a store that exists.

    Raises:
        NotFoundError: nothing is there.
        UsageError: it is a bundle.
    """
    store = ckptfmt.open(expect_store(url))
    if not store.entries() and not _is_marked(store):
        raise NotFoundError("no store here", url=store.url)
    return store


def _is_marked(store: Store) -> bool:
    try:
        store.backend.read(layout.MARKER)
    except NotFoundError:
        return False
    return True
