"""`ckptfmt collect`: free the bytes that nothing references."""

from __future__ import annotations

import argparse

from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("store", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        default="0",
        help="leave younger files alone: 30m, 12h, 7d",
    )
    parser.add_argument(
        "--break-lease",
        action="store_true",
        help="give up saves in flight, whose jobs are known to be dead",
    )
    parser.add_argument(
        "--forget",
        metavar="N",
        action="append",
        type=int,
        default=[],
        help="give up damaged checkpoint N for good (repeatable)",
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Collect garbage; nothing that a checkpoint needs goes."""
    age = text.seconds(args.older_than)
    with address.open_store(args.store) as store:
        done = store.collect(
            dry_run=args.dry_run,
            older_than_seconds=age,
            break_lease=args.break_lease,
            forget=args.forget,
        )
    if args.json:
        screen.json(
            {
                "store": store.url,
                "dry_run": args.dry_run,
                "files": done.files,
                "nbytes": done.nbytes,
                "intents": done.intents,
                "uploads": done.uploads,
                "tombstones": done.tombstones,
                "blocked": done.blocked,
            }
        )
        return exits.OK
    verb = "would free" if args.dry_run else "freed"
    screen.line(
        f"{verb} {text.nbytes(done.nbytes)} in {text.count(len(done.files), 'file')},"
        f" {text.count(len(done.intents), 'lease')},"
        f" {text.count(len(done.tombstones), 'tombstone')}"
        + (f", {text.count(len(done.uploads), 'unfinished upload')}" if done.uploads else "")
    )
    for reason in done.blocked:
        screen.line(f"kept: {reason}", "warn")
    return exits.OK
