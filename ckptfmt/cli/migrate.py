"""`ckptfmt migrate`: a foreign checkpoint into a store."""

from __future__ import annotations

import argparse
from collections import Counter

from ckptfmt import migrate
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Column
from ckptfmt.errors import UsageError
from ckptfmt.migrate import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source", metavar="SOURCE", nargs="?", help="a file, a folder, or one part of a set"
    )
    parser.add_argument("store", metavar="STORE", nargs="?", help=f"{address.STORE_HELP}")
    parser.add_argument("--formats", action="store_true", help="list what can be read")
    parser.add_argument(
        "--dry-run", action="store_true", help="only tell what is there and where it would go"
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all arrays back and compare them"
    )
    parser.add_argument(
        "--scratch", metavar="FOLDER", help="where unpacked arrays are put aside"
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Migrate; with --dry-run only report."""
    if args.formats:
        return _formats(args, screen)
    if args.source is None or (args.store is None and not args.dry_run):
        raise UsageError("expected SOURCE and STORE (see `ckptfmt migrate --help`)")
    source = migrate.open(args.source)
    if args.dry_run:
        done = None
        told = source.report
    else:
        with screen.bar() as bar:
            done = migrate.migrate(
                source,
                address.expect_store(args.store),
                verify=args.verify,
                scratch=args.scratch,
                progress=bar,
            )
        told = done.report
    if args.json:
        screen.json(
            {
                "source": args.source,
                "store": args.store,
                "dry_run": args.dry_run,
                "number": None if done is None else done.checkpoint.number,
                "new": None if done is None else done.new,
                "verified": None if done is None else done.verified,
                **told.document(),
            }
        )
        return exits.OK
    _draw(screen, told)
    if done is not None:
        verb = "is checkpoint" if done.new else "was there already: checkpoint"
        screen.line(f"{args.source} {verb} {done.checkpoint.number} of {done.checkpoint.url}")
        if done.verified is not None:
            screen.line(f"{text.count(done.verified, 'array')} read back, equal bit by bit")
    return exits.OK


def _formats(args: argparse.Namespace, screen: Screen) -> int:
    if args.json:
        screen.json({"formats": dict(registry.READERS)})
        return exits.OK
    screen.table(
        [Column(title="reader"), Column(title="what it reads", folds=True)],
        list(registry.READERS.items()),
    )
    return exits.OK


def _draw(screen: Screen, told: migrate.Report) -> None:
    nbytes = sum(file.nbytes for file in told.files)
    by = f" by {told.producer}" if told.producer else ""
    screen.line(
        f"{told.format}{by}: {text.count(len(told.files), 'file')}, {text.nbytes(nbytes)}"
    )
    went = Counter(
        ("left out" if item.target is None else item.target.partition("/")[0], item.kind)
        for item in told.items
    )
    screen.table(
        [Column(title="goes to"), Column(title="what"), Column(title="items", right=True)],
        [(to, kind, f"{count:,}") for (to, kind), count in sorted(went.items())],
    )
    for note in told.notes:
        screen.line(f"{note.path}: {note.text}" if note.path else note.text, "dim")
