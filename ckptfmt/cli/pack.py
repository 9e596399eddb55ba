"""`ckptfmt pack`: a whole checkpoint in one file."""

from __future__ import annotations

import argparse

import ckptfmt
from ckptfmt.cli import address, document, exits, text
from ckptfmt.cli.screen import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument("file", metavar="FILE", help="the bundle to write, *.safetensors")
    parser.add_argument(
        "--weights-only", action="store_true", help="only the arrays of section model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Write the bundle."""
    address.expect_bundle(args.file)
    checkpoint = ckptfmt.open_checkpoint(args.address)
    with screen.bar(f"checkpoint {checkpoint.number}") as bar:
        packed = ckptfmt.pack(
            checkpoint,
            args.file,
            overwrite=args.overwrite,
            weights_only=args.weights_only,
            progress=bar,
        )
    if args.json:
        screen.json({"file": args.file, "number": packed.number, **document.head(packed)})
    else:
        screen.line(
            f"packed checkpoint {packed.number} into {args.file}:"
            f" {text.count(len(packed.arrays), 'array')}, {text.nbytes(packed.nbytes)}"
        )
    return exits.OK
