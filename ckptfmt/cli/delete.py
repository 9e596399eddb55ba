"""`ckptfmt delete`: checkpoints, and the data that only they reference."""

from __future__ import annotations

import argparse

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
    numbers = ", ".join(map(str, done.numbers))
    screen.line(
        f"{verb} {'checkpoint' if len(done.numbers) == 1 else 'checkpoints'} {numbers}:"
        f" {text.nbytes(done.nbytes)} in {text.count(len(done.files), 'file')}"
    )
    for reason in done.blocked:
        screen.line(f"data kept: {reason}", "warn")
    return exits.OK
