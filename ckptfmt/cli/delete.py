"""`ckptfmt delete`: checkpoints, and the data that only they reference."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from ckptfmt import Store
from ckptfmt._engine.retire import Deleted
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen

_DID: Final = {"delete": "deleted", "slim": "slimmed", "change": "changed"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument("numbers", metavar="NUMBER", nargs="+", type=int)
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Delete checkpoints; the others keep all they need."""
    with address.open_store(args.store) as store:
        done = store.delete(args.numbers, dry_run=args.dry_run)
    return report(screen, store, done, args)


def report(screen: Screen, store: Store, done: Deleted, args: argparse.Namespace) -> int:
    """Say what was deleted and slimmed, or would be; for `retain` and `slim` too."""
    if args.json:
        screen.json(
            {
                "store": store.url,
                "dry_run": args.dry_run,
                "numbers": done.numbers,
                "slimmed": done.slimmed,
                "files": done.files,
                "nbytes": done.nbytes,
                "blocked": done.blocked,
            }
        )
        return exits.OK
    parts = [
        f"{verb if args.dry_run else _DID[verb]} {_named(numbers)}"
        for verb, numbers in (("delete", done.numbers), ("slim", done.slimmed))
        if numbers
    ] or [f"{'change' if args.dry_run else _DID['change']} nothing"]
    screen.line(
        f"{'would ' if args.dry_run else ''}{' and '.join(parts)}:"
        f" {text.nbytes(done.nbytes)} in {text.count(len(done.files), 'file')}"
    )
    for reason in done.blocked:
        screen.line(f"data kept: {reason}", "warn")
    return exits.OK


def _named(numbers: Sequence[int]) -> str:
    what = "checkpoint" if len(numbers) == 1 else "checkpoints"
    return f"{what} {', '.join(map(str, numbers))}"
