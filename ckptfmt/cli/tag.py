"""`ckptfmt tag`: short names for people, and `pinned`, which protects from deletion."""

from __future__ import annotations

import argparse

from ckptfmt.api import split_address
from ckptfmt.cli import address, exits
from ckptfmt.cli.screen import Screen
from ckptfmt.errors import UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument(
        "tags",
        metavar="TAG",
        nargs="+",
        help="a short name; `pinned` protects the checkpoint from deletion",
    )
    parser.add_argument("--remove", action="store_true", help="remove these tags")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Attach or remove tags."""
    url, which = split_address(args.address)
    if which is None:
        raise UsageError(
            "say which checkpoint, as in runs/a@12 or runs/a@latest", address=args.address
        )
    with address.open_store(url) as store:
        found = store.resolve(which)
        change = store.untag if args.remove else store.tag
        changed = change(found.number, *args.tags)
    if args.json:
        screen.json({"store": changed.url, "number": changed.number, "tags": changed.tags})
    else:
        screen.line(f"checkpoint {changed.number}: {', '.join(changed.tags) or 'no tags'}")
    return exits.OK
