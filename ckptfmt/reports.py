"""What a checkpoint reports about its arrays and their bytes."""

from __future__ import annotations

import datetime
import functools
import itertools
import logging
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import Final

from ckptfmt._engine.audit import Seen as Seen
from ckptfmt._engine.audit import audit
from ckptfmt._engine.read import Reader
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError
from ckptfmt.format.manifest import Manifest
from ckptfmt.format.summary import Summary
from ckptfmt.format.tables import Tables
from ckptfmt.leaves import unescape
from ckptfmt.options import Progress

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_log: Final = logging.getLogger("ckptfmt")


class ArrayInfo:
    """What the manifest says of one array; what lists do not show is looked up when asked."""

    __slots__ = ("_row", "_tables", "aliases", "dtype", "path", "shape")

    def __init__(
        self,
        path: str,
        dtype: str,
        shape: tuple[int, ...],
        aliases: tuple[str, ...],
        tables: Tables,
        row: int,
    ) -> None:
        self.path = path
        self.dtype = dtype  # stored name, such as "F32"
        self.shape = shape
        self.aliases = aliases  # paths of tied arrays
        self._tables = tables
        self._row = row

    def __repr__(self) -> str:
        return f"ArrayInfo({self.path!r}, {self.dtype}, shape={self.shape})"

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._tables.array(self._row).nbytes

    @property
    def stored_nbytes(self) -> int:
        """Bytes of its chunks as stored."""
        return sum(chunk.nbytes for chunk in self._tables.chunks(self._row))

    @property
    def chunks(self) -> int:
        """Number of its chunks."""
        return len(self._tables.chunks(self._row))

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Digests of the decoded bytes of each chunk."""
        return tuple(chunk.raw_digest for chunk in self._tables.chunks(self._row))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing `verify` found wrong."""

    path: str | None  # array, or None for the header of a data file
    key: str  # data file
    offset: int
    expected: str | None
    found: str | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What `verify` read and found."""

    checkpoint: int
    arrays: int
    chunks: int
    nbytes: int  # stored bytes of its chunks
    read_nbytes: int  # thereof read now; the others were read for another checkpoint
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True when every byte is what was saved."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise for the first problem.

        Raises:
            IntegrityError: something is damaged; the message counts the other problems.
        """
        if self.problems:
            first = self.problems[0]
            raise IntegrityError(
                first.message, checkpoint=self.checkpoint, others=len(self.problems) - 1
            )


class ArrayTable(Mapping[str, ArrayInfo]):
    """What the manifest says of each array, by path, in order of the tree.

    Rows are made when asked for, and kept by nobody: a list of a million arrays costs little.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __repr__(self) -> str:
        return f"<ArrayTable of {len(self)} arrays>"

    def __len__(self) -> int:
        return len(self._tables)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables.paths)

    def __contains__(self, path: object) -> bool:
        return path in self._rows

    def __getitem__(self, path: str) -> ArrayInfo:
        row = self._rows[path]
        array = self._tables.array(row)
        aliases = self._aliases.get(row, ())
        return ArrayInfo(path, array.dtype.name, array.shape, aliases, self._tables, row)

    def items(self) -> ItemsView[str, ArrayInfo]:
        """Return (path, what is said of it) of each array."""
        return _Items(self)

    def values(self) -> ValuesView[ArrayInfo]:
        """Return what is said of each array."""
        return _Values(self)

    def rows(self) -> Iterator[ArrayInfo]:
        """Yield what is said of each array: far faster than asking for one by one."""
        tables, rows = self._tables, range(len(self))
        names = [kind.name for kind in tables.dtypes]
        return map(
            ArrayInfo,
            tables.paths,
            [names[kind] for kind in tables.dtype.tolist()],
            tables.shapes(),
            map(self._aliases.get, rows, itertools.repeat(())),
            itertools.repeat(tables),
            rows,
        )

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self._tables.paths)}

    @functools.cached_property
    def _aliases(self) -> dict[int, tuple[str, ...]]:
        tied: dict[int, list[str]] = {}
        for row, path in self._tables.aliases:
            tied.setdefault(row, []).append(path)
        return {row: tuple(paths) for row, paths in tied.items()}


class _Values(ValuesView[ArrayInfo]):
    def __init__(self, table: ArrayTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[ArrayInfo]:
        return self._table.rows()


class _Items(ItemsView[str, ArrayInfo]):
    def __init__(self, table: ArrayTable) -> None:
        super().__init__(table)
        self._table = table

    def __iter__(self) -> Iterator[tuple[str, ArrayInfo]]:
        return zip(self._table, self._table.rows(), strict=True)


def verify(
    reader: Reader, number: int, *, seen: Seen | None, progress: Progress | None
) -> VerifyReport:
    """Digest every stored byte of a checkpoint; finds all problems.

    Raises:
        NotFoundError: there are some, and it was deleted or revised meanwhile.
    """
    found = audit(
        reader.backend,
        reader.tables,
        reader.places,
        seen=seen or Seen(),
        threads=reader.threads,
        progress=progress,
    )
    if found.problems and (why := reader.changed()) is not None:
        raise why
    return VerifyReport(
        checkpoint=number,
        arrays=len(reader.tables),
        chunks=found.chunks,
        nbytes=found.nbytes,
        read_nbytes=found.read_nbytes,
        problems=tuple(map(problem, found.problems)),
    )


def problem(error: IntegrityError) -> Problem:
    """Return an error as a row of a report."""
    where = error.where
    path, offset = where.get("path"), where.get("offset")
    return Problem(
        path=path if isinstance(path, str) else None,
        key=str(where.get("file")),
        offset=offset if isinstance(offset, int) else 0,
        expected=None if where.get("expected") is None else str(where["expected"]),
        found=None if where.get("found") is None else str(where["found"]),
        message=error.message,
    )


def moment(time_us: int) -> datetime.datetime:
    """Return microseconds since the Unix epoch as a time; at most the end of year 9999."""
    last = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    return _EPOCH + min(datetime.timedelta(microseconds=time_us), last - _EPOCH)


def check_dropped(
    summary: Summary, asked: str | Iterable[str], cause: Exception | None = None
) -> None:
    """Refuse patterns that ask for a section which is not there any more.

    Raises:
        NotFoundError: it was dropped; says when.
    """
    for pattern in [asked] if isinstance(asked, str) else asked:
        section = unescape(pattern.split("/", 1)[0])
        if section in summary.dropped:
            at = summary.dropped_at.get(section)
            when = "" if at is None else f" on {moment(at):%Y-%m-%d %H:%M:%S} UTC"
            raise NotFoundError(
                f"this section was dropped from the checkpoint{when} to save space (slimmed)",
                section=section,
                checkpoint=summary.number,
                dropped=summary.dropped,
            ) from cause


def check_identity(expected: str, found: str, manifest: Manifest) -> None:
    """Refuse a checkpoint that is not the one a caller pinned.

    Raises:
        MismatchError: another identity.
    """
    if expected != found:
        raise MismatchError(
            "this is not the checkpoint that was expected",
            checkpoint=manifest.summary.number,
            expected=expected,
            found=found,
        )
    if not manifest.tables.digest.cryptographic:
        _log.warning(
            "identity %s pins the data against damage only: chunks have %s digests; save"
            " with digest='sha256' to pin them against an adversary",
            expected[:12],
            manifest.tables.digest.name,
        )
