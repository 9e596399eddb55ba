"""`ckptfmt retain`: apply retention rules to a store."""

from __future__ import annotations

import argparse

import ckptfmt
from ckptfmt.cli import address, delete
from ckptfmt.cli.screen import Screen
from ckptfmt.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument("--last", metavar="N", type=int, help="keep the newest N")
    parser.add_argument(
        "--best",
        metavar="METRIC:MODE:N",
        action="append",
        default=[],
        help="keep the N best of a metric; MODE is min or max (repeatable)",
    )
    parser.add_argument(
        "--every-examples",
        metavar="N",
        type=int,
        help="keep the first of each N examples for ever",
    )
    parser.add_argument(
        "--every-hours", metavar="H", type=float, help="keep the first of each H hours for ever"
    )
    parser.add_argument(
        "--slim",
        metavar="SECTION",
        action="append",
        default=[],
        help="older checkpoints that stay lose this section (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Delete what no rule wants; the newest of each lineage and the pinned ones stay."""
    if not args.best and args.last is args.every_examples is args.every_hours is None:
        raise UsageError(
            "no rule: give --last, --best, --every-examples or --every-hours, or several"
        )
    rules = ckptfmt.keep(
        last=args.last,
        best=[_best(text) for text in args.best],
        every_examples=args.every_examples,
        every_hours=args.every_hours,
        slim=args.slim,
    )
    with address.open_store(args.store) as store:
        done = store.retain(rules, dry_run=args.dry_run)
    return delete.report(screen, store, done, args)


def _best(text: str) -> tuple[str, str, int]:
    match text.rsplit(":", 2):  # a metric's name may hold colons
        case [metric, mode, count] if count.isascii() and count.isdecimal():
            return metric, mode, int(count)
    raise UsageError("expected METRIC:MODE:N, such as val_loss:min:2", found=text)
