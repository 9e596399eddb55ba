"""What the exit status of a command says; scripts may rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

OK: Final = 0
PROBLEMS: Final = 1  # `verify`, `diff`, `env`, `doctor` and `copy` ran, and found something
USAGE: Final = 2
NOT_FOUND: Final = 3
CONFLICT: Final = 4
FORMAT: Final = 5
UNSUPPORTED: Final = 6
MISMATCH: Final = 7
STORAGE: Final = 8
INTERRUPTED: Final = 130  # Ctrl-C
BROKEN_PIPE: Final = 141  # whoever read the output stopped, as `head` does

BY_CODE: Final[Mapping[str, int]] = {
    "usage": USAGE,
    "state": USAGE,
    "not-found": NOT_FOUND,
    "conflict": CONFLICT,
    "format": FORMAT,
    "integrity": FORMAT,
    "unsupported": UNSUPPORTED,
    "mismatch": MISMATCH,
    "backend": STORAGE,
    "cancelled": INTERRUPTED,
}
