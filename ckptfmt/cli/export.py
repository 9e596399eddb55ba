"""`ckptfmt export`: arrays of a checkpoint as files of other tools."""

from __future__ import annotations

import argparse

import ckptfmt
from ckptfmt import tree
from ckptfmt.cli import address, exits, text
from ckptfmt.cli.screen import Screen
from ckptfmt.errors import NotFoundError
from ckptfmt.migrate import exporting


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument(
        "file",
        metavar="FILE",
        help="what to write: *.safetensors, *.npz, *.pt (.pth, .bin), *.weights.h5 or *.h5",
    )
    parser.add_argument(
        "-s",
        "--select",
        action="append",
        metavar="GLOB",
        help="paths to export (repeatable); by default model",
    )
    parser.add_argument(
        "--shard-nbytes",
        type=int,
        metavar="N",
        help="write safetensors of at most N bytes with an index into the folder FILE",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Write the file."""
    checkpoint = ckptfmt.open_checkpoint(args.address)
    sections = [section.name for section in checkpoint.sections]
    if not args.select and "model" not in (*sections, *checkpoint.dropped):
        raise NotFoundError(
            "no section model, which is what is exported by default: name others with --select",
            checkpoint=checkpoint.number,
            sections=sections,
        )
    select = args.select or ["model"]
    with screen.bar(f"checkpoint {checkpoint.number}") as bar:
        if args.shard_nbytes is None:
            exporting.export(
                checkpoint, args.file, select=select, overwrite=args.overwrite, progress=bar
            )
        else:
            exporting.export_shards(
                checkpoint,
                args.file,
                shard_nbytes=args.shard_nbytes,
                select=select,
                overwrite=args.overwrite,
                progress=bar,
            )
    keep = tree.matcher(select)
    arrays = [
        info
        for info in checkpoint.arrays.values()
        if any(map(keep, (info.path, *info.aliases)))
    ]
    nbytes = sum(info.nbytes for info in arrays)
    if args.json:
        screen.json(
            {
                "url": checkpoint.url,
                "number": checkpoint.number,
                "file": args.file,
                "arrays": [info.path for info in arrays],
                "nbytes": nbytes,
            }
        )
    else:
        what = text.count(len(arrays), "array")
        screen.line(
            f"exported {what} ({text.nbytes(nbytes)}) of checkpoint {checkpoint.number}"
            f" to {args.file}"
        )
    return exits.OK
