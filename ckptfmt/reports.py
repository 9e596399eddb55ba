"""What a checkpoint reports about its arrays and their bytes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckptfmt._engine import restore
from ckptfmt._engine.read import Reader
from ckptfmt.errors import IntegrityError, MismatchError
from ckptfmt.format.manifest import Manifest
from ckptfmt.format.tables import Tables
from ckptfmt.options import Progress

_log: Final = logging.getLogger("ckptfmt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """What the manifest says of one array."""

    path: str
    dtype: str  # stored name, such as "F32"
    shape: tuple[int, ...]
    nbytes: int  # in memory
    stored_nbytes: int
    aliases: tuple[str, ...]  # paths of tied arrays
    chunks: int
    digests: tuple[bytes, ...]  # of the decoded bytes of each chunk


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
    nbytes: int  # stored bytes digested
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
    """What the manifest says of each array, by path, in order of the tree; made when asked."""

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

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {path: row for row, path in enumerate(self._tables.paths)}

    @functools.cached_property
    def _aliases(self) -> dict[int, list[str]]:
        aliases: dict[int, list[str]] = {}
        for row, path in self._tables.aliases:
            aliases.setdefault(row, []).append(path)
        return aliases

    def __getitem__(self, path: str) -> ArrayInfo:
        row = self._rows[path]
        array, chunks = self._tables.array(row), self._tables.chunks(row)
        return ArrayInfo(
            path=array.path,
            dtype=array.dtype.name,
            shape=array.shape,
            nbytes=array.nbytes,
            stored_nbytes=sum(c.nbytes for c in chunks),
            aliases=tuple(self._aliases.get(row, ())),
            chunks=len(chunks),
            digests=tuple(c.raw_digest for c in chunks),
        )


def verify(reader: Reader, number: int, *, progress: Progress | None) -> VerifyReport:
    """Digest every stored byte of a checkpoint; finds all problems."""
    rows = range(len(reader.tables))
    chunks, nbytes, problems = restore.verify_all(reader, rows, progress=progress)
    return VerifyReport(
        checkpoint=number,
        arrays=len(rows),
        chunks=chunks,
        nbytes=nbytes,
        problems=tuple(map(problem, [*restore.header_problems(reader), *problems])),
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


def overlaid(
    prefix: str, saved: Mapping[str, Any], attached: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was saved, overlaid with what was attached later; None removes."""
    late = {n.removeprefix(prefix): v for n, v in attached.items() if n.startswith(prefix)}
    kept = {name: value for name, value in saved.items() if late.get(name, 0) is not None}
    return {**kept, **{name: value for name, value in late.items() if value is not None}}


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
