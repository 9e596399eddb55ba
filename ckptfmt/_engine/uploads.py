"""Uploads in parts that were begun and never ended: invisible, and paid for (spec §10.9)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ckptfmt.backends.base import Backend, Upload, Uploads
from ckptfmt.errors import BackendError, NotFoundError
from ckptfmt.format import layout

_log: Final = logging.getLogger("ckptfmt")


def unfinished(backend: Backend) -> Sequence[Upload]:
    """Return those of data files; none where storage keeps none, or does not tell.

    One whose key a checkpoint references is left alone by all who call this: some services
    list an upload for ever of which a part arrived after the object was made of it, and what
    ending it does to the object is theirs to know.
    """
    if not isinstance(backend, Uploads):
        return ()
    try:
        return backend.uploads(layout.DATA)
    except BackendError as error:  # the right to list them is one of its own
        _log.info("whether dead writers left parts of uploads is not known: %s", error)
        return ()


def end(
    backend: Backend, found: Iterable[Upload], chosen: Callable[[str], bool]
) -> tuple[str, ...]:
    """End the uploads whose key is chosen; return their keys. A refusal is said, not raised."""
    ended = []
    for upload in found:
        if layout.data_save_id(upload.key) is None or not chosen(upload.key):
            continue
        if isinstance(backend, Uploads):
            try:
                backend.end(upload)
            except NotFoundError:
                continue  # its writer was faster
            except BackendError as error:
                _log.warning("could not end the upload of %s: %s", upload.key, error)
                continue
        ended.append(upload.key)
    return tuple(ended)
