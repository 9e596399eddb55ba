"""Checks of arguments that are the same for every backend (spec §3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ckptfmt.backends.base import Buffer
from ckptfmt.errors import BackendError, IntegrityError, UsageError

# A leading dot would hide the object in a listing: such names are those of unfinished files.
COMPONENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
KEY: Final = re.compile(rf"{COMPONENT.pattern}(?:/{COMPONENT.pattern})*", re.ASCII)


def check_key(key: str) -> str:
    """Return `key`, or raise `UsageError` where it does not follow the grammar."""
    if KEY.fullmatch(key) is None:
        raise UsageError(
            "key must be components of [A-Za-z0-9._-] joined by '/', none starting with '.'",
            key=key,
        )
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix`, or raise `UsageError` where it is neither "" nor a key."""
    return check_key(prefix) if prefix else prefix


def is_component(name: str) -> bool:
    """Return whether `name` can be the last component of a key."""
    return COMPONENT.fullmatch(name) is not None


def check_range(key: str, offset: int, nbytes: int | None) -> None:
    """Raise `UsageError` where a range cannot exist in any object."""
    if offset < 0 or (nbytes is not None and nbytes < 0):
        raise UsageError(
            "a range has no negative numbers", key=key, offset=offset, nbytes=nbytes
        )


def inside(key: str, offset: int, nbytes: int | None, size: int) -> int:
    """Return the length of a range of an object of `size` bytes.

    Raises:
        IntegrityError: the range ends beyond the object.
    """
    end = max(offset, size) if nbytes is None else offset + nbytes
    if end > size:
        raise IntegrityError(
            "range ends beyond the object", key=key, offset=offset, expected=end, found=size
        )
    return end - offset


def flat(data: Buffer) -> memoryview:
    """Return `data` as a view of single bytes, without a copy."""
    return memoryview(data).cast("B")


def exactly(key: str, blocks: Iterable[Buffer], nbytes: int) -> Iterator[memoryview]:
    """Yield the non-empty blocks as views of bytes, `nbytes` bytes in all.

    Raises:
        BackendError: there are more, or fewer. A surplus block is not yielded.
    """
    found = 0
    for block in blocks:
        view = flat(block)
        found += view.nbytes
        if found > nbytes:
            break
        if view.nbytes:
            yield view
    if found != nbytes:
        raise BackendError(
            "blocks do not have the announced length", key=key, expected=nbytes, found=found
        )
