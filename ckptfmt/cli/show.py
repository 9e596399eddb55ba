"""`ckptfmt show`: what a checkpoint is and what is in it; no array is read."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import ckptfmt
from ckptfmt import Checkpoint, tree
from ckptfmt.cli import address, document, exits, outline, text
from ckptfmt.cli.document import Document
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column, Styled
from ckptfmt.errors import FormatError, NotFoundError
from ckptfmt.leaves import ArrayRef
from ckptfmt.reports import check_dropped
from ckptfmt.training import Progress, story
from ckptfmt.training.record import KEY as PROGRESS

MAX_ROWS: Final = 40  # of values and of files, unless --full
_VALUE_WIDTH: Final = 60
_FULL_WIDTH: Final = 1_000_000
_PLAIN: Final = (
    "counters", "metrics", "notes", "hyperparameters", "architecture", "preprocessing",
)  # fmt: skip

_Row = TypeVar("_Row")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument(
        "-s", "--select", action="append", metavar="GLOB", help="only these paths of the tree"
    )
    parser.add_argument("-d", "--depth", type=int, metavar="N", help="so many levels of it")
    parser.add_argument(
        "-f", "--full", action="store_true", help="every line and every value, nothing cut"
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Show a checkpoint."""
    checkpoint = ckptfmt.open_checkpoint(args.address)
    keep = _keep(checkpoint, args.select)
    if args.json:
        screen.json(_document(checkpoint, keep))
        return exits.OK
    screen.line(f"checkpoint {checkpoint.number} of {checkpoint.url}", "title")
    screen.fields(_fields(checkpoint))
    told = _told(checkpoint)
    if told:
        screen.title("run")
    for line in told:
        screen.line(f"  {line}")
    for name in _PLAIN:
        values = getattr(checkpoint, name)
        if name == "counters" and told and not args.full:
            values = {key: value for key, value in values.items() if key != PROGRESS}
        _values(screen, name, values, full=args.full)
    _sections(screen, checkpoint)
    _tree(screen, checkpoint, keep, args)
    _files(screen, checkpoint, full=args.full)
    screen.title("environment")
    screen.fields(document.environment(checkpoint.environment) or [("", "not recorded")])
    return exits.OK


def _told(checkpoint: Checkpoint) -> list[str]:
    """Return how the run got here, if it counted its examples with `Progress`."""
    try:
        return story(Progress.restore(checkpoint.counters))
    except (FormatError, NotFoundError):  # counters of somebody else, or of another release
        return []


def _keep(checkpoint: Checkpoint, select: Sequence[str] | None) -> Callable[[str], bool]:
    if not select:
        return lambda _: True
    check_dropped(checkpoint.manifest.summary, select)
    keep = tree.matcher(select)
    leaves = outline.leaves(checkpoint.structure())
    if not any(
        map(keep, itertools.chain.from_iterable(outline.names(n, p) for p, n in leaves))
    ):
        raise NotFoundError(
            "nothing in the checkpoint matches", select=select, checkpoint=checkpoint.number
        )
    return keep


def _document(checkpoint: Checkpoint, keep: Callable[[str], bool]) -> Document:
    return {
        "url": checkpoint.url,
        "number": checkpoint.number,
        **document.head(checkpoint),
        "stored_nbytes": sum(a.stored_nbytes for a in checkpoint.arrays.values()),
        "new_nbytes": checkpoint.new_bytes,
        "reused_nbytes": checkpoint.reused_bytes,
        "notes": checkpoint.notes,
        "story": _told(checkpoint),
        "hyperparameters": checkpoint.hyperparameters,
        "architecture": checkpoint.architecture,
        "preprocessing": checkpoint.preprocessing,
        "artifacts": [
            {"name": name, "nbytes": len(data)} for name, data in checkpoint.artifacts.items()
        ],
        "arrays": [
            {
                "path": info.path,
                "dtype": info.dtype,
                "shape": info.shape,
                "nbytes": info.nbytes,
                "stored_nbytes": info.stored_nbytes,
                "chunks": info.chunks,
                "tied": info.aliases,
            }
            for info in checkpoint.arrays.values()
            if any(map(keep, (info.path, *info.aliases)))
        ],
        "values": {
            path: leaf
            for path, leaf in outline.leaves(checkpoint.structure())
            if not isinstance(leaf, ArrayRef) and any(map(keep, outline.names(leaf, path)))
        },
        "files": [
            {"key": file.key, "nbytes": file.nbytes, "number": file.number}
            for file in checkpoint.manifest.tables.files
        ],
        "history": [
            {**row._asdict(), "time": document.time(row.time)} for row in checkpoint.history
        ],
        "environment": checkpoint.environment,
    }


