"""How a store is opened and how its bytes are moved: small frozen records."""

from __future__ import annotations

import datetime
import functools
import numbers
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from ckptfmt.errors import UsageError

FENCE_SECONDS: Final = 7 * 86400  # a deleted number stays taken at least so long (spec §8.2.5)
LOCAL_FILE_NBYTES: Final = 2 * 2**30
REMOTE_FILE_NBYTES: Final = 2**30  # each file's end and commit lets the connections idle

Progress = Callable[[str, int, int], None]
"""Called with (phase, bytes done, bytes in all), from one thread at a time."""


def expect(argument: str, value: object, *kinds: type) -> None:
    """Raise unless an argument is of one of the kinds: better here than deep within.

    Raises:
        UsageError: it is not; names the argument, what was expected and what it is.
    """
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
        raise UsageError(
            f"expected {names}, got {type(value).__name__}", argument=argument, found=value
        )


def expect_progress(value: object) -> None:
    """Raise unless `value` can be told of progress, or is None.

    Raises:
        UsageError: it cannot.
    """
    if value is not None and not callable(value):
        raise UsageError(
            f"expected a function or None, got {type(value).__name__}",
            argument="progress",
            found=value,
        )


def expect_numbers(argument: str, value: object) -> list[int]:
    """Return the checkpoint numbers that a user gives, one or several, as plain ints.

    Raises:
        UsageError: something else is among them. A bool, say: it would be stored as one.
    """
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    found = []
    for one in several:
        if isinstance(one, bool) or not isinstance(one, numbers.Integral):
            reason = f"expected checkpoint numbers, got {type(one).__name__}"
            raise UsageError(reason, argument=argument, found=one)
        found.append(int(one))
    return found


@functools.cache
def default_threads() -> int:
    """Return how many threads copy, digest and read where nobody says."""
    return max(1, min(4, os.cpu_count() or 1))


def _now() -> int:
    return max(0, int(datetime.datetime.now(datetime.UTC).timestamp() * 1e6))


def _save_id() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Time and chance, injected once when a store is opened; tests pass their own."""

    now: Callable[[], int] = _now  # microseconds since the Unix epoch; never decides anything
    monotonic: Callable[[], float] = time.monotonic  # seconds; fences old saves
    save_id: Callable[[], str] = _save_id  # 24 hexadecimal digits, never repeated

    def time(self) -> int:
        """Return what `now` says, which goes into manifests and leases.

        Raises:
            UsageError: it is none that a reader would take.
        """
        found = self.now()
        if type(found) is not int or not 0 <= found < 2**63:
            raise UsageError(
                "a clock says microseconds since 1970, as an int below 2**63", found=found
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How data files are written."""

    durable: bool = True  # fsync everything before a save returns
    digest: str | None = None  # None: as in the parent, else xxh3-128
    codec: str = "raw"
    threads: int = 2
    max_file_nbytes: int = LOCAL_FILE_NBYTES
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        expect("threads", self.threads, int)
        if self.threads < 1 or self.max_file_nbytes < 2**20:
            raise UsageError(
                "expected threads >= 1 and max_file_nbytes >= 1 MiB",
                found=(self.threads, self.max_file_nbytes),
            )
