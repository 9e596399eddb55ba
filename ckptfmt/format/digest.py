"""Digest algorithms by name (spec §7.2).

xxh3-128 runs at memory speed and finds every accident; sha256 is for stores that an adversary
may write to. The name is recorded per manifest and inherited from the parent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import xxhash

from ckptfmt.errors import FormatError, UnsupportedError, UsageError

Buffer: TypeAlias = bytes | bytearray | memoryview


class Hasher(Protocol):
    """Incremental form: feed blocks in order, then ask for the digest."""

    def update(self, data: Buffer, /) -> None:
        """Add the next bytes."""

    def digest(self) -> bytes:
        """Return the digest of all bytes so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """One algorithm."""

    name: str  # as stored in a manifest
    nbytes: int  # length of a digest
    of: Callable[[Buffer], bytes]  # one call; releases the GIL on large buffers
    new: Callable[[], Hasher]  # incremental
    cryptographic: bool  # resists a deliberate collision


def _sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


DIGESTS: Final[dict[str, Digest]] = {
    "xxh3-128": Digest(
        name="xxh3-128",
        nbytes=16,
        of=xxhash.xxh3_128_digest,
        new=xxhash.xxh3_128,
        cryptographic=False,
    ),
    "sha256": Digest(
        name="sha256", nbytes=32, of=_sha256, new=hashlib.sha256, cryptographic=True
    ),
}


def stored(name: object, at: str) -> Digest:
    """Return the algorithm a manifest names.

    Raises:
        FormatError: it names none.
        UnsupportedError: this release does not know it.
    """
    if not isinstance(name, str):
        raise FormatError("expected the name of a digest algorithm", at=at, found=name)
    found = DIGESTS.get(name)
    if found is None:
        raise UnsupportedError(
            f"unknown digest algorithm: upgrade ckptfmt, it knows {sorted(DIGESTS)}",
            at=at,
            found=name,
        )
    return found


def chosen(name: str) -> Digest:
    """Return the algorithm a caller asked for.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in DIGESTS:
        raise UsageError("no such digest algorithm", expected=sorted(DIGESTS), found=name)
    return DIGESTS[name]
