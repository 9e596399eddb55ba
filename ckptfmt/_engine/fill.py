"""The data files of one checkpoint → all of them at a target, checked.

What is there already is not moved: files that checkpoints of the target reference are known to
be right, others are read back first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from ckptfmt._engine import catalog, parts
from ckptfmt._engine.catalog import Catalog, Memory
from ckptfmt._engine.parts import Part, Run
from ckptfmt._engine.threads import Threads
from ckptfmt.backends.base import Backend, Buffer, Entry
from ckptfmt.backends.single import publish
from ckptfmt.errors import (
    CancelledError,
    ConflictError,
    FormatError,
    IntegrityError,
    NotFoundError,
)
from ckptfmt.format import layout
from ckptfmt.format.tables import FileRow, Tables
from ckptfmt.options import Progress

_TRIES: Final = 3  # of files that vanish at the target while they are copied
_AHEAD: Final = 2  # reads in flight for each thread


@dataclass(slots=True)
class _Count:
    done: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class Fill:
    """The data files of one checkpoint, on their way from one store to another."""

    source: Backend
    target: Backend
    memory: Memory  # of the target
    number: int
    tables: Tables
    threads: int
    read_back: bool  # digest what was written once more, as the target returns it
    progress: Progress | None
    cancelled: Callable[[], bool]
    moved: dict[str, int]  # key → length of what was moved; added to
    _count: _Count = field(default_factory=_Count)
    _checked: set[str] = field(default_factory=set)  # files that are known to be right there

    @cached_property
    def _known(self) -> dict[str, list[Part]]:
        return parts.of_files(self.tables)

    def run(self) -> None:
        """Bring every data file that is missing; use those that are there and agree.

        Raises:
            IntegrityError: a chunk is damaged, at the source or at the target.
            ConflictError: files vanish at the target again and again.
            CancelledError: the caller cancelled meanwhile.
            BackendError: storage failed.
        """
        for _ in range(_TRIES):
            view = catalog.scan(self.target, self.memory)
            data = self.target.list(layout.DATA)
            held = self._held(view, data)
            missing = [f for f in self.tables.files if not self._usable(f, data, held)]
            if not missing:
                return
            each = 2 if self.read_back else 1
            self._count.done, self._count.total = 0, each * sum(f.nbytes for f in missing)
            for file in missing:
                self._move(file)
        raise ConflictError(
            "data files vanish at the target while they are copied: a deletion is under way"
            " there, copy again when it has ended",
            number=self.number,
            file=missing[0].key,
            url=self.target.url,
        )

    def _held(self, view: Catalog, data: Mapping[str, Entry]) -> dict[str, set[Part]]:
        """Return, of our files that checkpoints of the target reference, the known parts.

        They were checked when those checkpoints came there, and no deletion takes them.
        """
        wanted = {f.key for f in self.tables.files if f.key in data} - self._checked
        held: dict[str, set[Part]] = {}
        for row in reversed(view.live()):
            if all(_all_in(self._known[key], held.get(key)) for key in wanted):
                break
            with contextlib.suppress(FormatError, NotFoundError):
                for key, own in parts.of_files(view.manifest(row).tables).items():
                    if key in wanted:
                        held.setdefault(key, set()).update(p._replace(path=None) for p in own)
        return held

    def _usable(
        self, file: FileRow, data: Mapping[str, Entry], held: Mapping[str, set[Part]]
    ) -> bool:
        """Tell whether a file need not be moved; remove what a dead copy left of it."""
        if file.key not in data:
            return False
        known = held.get(file.key, set())
        unknown = []
        if file.key not in self._checked:
            unknown = [p for p in self._known[file.key] if p._replace(path=None) not in known]
        problem: FormatError | None = None
        if differs(file, data):
            problem = IntegrityError(
                "data file has another length",
                file=file.key,
                expected=file.nbytes,
                found=data[file.key].nbytes,
            )
        else:
            try:
                self._check(file, unknown)
            except IntegrityError as error:
                problem = error
        if problem is None:
            self._checked.add(file.key)
            return True
        if known:  # it belongs to a checkpoint of the target: not ours to replace
            raise IntegrityError(
                f"data file is damaged at the target: remove it there, then copy again:"
                f" {problem.message}",
                url=self.target.url,
            ) from problem
        self.target.delete(file.key)
        return False

    def _move(self, file: FileRow) -> None:
        """Write one file and check it.

        Raises:
            IntegrityError: a chunk of the source is damaged, or the target returns other bytes.
        """
        read_back = self.read_back
        with contextlib.closing(self._blocks(file)) as blocks:
            try:
                publish(self.target, file.key, blocks, nbytes=file.nbytes, overwrite=False)
            except ConflictError:
                read_back = True  # another copy was faster: what did it write?
        if read_back:
            try:
                self._check(file, self._known[file.key])
            except IntegrityError:
                self.target.delete(file.key)
                raise
        self.moved[file.key] = file.nbytes
        self._checked.add(file.key)

    def _blocks(self, file: FileRow) -> Generator[Buffer, None, None]:
        """Yield the bytes of a file of the source, each checked before it is handed out."""
        own = parts.whole(self._known[file.key], file.nbytes)
        with contextlib.closing(self._read(self.source, file.key, own)) as found:
            for run, data in found:
                if self.cancelled():
                    raise CancelledError("copy was cancelled", file=file.key)
                self._advance(run.nbytes)
                yield data

    def _check(self, file: FileRow, own: Iterable[Part]) -> None:
        """Read parts of a file back from the target and compare their digests."""
        with contextlib.closing(self._read(self.target, file.key, own)) as found:
            for run, _ in found:
                self._advance(run.nbytes)

    def _read(
        self, backend: Backend, key: str, own: Iterable[Part]
    ) -> Generator[tuple[Run, memoryview], None, None]:
        """Read parts in order, several at once, and check them."""

        def fetch(run: Run) -> tuple[Run, memoryview]:
            data = parts.read(backend, key, run)
            parts.check(backend, key, run, data, self.tables.digest)
            return run, data

        with Threads(self.threads, "ckptfmt-copy") as pool:
            yield from pool.ordered(fetch, parts.runs(own), ahead=_AHEAD * self.threads)

    def _advance(self, nbytes: int) -> None:
        self._count.done += nbytes
        if self.progress is not None:
            phase = f"checkpoint {self.number}"
            self.progress(phase, self._count.done, max(self._count.done, self._count.total))


def differs(file: FileRow, data: Mapping[str, Entry]) -> bool:
    """Tell whether a data file is missing, or has another length than its row says."""
    return file.key not in data or data[file.key].nbytes != file.nbytes


def _all_in(own: Iterable[Part], known: set[Part] | None) -> bool:
    return known is not None and all(p._replace(path=None) in known for p in own)
