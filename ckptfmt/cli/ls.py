"""`ckptfmt ls`: the checkpoints of a store, oldest first."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckptfmt import Checkpoint
from ckptfmt._engine.collect import Leftover
from ckptfmt.cli import address, document, exits, listing, text
from ckptfmt.cli.bars import Bar
from ckptfmt.cli.document import Document
from ckptfmt.cli.listing import Row
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column, Styled
from ckptfmt.errors import FormatError, NotFoundError, UsageError

MAX_METRICS: Final = 4  # columns, unless they are asked for by name

_STYLES: Final = {"damaged": "bad", "newer": "warn", "deleted": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """One row, and what its manifest says of sizes."""

    row: Row
    new_nbytes: int = 0
    reused_nbytes: int = 0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument(
        "-a", "--all", action="store_true", help="also those damaged, too new, or deleted"
    )
    parser.add_argument("-n", "--last", type=int, metavar="N", help="only the newest N")
    parser.add_argument(
        "-m",
        "--metric",
        action="append",
        metavar="NAME",
        help=f"show this metric (repeatable); else the first {MAX_METRICS}",
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """List a store."""
    if args.last is not None and args.last < 1:
        raise UsageError("expected --last of at least 1", found=args.last)
    store = address.open_store(args.store)
    known = listing.rows(store)
    wanted = [row for row in known if args.all or row.status == "ok"][-(args.last or 0) :]
    with screen.bar(unit="checkpoints") as bar:
        read = list(_sized(wanted, bar))
    shown = [one for one in read if args.all or one.row.status == "ok"]
    now = {row.number: row.status for row in [*known, *(one.row for one in read)]}
    hidden = {
        status: 0 if args.all else sum(found == status for found in now.values())
        for status in ("damaged", "newer", "deleted")
    }
    leftovers = store.leftovers() if args.all else []
    if args.json:
        rows = [_document(one) for one in shown]
        screen.json(
            {"store": store.url, "checkpoints": rows, "hidden": hidden}
            | {"leftovers": [dataclasses.asdict(one) for one in leftovers]}
        )
        return exits.OK
    if shown:
        _draw(screen, shown, args.metric)
    else:
        screen.line("no checkpoint to show" if known else "no checkpoint yet")
    if any(hidden.values()):
        parts = [f"{n} {status}" for status, n in hidden.items() if n]
        screen.line(f"not shown: {', '.join(parts)} (see --all)", "dim")
    _draw_leftovers(screen, leftovers)
    return exits.OK


def _draw_leftovers(screen: Screen, found: Sequence[Leftover]) -> None:
    """Show what no checkpoint needs."""
    if not found:
        return
    screen.title(
        f"{text.count(len(found), 'leftover')}, {text.nbytes(sum(one.nbytes for one in found))}"
        " (see `ckptfmt collect --dry-run`)"
    )
    screen.table(
        [
            Column(title="key", folds=True),
            Column(title="size", right=True),
            Column(title="age", right=True),
            Column(title="of", folds=True),
        ],
        [
            (one.key, text.nbytes(one.nbytes), _age(one.age_seconds), one.reason)
            for one in found
        ],
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _sized(rows: Sequence[Row], bar: Bar) -> Iterator[Sized]:
    """Read the manifests, which know what is new; one may turn out to be damaged inside."""
    for n, row in enumerate(rows):
        bar("reading manifests", n, len(rows))
        if row.checkpoint is None:
            yield Sized(row=row)
            continue
        try:
            new, reused = row.checkpoint.new_bytes, row.checkpoint.reused_bytes
        except FormatError as error:
            yield Sized(row=Row(number=row.number, status="damaged", reason=error.message))
        except NotFoundError:
            continue  # deleted since the listing
        else:
            yield Sized(row=row, new_nbytes=new, reused_nbytes=reused)


def _document(one: Sized) -> Document:
    row = one.row
    found: Document = {"number": row.number, "status": row.status, "reason": row.reason}
    if row.checkpoint is not None:
        found |= document.head(row.checkpoint)
        found |= {"new_nbytes": one.new_nbytes, "reused_nbytes": one.reused_nbytes}
    return found


def _draw(screen: Screen, shown: Sequence[Sized], asked: Sequence[str] | None) -> None:
    checkpoints = [one.row.checkpoint for one in shown if one.row.checkpoint is not None]
    known = dict.fromkeys(name for found in checkpoints for name in found.metrics)
    for name in asked or ():
        if name not in known:
            raise NotFoundError("no checkpoint shown has this metric", metric=name)
    names = list(asked or known)[: len(asked or "") or MAX_METRICS]
    with_status = len(checkpoints) < len(shown)
    columns = [
        Column(title="number", right=True),
        Column(title="saved (UTC)"),
        Column(title="seen", right=True),
        *(Column(title=name, right=True, optional=True) for name in names),
        Column(title="size", right=True),
        Column(title="new", right=True),
    ]
    if with_status or any(found.dropped for found in checkpoints):
        columns.append(Column(title="tags, status", folds=True))
    elif any(found.tags for found in checkpoints):
        columns.append(Column(title="tags", folds=True))
    screen.table(columns, [_cells(one, names)[: len(columns)] for one in shown])
    for one in shown:
        if one.row.reason is not None:
            status = one.row.status
            screen.line(f"{one.row.number} is {status}: {one.row.reason}", _STYLES[status])
    rest = [name for name in known if name not in names]
    if rest and not asked:
        screen.line(f"more metrics: {', '.join(rest)} (show one with -m)", "dim")


def _cells(one: Sized, names: Sequence[str]) -> list[Cell]:
    row, checkpoint = one.row, one.row.checkpoint
    if checkpoint is None:  # it has no tags that could be known: its status stands there
        blank = [""] * (4 + len(names))
        return [str(row.number), *blank, Styled(row.status, _STYLES[row.status])]
    metrics = checkpoint.metrics
    seen = checkpoint.counters.get("seen")
    return [
        str(row.number),
        text.when(checkpoint.time)[:16],
        f"{seen:,}" if type(seen) is int else "-",
        *(text.number(metrics.get(name)) for name in names),
        text.nbytes(checkpoint.nbytes),
        text.nbytes(one.new_nbytes),
        ", ".join([*checkpoint.tags, *_slimmed(checkpoint)]),
    ]


def _slimmed(checkpoint: Checkpoint) -> list[str]:
    return [f"slimmed: no {', '.join(checkpoint.dropped)}"] if checkpoint.dropped else []
