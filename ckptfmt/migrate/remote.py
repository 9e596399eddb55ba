"""Sources behind a URL: each file that a reader looks into is fetched once, then mapped.

Readers jump about in a file, and a checkpoint is read whole anyway: one sequential pass into a
scratch file without a name is simple, bounded in memory, and as fast as the storage.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Final, final

from ckptfmt.backends import Backend
from ckptfmt.backends.single import open_foreign
from ckptfmt.errors import BackendError, NotFoundError
from ckptfmt.migrate.files import Place, Span, chosen, plain_name, whole_of

BLOCK_NBYTES: Final = 16 * 2**20


@final
class Remote:
    """A folder behind a URL of fsspec."""

    def __init__(self, backend: Backend) -> None:
        self.path = backend.url
        self._backend = backend
        self._spans: dict[str, Span] = {}
        self._lengths: dict[str, dict[str, int]] = {}  # by folder: a listing is asked for once

    def names(self) -> list[str]:
        """Return the names of the files here, sorted."""
        return sorted(self._listed(""))

    def others(self) -> list[str]:
        """Return nothing: storage tells the files of a folder only."""
        return []

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return name in self._listed(name.rpartition("/")[0])

    def span(self, name: str) -> Span:
        """Return a file; the first time it is fetched.

        Raises:
            NotFoundError: no such file.
            BackendError: storage failed, or there is no space for the scratch file.
        """
        if name not in self._spans:
            nbytes = self._listed(name.rpartition("/")[0]).get(name)
            if nbytes is None:
                raise NotFoundError("no such file", file=name, url=self.path)
            self._spans[name] = Span(name, self._fetched(name, nbytes))
        return self._spans[name]

    def inside(self, name: object, *, said_by: str) -> Span:
        """Return a file whose name stands in the file `said_by`.

        Raises:
            FormatError: no plain relative name.
            NotFoundError: no such file.
        """
        return self.span(plain_name(name, said_by))

    def _listed(self, folder: str) -> dict[str, int]:
        if folder not in self._lengths:
            found = self._backend.list(folder)
            self._lengths[folder] = {key: entry.nbytes for key, entry in found.items()}
        return self._lengths[folder]

    def _fetched(self, name: str, nbytes: int) -> memoryview:
        if not nbytes:
            return memoryview(b"")
        with tempfile.TemporaryFile() as scratch:
            for at in range(0, nbytes, BLOCK_NBYTES):
                block = self._backend.read(name, at, min(BLOCK_NBYTES, nbytes - at))
                try:
                    scratch.write(block)
                except OSError as error:
                    raise BackendError("cannot write the scratch file", file=name) from error
            scratch.flush()
            return memoryview(mmap.mmap(scratch.fileno(), nbytes, access=mmap.ACCESS_READ))


def remote_place(
    url: str | os.PathLike[str], storage_options: dict[str, object] | None = None
) -> Place:
    """Return where a source behind a URL lies: a file, a folder, or a prefix.

    Raises:
        NotFoundError: nothing is there.
        BackendError: storage failed.
    """

    def has(path: str) -> bool:
        above, _, file = path.rpartition("/")
        return Remote(open_foreign(above, storage_options=storage_options)).has(file)

    text = whole_of(os.fspath(url).rstrip("/"), has)
    parent, _, name = text.rpartition("/")
    is_bucket = parent.endswith(":/")
    folder = Remote(
        open_foreign(text if is_bucket else parent, storage_options=storage_options)
    )
    if not is_bucket and folder.has(name):
        return Place(folder, name)
    below = folder if is_bucket else Remote(open_foreign(text, storage_options=storage_options))
    if below.names() or below.has("variables/variables.index"):
        return Place(below, None)
    members = [] if is_bucket else folder.names()
    members = [other for other in members if other.startswith(f"{name}.")]
    if not members:
        raise NotFoundError("no such file, folder or prefix", source=text)
    return Place(folder, chosen(name, members))
