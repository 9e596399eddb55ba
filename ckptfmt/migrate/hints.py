"""Why a source is no checkpoint that we know, and what to name instead."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from typing import Final

from ckptfmt.errors import CheckpointError, UnsupportedError
from ckptfmt.migrate.files import Folder, Names, Place
from ckptfmt.migrate.source import Contents

# Parts of sets that hold no arrays: whoever names one means the set.
PARTS: Final = re.compile(
    r"(saved_model|keras_metadata|fingerprint)\.pb|checkpoint|.+\.meta|.+\.pdmodel"
)
_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_FEW: Final = 5
_MANY: Final = 500  # files: a folder of so many is not looked through for a hint
Find = Callable[[Place], Contents | None]


def unknown(place: Place, find: Find) -> UnsupportedError:
    """Return the error for a source that no reader knows.

    Args:
        find: Returns what a place holds, or None.
    """
    span = place.span()
    if span is None:
        return UnsupportedError(_of_folder(place.folder, find), source=place.folder.path)
    where = {"source": place.name, "begins": span.head(16)}
    if not span.nbytes:
        return UnsupportedError("no checkpoint: the file is empty", **where)
    if span.head(len(_POINTER)) == _POINTER:
        text = "no checkpoint, but a pointer of Git LFS to one: fetch it (`git lfs pull`)"
        return UnsupportedError(text, **where)
    for folder in (place.folder, _above(place.folder)):
        if folder is not None and (kind := _kind(Place(folder, None), find)):
            text = f"no checkpoint by itself; its folder holds one ({kind}): name the folder"
            return UnsupportedError(text, **where, folder=folder.path)
    return UnsupportedError(
        "no known checkpoint: `ckptfmt migrate --formats` lists what can be read", **where
    )


def _of_folder(folder: Names, find: Find) -> str:
    text = "no known checkpoint: no reader knows any of the folder's files"
    if not folder.names():
        text = "no checkpoint: there are no files in this folder"
    if isinstance(folder, Folder):
        inner = {n: Folder(os.path.join(folder.path, n)) for n in folder.others()[: 20 * _FEW]}
        below = [name for name, one in inner.items() if _kind(Place(one, None), find)]
        if below:
            more = ", …" if len(below) > _FEW else ""
            return (
                f"{text}; these folders in it are checkpoints: {', '.join(below[:_FEW])}{more}"
            )
    return f"{text}; `ckptfmt migrate --formats` lists what can be read"


def _above(folder: Names) -> Names | None:
    if not isinstance(folder, Folder):
        return None
    return Folder(os.path.dirname(os.path.abspath(folder.path)))


def _kind(place: Place, find: Find) -> str | None:
    with contextlib.suppress(CheckpointError):
        found = find(place) if len(place.folder.names()) <= _MANY else None
        return None if found is None else found.format
    return None
