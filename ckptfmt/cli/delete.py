"""`ckptfmt delete`: checkpoints, and the data that only they reference."""

from __future__ import annotations

import argparse

from ckptfmt import Store
from ckptfmt._engine.retire import Deleted
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen


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
    """Say what was deleted, or would be; for `retain` too."""
    if args.json:
        screen.json(
            {
                "store": store.url,
                "dry_run": args.dry_run,
                "numbers": done.numbers,
                "files": done.files,
                "nbytes": done.nbytes,
                "blocked": done.blocked,
            }
        )
        return exits.OK
    verb = "would delete" if args.dry_run else "deleted"
    numbers = ", ".join(map(str, done.numbers)) or "no checkpoint"
    what = {0: "", 1: "checkpoint "}.get(len(done.numbers), "checkpoints ")
    screen.line(
        f"{verb} {what}{numbers}: {text.nbytes(done.nbytes)} in"
        f" {text.count(len(done.files), 'file')}"
    )
    for reason in done.blocked:
        screen.line(f"data kept: {reason}", "warn")
    return exits.OK
