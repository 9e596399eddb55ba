"""Every exception ckptfmt raises on purpose, grouped by what the caller can do about it.

    CheckpointError
    ├── NotFoundError        (also KeyError)    ask for another checkpoint, path or key
    ├── ConflictError                           another writer won: reload, then retry
    ├── FormatError          (also ValueError)  these bytes are not a valid checkpoint
    │   ├── UnsupportedError                    valid, but needs a newer ckptfmt
    │   └── IntegrityError                      valid once, damaged since: use a replica
    ├── MismatchError        (also ValueError)  checkpoint and target, or two ranks, disagree
    ├── StateError           (also TypeError)   this value cannot be stored: convert it
    ├── UsageError           (also ValueError)  the call itself is wrong: fix the argument
    ├── CancelledError                          the caller cancelled this save
    └── BackendError         (also OSError)     storage failed; usually worth a retry

`code` is stable across releases (append-only); messages are not. Details that belong to a
message are passed by keyword and kept in `where`, so that a handler can read them
(`error.where["path"]`) instead of parsing text.
"""

from __future__ import annotations

import reprlib
from typing import ClassVar, Final

MAX_SHOWN: Final = 10_000  # characters of one value in a message; paths are shorter


class _Shown(reprlib.Repr):
    """A `repr` that is short and never fails: what it shows may come from a hostile file."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 20
        self.maxstring = self.maxother = MAX_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print an int of more than 4300 digits.
        return repr(x) if x.bit_length() <= 512 else f"<int of {x.bit_length()} bits>"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= 100 else f"{x[:100]!r}... of {len(x)} bytes"


def _shown(value: object) -> str:
    text = _Shown().repr(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


class CheckpointError(Exception):
    """Base of all errors raised by ckptfmt."""

    code: ClassVar[str] = "checkpoint"

    def __init__(self, message: str, **where: object) -> None:
        details = ", ".join(f"{name}={_shown(value)}" for name, value in where.items())
        self.message = f"{message} [{details}]" if details else message
        super().__init__(self.message)
        self.where = where

    def __str__(self) -> str:
        # KeyError would print the repr of its argument, OSError its errno: neither helps here.
        return self.message


class NotFoundError(CheckpointError, KeyError):
    """No such checkpoint, path, key or metric."""

    code = "not-found"


class ConflictError(CheckpointError):
    """Another writer holds the name; nothing of theirs was changed."""

    code = "conflict"


class FormatError(CheckpointError, ValueError):
    """The bytes do not follow the specification."""

    code = "format"


class UnsupportedError(FormatError):
    """The bytes are valid, but need a feature or version this release does not know."""

    code = "unsupported"


class IntegrityError(FormatError):
    """The bytes were valid once and have been damaged, truncated or swapped since."""

    code = "integrity"


class MismatchError(CheckpointError, ValueError):
    """The checkpoint and the target, or two ranks, disagree about paths, shapes or dtypes."""

    code = "mismatch"


class StateError(CheckpointError, TypeError):
    """A value in the state tree cannot be stored exactly."""

    code = "state"


class UsageError(CheckpointError, ValueError):
    """An argument is out of range or contradicts another one."""

    code = "usage"


class CancelledError(CheckpointError):
    """The pending save was cancelled before its commit; nothing became visible."""

    code = "cancelled"


class BackendError(CheckpointError, OSError):
    """Storage failed. The original error is the `__cause__`.

    `errno` is that of the cause where there is one, so that `ENOSPC` can be told from `EACCES`.
    """

    code = "backend"

    @property
    def errno(self) -> int | None:  # type: ignore[override]
        """The operating system's error number, or None when storage gave none."""
        cause = self.__cause__
        return cause.errno if isinstance(cause, OSError) else None