def _fields(checkpoint: Checkpoint) -> list[tuple[str, Cell]]:
    arrays, writer, parent = checkpoint.arrays, checkpoint.writer, checkpoint.parent
    by = " ".join(filter(None, [writer.get("name"), writer.get("version")]))
    artifacts = [f"{name} ({text.nbytes(len(d))})" for name, d in checkpoint.artifacts.items()]
    shared = f", {text.nbytes(checkpoint.reused_bytes)} shared with earlier checkpoints"
    rows: list[tuple[str, Cell]] = [
        ("saved", f"{text.when(checkpoint.time)} UTC by {by}"),
        ("id", checkpoint.id),
        ("identity", checkpoint.identity),
        ("revision", str(checkpoint.revision) if checkpoint.revision else ""),
        ("parent", "" if parent is None else f"{parent[0]} ({parent[1]})"),
        ("tags", ", ".join(checkpoint.tags)),
        ("slimmed", Styled(_slimmed(checkpoint), "warn")),
        (
            "size",
            f"{text.nbytes(checkpoint.nbytes)} in {text.count(len(arrays), 'array')}",
        ),
        (
            "written",
            text.nbytes(checkpoint.new_bytes) + (shared if checkpoint.reused_bytes else ""),
        ),
        ("artifacts", ", ".join(artifacts)),
    ]
    return [(name, cell) for name, cell in rows if cell and cell != Styled("", "warn")]


def _slimmed(checkpoint: Checkpoint) -> str:
    """Return the sections that were dropped, and when."""
    at = checkpoint.dropped_at
    return ", ".join(
        f"no {name}" + (f" since {text.when(at[name])} UTC" if name in at else "")
        for name in checkpoint.dropped
    )


def _values(screen: Screen, title: str, plain: object, *, full: bool) -> None:
    if plain is None or plain == {}:
        return
    screen.title(title)
    width = _FULL_WIDTH if full else _VALUE_WIDTH
    rows = list(outline.leaves(plain))
    shown = [(path, text.value(leaf, width)) for path, leaf in _some(rows, full)]
    columns = [Column(title="", folds=True), Column(title="", folds=True)]
    screen.table(columns, [(f"  {path}", value) for path, value in shown])
    _more(screen, len(rows) - len(shown))


def _sections(screen: Screen, checkpoint: Checkpoint) -> None:
    rows = [
        (f"  {s.name or '(top level)'}", text.count(s.arrays, "array"), text.nbytes(s.nbytes))
        for s in checkpoint.sections
    ]
    screen.title("sections")
    columns = [
        Column(title="", folds=True),
        Column(title="", right=True),
        Column(title="", right=True),
    ]
    screen.table(columns, rows)


def _tree(
    screen: Screen,
    checkpoint: Checkpoint,
    keep: Callable[[str], bool],
    args: argparse.Namespace,
) -> None:
    outliner = outline.Outliner(
        arrays=list(checkpoint.arrays.values()),
        keep=keep,
        width=_FULL_WIDTH if args.full else _VALUE_WIDTH,
    )
    lines = outliner.lines(checkpoint.structure())
    depth = args.depth or (len(lines) if args.full else outline.levels(lines))
    shown = [line for line in lines if line.depth < depth]
    screen.line()
    screen.table(
        [
            Column(title="tree", folds=True),
            Column(title="type"),
            Column(title="size", right=True),
            Column(title="shape, value", folds=True),
        ],
        [
            (
                "  " * line.depth + line.name + ("/" if line.branch else ""),
                Styled(line.kind, "dim"),
                "" if line.nbytes is None else text.nbytes(line.nbytes),
                line.detail,
            )
            for line in shown
        ],
    )
    _more(screen, len(lines) - len(shown), "lines deeper down (--depth, --select or --full)")


def _files(screen: Screen, checkpoint: Checkpoint, *, full: bool) -> None:
    files = checkpoint.manifest.tables.files
    if not files:
        return
    shown = _some(files, full)
    screen.line()
    screen.table(
        [
            Column(title="data file", folds=True),
            Column(title="size", right=True),
            Column(title="written by", right=True),
        ],
        [
            (
                file.key or "(this file)",
                text.nbytes(file.nbytes),
                "this one" if file.number == checkpoint.number else str(file.number),
            )
            for file in shown
        ],
    )
    _more(screen, len(files) - len(shown))


def _some(rows: Sequence[_Row], full: bool) -> Sequence[_Row]:
    return rows if full else rows[:MAX_ROWS]


def _more(screen: Screen, n: int, what: str = "more (--full)") -> None:
    if n:
        screen.line(f"... and {n:,} {what}", "dim")
