"""`ckptfmt copy`: checkpoints into another store, with the same numbers and identities."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import ckptfmt
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source", metavar="ADDRESS|STORE", help="one checkpoint, or a store for all of them"
    )
    parser.add_argument("target", metavar="STORE", help=f"{address.STORE_HELP}; may be new")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be copied")
    parser.add_argument(
        "--no-read-back",
        action="store_true",
        help="do not read what was written from the target and digest it once more",
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Copy what is missing; 1 if a checkpoint of the source could not be read."""
    with screen.bar() as bar:
        done = ckptfmt.copy(
            args.source,
            args.target,
            dry_run=args.dry_run,
            read_back=not args.no_read_back,
            progress=bar,
        )
    if args.json:
        screen.json(
            {
                "source": done.source,
                "target": done.target,
                "dry_run": args.dry_run,
                "read_back": not args.no_read_back,
                "numbers": done.numbers,
                "present": done.present,
                "deleted": done.deleted,
                "unreadable": done.unreadable,
                "files": done.files,
                "nbytes": done.nbytes,
                "annotations": done.annotations,
            }
        )
    else:
        verb = "would copy" if args.dry_run else "copied"
        screen.line(
            f"{verb} {_named(done.numbers)}: {text.nbytes(done.nbytes)} in"
            f" {text.count(len(done.files), 'file')}"
        )
        if done.present:
            screen.line(f"there already: {_named(done.present)}")
        if done.deleted:
            screen.line(f"deleted at the target, not copied again: {_named(done.deleted)}")
    return exits.PROBLEMS if done.unreadable else exits.OK


def _named(numbers: Sequence[int]) -> str:
    """Return numbers as people read them, runs of neighbours as `3-7`."""
    if not numbers:
        return "no checkpoint"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    what = "checkpoint" if len(numbers) == 1 else "checkpoints"
    return f"{what} {', '.join('-'.join(map(str, run)) for run in runs)}"
