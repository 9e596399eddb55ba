"""How a finished file gets its name, all at once, and what becomes of unfinished ones."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from typing import Final

from ckptfmt.backends import _syscalls

# A file system without hard links (FAT, exFAT, some network and FUSE ones) answers with one of
# these; so does one that has no exclusive rename.
NO_SUCH_CALL: Final = _syscalls.UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EMLINK}
HIDDEN: Final = re.compile(r"\..+\.[0-9a-f]{16}")
LEFTOVER_SECONDS: Final = 24 * 3600


def hidden(path: str) -> str:
    """Return a new name beside `path` that no listing shows."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}")


def name_new(temporary: str, path: str) -> bool:
    """Give a file a name that is not taken; False where the file system cannot.

    The temporary name may stay; `discard` it.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        _syscalls.link(temporary, path)
    except OSError as error:
        # A network file system can lose the answer; the repeated request then finds the name
        # taken by its own file.
        if _is_same_file(temporary, path):
            return True
        if error.errno not in NO_SUCH_CALL:
            raise
    else:
        return True
    try:
        _syscalls.rename_new(temporary, path)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
        return False
    return True


def discard(path: str) -> None:
    """Remove a file that is of no use; if that fails there is something worse to report."""
    with contextlib.suppress(OSError):
        _syscalls.unlink(path)


def remove_leftovers(folder: str) -> None:
    """Remove the unfinished files of processes that died here more than a day ago.

    Age is counted to the last change of the folder: both times are by the storage's clock.
    """
    with contextlib.suppress(OSError):
        changed = os.stat(folder).st_mtime
        with os.scandir(folder) as scan:
            for item in scan:
                if HIDDEN.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    status = item.stat(follow_symlinks=False)
                    if changed - status.st_mtime > LEFTOVER_SECONDS:
                        discard(item.path)


def _is_same_file(first: str, second: str) -> bool:
    try:
        one, other = (os.stat(path, follow_symlinks=False) for path in (first, second))
    except OSError:
        return False
    return one.st_ino != 0 and os.path.samestat(one, other)
