"""`ckptfmt verify`: read every stored byte and compare it with its digest."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import ckptfmt
from ckptfmt import Checkpoint, Store
from ckptfmt.api import split_address
from ckptfmt.cli import address, exits, listing, text
from ckptfmt.cli.document import Document
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Column, Styled
from ckptfmt.errors import FormatError, NotFoundError, UnsupportedError
from ckptfmt.reports import Problem, Seen, VerifyReport

_STYLES: Final = {"ok": "good", "damaged": "bad", "newer": "warn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one checkpoint."""

    number: int
    status: str  # ok, damaged, or newer: written for a later release and not verified
    reason: str | None = None  # why its manifest cannot be read
    report: VerifyReport | None = None  # None without a manifest
    dropped: tuple[str, ...] = ()  # sections that are not there any more


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "address",
        metavar="ADDRESS|STORE",
        help="one checkpoint, or a store for all of its checkpoints",
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Verify one checkpoint, or a whole store; 1 if anything is damaged."""
    url, which = split_address(args.address)
    if which is None and not address.is_bundle(url):
        store = address.open_store(url)
        url, checked = store.url, list(_store(store, screen))
    else:
        checkpoint = ckptfmt.open_checkpoint(args.address)
        url, checked = checkpoint.url, [_checkpoint(checkpoint, screen)]
    if args.json:
        screen.json({"url": url, "checkpoints": [_document(one) for one in checked]})
    else:
        _draw(screen, checked)
    return exits.OK if all(one.status == "ok" for one in checked) else exits.PROBLEMS


def _store(store: Store, screen: Screen) -> Iterator[Checked]:
    seen = Seen()  # bytes that checkpoints share are read once
    for row in listing.rows(store):
        if row.status in ("damaged", "newer"):
            yield Checked(number=row.number, status=row.status, reason=row.reason)
        elif row.checkpoint is not None:
            try:
                yield _as_it_is(store, row.checkpoint, screen, seen)
            except NotFoundError:
                continue  # deleted since the listing
            except FormatError as error:
                status = "newer" if isinstance(error, UnsupportedError) else "damaged"
                yield Checked(number=row.number, status=status, reason=error.message)


def _as_it_is(store: Store, found: Checkpoint, screen: Screen, seen: Seen) -> Checked:
    """Verify a checkpoint, or what is left of it when others slim it meanwhile."""
    try:
        return _checkpoint(found, screen, seen)
    except NotFoundError:
        return _checkpoint(store[found.number], screen, seen)


def _checkpoint(checkpoint: Checkpoint, screen: Screen, seen: Seen | None = None) -> Checked:
    with screen.bar(f"checkpoint {checkpoint.number}") as bar:
        report = checkpoint.verify(seen=seen, progress=bar)
    status = "ok" if report.ok else "damaged"
    return Checked(
        number=checkpoint.number, status=status, report=report, dropped=checkpoint.dropped
    )


def _document(row: Checked) -> Document:
    report = row.report
    return {
        "number": row.number,
        "status": row.status,
        "reason": row.reason,
        "dropped": row.dropped,
        "arrays": None if report is None else report.arrays,
        "chunks": None if report is None else report.chunks,
        "nbytes": None if report is None else report.nbytes,
        "read_nbytes": None if report is None else report.read_nbytes,
        "problems": [
            {
                "path": problem.path,
                "file": problem.key,
                "offset": problem.offset,
                "expected": problem.expected,
                "found": problem.found,
                "message": problem.message,
            }
            for problem in (() if report is None else report.problems)
        ],
    }


def _draw(screen: Screen, checked: Sequence[Checked]) -> None:
    if not checked:
        screen.line("no checkpoint to verify")
        return
    screen.table(
        [
            Column(title="checkpoint", right=True),
            Column(title="status"),
            Column(title="arrays", right=True),
            Column(title="read", right=True),
            Column(title="problems", right=True),
        ],
        [
            (
                str(row.number),
                Styled(row.status, _STYLES[row.status]),
                "-" if row.report is None else f"{row.report.arrays:,}",
                "-" if row.report is None else text.nbytes(row.report.read_nbytes),
                "-" if row.report is None else f"{len(row.report.problems):,}",
            )
            for row in checked
        ],
    )
    for row in checked:
        if row.dropped:
            screen.line(f"{row.number} is slimmed: no {', '.join(row.dropped)}", "dim")
    for row in checked:
        if row.reason is not None:
            screen.line()
            screen.line(f"{row.number} is {row.status}: {row.reason}", _STYLES[row.status])
    _draw_problems(
        screen, [(r.number, p) for r in checked if r.report for p in r.report.problems]
    )


def _draw_problems(screen: Screen, problems: Sequence[tuple[int, Problem]]) -> None:
    if not problems:
        return
    screen.title(text.count(len(problems), "problem"))
    columns = [
        Column(title="checkpoint", right=True),
        Column(title="array", folds=True),
        Column(title="data file", folds=True),
        Column(title="offset", right=True),
        Column(title="what is wrong", folds=True),
    ]
    screen.table(
        columns,
        [
            (
                str(number),
                problem.path or "-",
                problem.key,
                f"{problem.offset:,}",
                problem.message.partition(" [")[0],
            )
            for number, problem in problems
        ],
    )
