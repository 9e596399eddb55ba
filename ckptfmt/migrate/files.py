"""Names → bytes: the files of a source, wherever they are.

A local file is mapped, so that reading an array brings in no more than its pages. Names that
stand inside a checkpoint (an index, a manifest of another format) are never trusted: `inside`
refuses everything that could leave the folder.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, final

from ckptfmt.errors import BackendError, FormatError, NotFoundError, UsageError

MAX_NAMES: Final = 100_000  # files of one folder that are looked at
# Folders of an Orbax database, whose manifest lies beside them; each is only a part of it.
_PARTS: Final = re.compile(r"d|array_metadatas|ocdbt\.process_\d+")
_MANIFEST: Final = "manifest.ocdbt"
LOCAL: Final = ("file://", "local://")


@final
@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of one file, or of one member of an archive."""

    name: str  # relative to the source's folder; members behind `!/`
    data: memoryview  # read-only; of a mapped file it costs no memory until it is read

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return len(self.data)

    def head(self, nbytes: int) -> bytes:
        """Return the first bytes, fewer if there are not so many."""
        return bytes(self.data[:nbytes])

    def tail(self, nbytes: int) -> bytes:
        """Return the last bytes, fewer if there are not so many."""
        return bytes(self.data[max(0, len(self.data) - nbytes) :])

    def cut(self, offset: int, nbytes: int, what: str) -> memoryview:
        """Return `nbytes` bytes from `offset`.

        Raises:
            FormatError: the file has no such range.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self.data):
            raise FormatError(
                f"the file ends inside {what}",
                file=self.name,
                offset=offset,
                expected=nbytes,
                found=max(0, len(self.data) - max(offset, 0)),
            )
        return self.data[offset : offset + nbytes]


class Folder:
    """The folder a source lies in, on the local disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._blobs: dict[str, Span] = {}

    def names(self) -> list[str]:
        """Return the names of the regular files here, sorted."""
        return sorted(name for name, is_file in self._listed() if is_file)

    def others(self) -> list[str]:
        """Return the names of what else is here, such as folders, sorted."""
        return sorted(name for name, is_file in self._listed() if not is_file)

    def _listed(self) -> Iterator[tuple[str, bool]]:
        try:
            with os.scandir(self.path) as entries:
                for count, entry in enumerate(entries):
                    if count >= MAX_NAMES:
                        raise UsageError(
                            f"more than {MAX_NAMES} files: name the checkpoint's own folder",
                            folder=self.path,
                        )
                    yield entry.name, entry.is_file()
        except OSError as error:
            raise BackendError("cannot list the folder", folder=self.path) from error

    def span(self, name: str) -> Span:
        """Return a file by a name that its user gave or `names` told.

        Raises:
            NotFoundError: no such file.
            BackendError: it cannot be opened.
        """
        if name not in self._blobs:
            self._blobs[name] = Span(name, _mapped(os.path.join(self.path, name)))
        return self._blobs[name]

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return os.path.isfile(os.path.join(self.path, name))

    def inside(self, name: object, *, said_by: str) -> Span:
        """Return a file whose name stands in the file `said_by`, which may be hostile.

        Raises:
            FormatError: no plain relative name, or it leads out of the folder: `..`, an
                absolute path, a backslash, a link.
            NotFoundError: no such file.
        """
        plain = plain_name(name, said_by)
        path = self.path
        for component in plain.split("/"):
            path = os.path.join(path, component)
            try:
                found = os.lstat(path)
            except OSError as error:
                raise NotFoundError(
                    "a part is missing", file=plain, named_by=said_by
                ) from error
            linked = stat.S_ISREG(found.st_mode) and found.st_nlink > 1
            if stat.S_ISLNK(found.st_mode) or linked:
                raise FormatError(
                    "a name inside a checkpoint leads to a link: copy the file in its place",
                    file=said_by,
                    found=name,
                )
        return self.span(plain)


class Names(Protocol):
    """What readers may ask of a folder, or of an archive that is read as one."""

    path: str

    def names(self) -> list[str]:
        """Return the names of the files."""

    def others(self) -> list[str]:
        """Return the names of what else is there, such as folders, where it is known."""

    def span(self, name: str) -> Span:
        """Return a file by a name that `names` told."""

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def inside(self, name: object, *, said_by: str) -> Span:
        """Return a file whose name stands in another one, which may be hostile."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a user named: a folder, and the file in it, if it was one."""

    folder: Names
    name: str | None  # None: the folder itself

    def span(self) -> Span | None:
        """Return the named file, or None when a folder was named."""
        return None if self.name is None else self.folder.span(self.name)


def place(source: str | os.PathLike[str]) -> Place:
    """Return where a source lies: a file, a folder, or the prefix of several files.

    Raises:
        NotFoundError: nothing is there.
        UsageError: no local path.
    """
    path = os.fspath(source)
    for scheme in LOCAL:
        path = path.removeprefix(scheme)
    if "\0" in path or not path:
        raise UsageError("expected a path", found=source)
    path = whole_of(path, os.path.isfile)
    if os.path.isdir(path):
        return Place(Folder(path), None)
    folder, name = os.path.split(path)
    here = Folder(folder or ".")
    if os.path.exists(path):
        return Place(here, name)
    if name and os.path.isdir(here.path):
        members = [other for other in here.names() if other.startswith(f"{name}.")]
        if members:
            return Place(here, chosen(name, members))
    raise NotFoundError("no such file, folder or prefix", source=path)


def whole_of(path: str, has: Callable[[str], bool]) -> str:
    """Return the folder of the database that a path is a part of; any other path as it is.

    Args:
        has: Whether there is a file of this path.
    """
    parts = path.split("/")
    for n in range(max(1, len(parts) - 3), len(parts)):  # a file in `ocdbt.process_0/d`
        above = "/".join(parts[:n])
        if _PARTS.fullmatch(parts[n]) and has(f"{above}/{_MANIFEST}"):
            return above
    return path


def chosen(prefix: str, members: list[str]) -> str:
    """Return which of the files of a prefix to open: the index of parts, or the only one.

    Raises:
        UsageError: there are several, and none is an index.
    """
    for name in (f"{prefix}.index", f"{prefix}.index.json"):
        if name in members:
            return name
    indexes = [name for name in members if name.endswith(".index.json")]
    few = indexes or members
    if len(few) > 1:
        raise UsageError(
            "several files begin with this name: name one of them",
            prefix=prefix,
            found=sorted(few)[:10],
        )
    return few[0]


def _mapped(path: str) -> memoryview:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait
            raise UsageError("expected a regular file", file=path)
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError as error:
        raise NotFoundError("no such file", file=path) from error
    except OSError as error:
        raise BackendError("cannot open the file", file=path) from error


def plain_name(name: object, said_by: str) -> str:
    """Return a name that stands in a file if it is harmless.

    Raises:
        FormatError: it is no plain relative name.
    """
    if isinstance(name, str) and len(name) <= 4096:
        parts = name.split("/")
        odd = "\\" in name or "\0" in name or ":" in parts[0]
        if not odd and all(part not in ("", ".", "..") for part in parts):
            return name
    raise FormatError("expected a plain relative file name", file=said_by, found=name)
