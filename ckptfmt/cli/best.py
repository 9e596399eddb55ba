"""`ckptfmt best`: the best checkpoints by a metric, and how the run went."""

from __future__ import annotations

import argparse

from ckptfmt._store.shelf import ALL
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column
from ckptfmt.errors import UsageError
from ckptfmt.training import Point, best, describe, ranked

LINEAGE_HELP = "`all`, or the beginning of an id; by default what the newest one continues"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument("metric", metavar="METRIC", help="such as val_loss")
    parser.add_argument("--mode", choices=("min", "max"), default="min", help="which is better")
    parser.add_argument("-n", "--count", type=int, default=5, metavar="N", help="how many (5)")
    parser.add_argument("--lineage", metavar="WHICH", help=LINEAGE_HELP)
    parser.add_argument("--training", metavar="METRIC", help="the same on the training data")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Show the best ones."""
    if args.count < 1:
        raise UsageError("expected --count of at least 1", found=args.count)
    store = address.open_store(args.store)
    chosen = store.best(args.metric, mode=args.mode, lineage=args.lineage)  # or its error
    history = store.history(lineage=args.lineage)
    stored = [point for point in history if point.stored]
    rows = ranked(stored, args.metric, args.mode)[: args.count]
    # Values of several lineages are no course: then that of the newest one is described.
    line = store.history() if args.lineage == ALL else history
    course = describe(line, validation=args.metric, training=args.training, mode=args.mode)
    ever = best(history, args.metric, args.mode)
    known = {point.id for point in history}
    everywhere = ranked(store.history(lineage="all"), args.metric, args.mode)
    elsewhere = [p for p in everywhere if p.stored and p.id not in known]
    if args.json:
        screen.json(
            {
                "store": store.url,
                "metric": args.metric,
                "mode": args.mode,
                "number": chosen.number,
                "checkpoints": [_document(point, args.metric) for point in rows],
                "elsewhere": [point.number for point in elsewhere],
                "deleted_best": None if ever.stored else _document(ever, args.metric),
                "course": {
                    "kind": course.kind,
                    "since": course.since,
                    "noise": course.noise,
                    "evidence": course.evidence,
                },
            }
        )
        return exits.OK
    columns = [
        Column(title="checkpoint", right=True),
        Column(title="seen", right=True),
        Column(title=args.metric, right=True),
    ]
    screen.table(columns, [_cells(point, args.metric) for point in rows])
    if not ever.stored:
        value = text.number(ever.metrics[args.metric])
        screen.line(f"a better one, {ever.number} with {value}, was deleted", "dim")
    if elsewhere:
        number = elsewhere[0].number
        value = text.number(elsewhere[0].metrics[args.metric])
        screen.line(
            f"{text.count(len(elsewhere), 'checkpoint')} of other lineages left out, the best"
            f" of them {number} with {value} (--lineage all)",
            "dim",
        )
    screen.line()
    screen.line(f"course: {course.kind}")
    for sentence in course.evidence:
        screen.line(f"  {sentence}", "dim")
    return exits.OK


def _document(point: Point, metric: str) -> dict[str, object]:
    return {
        "number": point.number,
        "id": point.id,
        "seen": point.seen,
        "value": point.metrics[metric],
    }


def _cells(point: Point, metric: str) -> list[Cell]:
    seen = "-" if point.seen is None else f"{point.seen:,}"
    return [str(point.number), seen, text.number(point.metrics[metric])]
