"""`ckptfmt unpack`: a bundle becomes the next checkpoint of a store."""

from __future__ import annotations

import argparse

import ckptfmt
from ckptfmt.cli import address, document, exits
from ckptfmt.cli.screen import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE", help="a bundle")
    parser.add_argument("store", metavar="STORE", help=f"{address.STORE_HELP}; may be new")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Commit the bundle."""
    address.expect_bundle(args.file)
    with (
        ckptfmt.open(address.expect_store(args.store)) as store,
        screen.bar(args.file) as bar,
    ):
        saved = ckptfmt.unpack(args.file, store, progress=bar)
    if args.json:
        screen.json({"store": saved.url, "number": saved.number, **document.head(saved)})
    else:
        screen.line(f"unpacked {args.file} as checkpoint {saved.number} of {saved.url}")
    return exits.OK
