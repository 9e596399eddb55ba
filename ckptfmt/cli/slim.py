"""`ckptfmt slim`: drop sections of checkpoints, and the data that only they held."""

from __future__ import annotations

import argparse

from ckptfmt.cli import address, delete
from ckptfmt.cli.screen import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument("numbers", metavar="NUMBER", nargs="+", type=int)
    parser.add_argument(
        "--drop",
        metavar="SECTION",
        action="append",
        required=True,
        help="a top-level key, such as optimizer (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Slim checkpoints; what is left of them loads as before, but no run can go on from it."""
    with address.open_store(args.store) as store:
        done = store.slim(args.numbers, drop=args.drop, dry_run=args.dry_run)
    return delete.report(screen, store, done, args)
