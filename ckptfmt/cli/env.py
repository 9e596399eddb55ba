"""`ckptfmt env`: where a checkpoint was made, and what differs on this machine."""

from __future__ import annotations

import argparse

import ckptfmt
from ckptfmt.checks import environment
from ckptfmt.cli import address, document, exits, findings, outline, text
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Column
from ckptfmt.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="compare with this checkpoint instead"
    )
    parser.add_argument("-f", "--full", action="store_true", help="the whole record")
    parser.add_argument(
        "--requirements", action="store_true", help="only the pinned requirements, for pip"
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Show the record and what differs; 1 if results may differ by more than rounding."""
    checkpoint = ckptfmt.open_checkpoint(args.address)
    record = checkpoint.environment
    if args.requirements:
        return _requirements(args, record, screen)
    if args.other is None:
        found, sides = checkpoint.check_environment(), ("saved", "here")
    else:
        other = ckptfmt.open_checkpoint(args.other)
        found = environment.compare(record, other.environment)
        sides = (f"checkpoint {checkpoint.number}", f"checkpoint {other.number}")
    if args.json:
        screen.json({"environment": record, "findings": findings.documents(found)})
        return exits.PROBLEMS if findings.serious(found) else exits.OK
    screen.line(f"environment of checkpoint {checkpoint.number} of {checkpoint.url}", "title")
    if args.full:
        rows = [(path, text.value(leaf, 1_000_000)) for path, leaf in outline.leaves(record)]
        screen.table([Column(title="", folds=True)] * 2, rows)
    else:
        screen.fields(document.environment(record) or [("", "not recorded")])
    screen.title("differences")
    if found:
        findings.draw(screen, found, sides=sides)
    else:
        screen.line("none", "good")
    return exits.PROBLEMS if findings.serious(found) else exits.OK


def _requirements(args: argparse.Namespace, record: object, screen: Screen) -> int:
    if args.json or args.other is not None or args.full:
        raise UsageError("--requirements is one checkpoint's, and stands alone")
    for line in environment.requirements(record).splitlines():
        screen.line(line)
    return exits.OK
