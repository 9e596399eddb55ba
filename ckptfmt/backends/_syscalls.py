"""Every call of the local backend that opens or changes a file, one function each.

The backend calls them as attributes of this module, so that a test can stand in for any of
them: `ckptfmt.testing.powerloss` records them, the fault tests make them fail. What a platform
lacks is decided here and nowhere else.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

if sys.platform != "win32":
    import fcntl

AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2

# Neither inherited by a child process nor, on Windows, translated at line ends.
COMMON: Final = (
    getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
)
# A link could lead out of the store, and opening a pipe would wait for its other end.
READ: Final = os.O_RDONLY | COMMON | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | COMMON

# Some file systems have nothing to sync for a folder, and say so with one of these.
UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def open_read(path: str) -> int:
    """Open a file for reading; a symbolic link in its last component is refused."""
    return os.open(path, READ)


def open_new(path: str) -> int:
    """Create a file that must not exist. The umask decides about its mode."""
    return os.open(path, NEW, 0o666)


def open_direct(path: str) -> int:
    """Open an existing file for writing past the page cache.

    Raises:
        OSError: the platform or the file system cannot do that.
    """
    direct = getattr(os, "O_DIRECT", None)
    if direct is None:
        raise OSError(errno.ENOTSUP, "no O_DIRECT on this platform", path)
    return os.open(path, os.O_WRONLY | COMMON | direct)


def close(fd: int) -> None:
    """Close a file; network file systems report late write errors here."""
    os.close(fd)


def read_at(fd: int, target: memoryview, offset: int) -> int:
    """Read into `target`; return the number of bytes read, 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target], offset)
    os.lseek(fd, offset, os.SEEK_SET)  # safe: nobody shares this descriptor
    data = os.read(fd, target.nbytes)
    target[: len(data)] = data
    return len(data)


def write(fd: int, views: Sequence[memoryview]) -> int:
    """Append the views; return the number of bytes written, which may be fewer."""
    if hasattr(os, "writev"):
        return os.writev(fd, views)
    return os.write(fd, views[0])


def write_at(fd: int, view: memoryview, offset: int) -> int:
    """Write at an offset; return the number of bytes written, which may be fewer."""
    return os.pwrite(fd, view, offset)


def reserve(fd: int, nbytes: int) -> None:
    """Reserve space for a file of `nbytes` bytes; it has that length afterwards.

    Not `posix_fallocate`: where the file system cannot reserve, the C library would write
    into every block instead, which is slower than doing without.

    Raises:
        OSError: the file system cannot reserve, or has not enough space.
    """
    _checked(_c_function("fallocate", _INT, _INT, _OFFSET, _OFFSET), fd, 0, 0, nbytes)


def start_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Have the kernel begin to write a range to the disk. A hint: guarantees nothing.

    Raises:
        OSError: the platform or the file system cannot do that.
    """
    call = _c_function("sync_file_range", _INT, _OFFSET, _OFFSET, ctypes.c_uint)
    _checked(call, fd, offset, nbytes, SYNC_FILE_RANGE_WRITE)


def sync(fd: int) -> None:
    """Return when the bytes and the length of a file would survive a loss of power.

    Raises:
        OSError: they may be lost, and a second call would not say so: the kernel forgets
            the pages it failed to write. Give up the file.
    """
    full_sync = getattr(fcntl, "F_FULLFSYNC", None) if sys.platform != "win32" else None
    if full_sync is not None:  # macOS: fsync leaves the bytes in the drive's own cache
        try:
            fcntl.fcntl(fd, full_sync)
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.ENOTTY}:
                raise
        else:
            return
    os.fsync(fd)


def sync_folder(path: str) -> None:
    """Return when the names in a folder would survive a loss of power."""
    if sys.platform == "win32":  # a folder cannot be opened there; NTFS journals its names
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | COMMON)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Create one folder. The umask decides about its mode."""
    os.mkdir(path, 0o777)


def link(source: str, target: str) -> None:
    """Give a file a second name; FileExistsError where the name is taken."""
    os.link(source, target)


def rename_new(source: str, target: str) -> None:
    """Rename a file to a name that must not exist; FileExistsError where it is taken.

    Raises:
        OSError: the platform or the file system has no such call.
    """
    if sys.platform == "win32":
        os.rename(source, target)  # never replaces there
        return
    path = ctypes.c_char_p
    call = _c_function("renameat2", _INT, path, _INT, path, ctypes.c_uint)
    names = os.fsencode(source), os.fsencode(target)
    _checked(call, AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_NOREPLACE)


def replace(source: str, target: str) -> None:
    """Rename a file, over whatever has the name."""
    os.replace(source, target)


def unlink(path: str) -> None:
    """Remove a name."""
    os.unlink(path)


_INT: Final = ctypes.c_int
_OFFSET: Final = ctypes.c_int64


@functools.cache
def _c_function(name: str, *types: type) -> Callable[..., int] | None:
    """Look up what Python has no wrapper for; None where the C library lacks it, too."""
    if sys.platform == "win32":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is not None:
        function.argtypes = types
        function.restype = ctypes.c_int
    return function


def _checked(call: Callable[..., int] | None, *arguments: object) -> None:
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
