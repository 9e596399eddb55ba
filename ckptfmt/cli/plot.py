"""`ckptfmt plot`: runs over examples, as a picture, a table or JSON; where two runs part."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ckptfmt.backends.single import open_file, publish
from ckptfmt.cli import address, exits, page, runs, text
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.training import Description, curves, describe
from ckptfmt.training.curves import Run
from ckptfmt.training.metric import Metric
from ckptfmt.training.parting import Parting, part, verdict
from ckptfmt.training.scene import Scene

FORMATS: Final = ("png", "svg", "html")
MAX_PANELS: Final = 4  # of metrics, unless they are asked for by name
MAX_ROWS: Final = 50  # of the table; a page and JSON have all
WIDTHS: Final = range(400, 10_001)  # pixels
MAX_RUNS: Final = 7  # colours that can be told apart
MAX_TITLE: Final = 40  # characters


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("stores", nargs="+", metavar="STORE", help=address.STORE_HELP)
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="what to write: *.png, *.svg or *.html"
    )
    parser.add_argument(
        "-m", "--metric", action="append", metavar="NAME", help="draw this one (repeatable)"
    )
    parser.add_argument(
        "--best",
        action="append",
        metavar="METRIC[:MODE]",
        help="mark the best, min or max (repeatable); by default where the name says which",
    )
    parser.add_argument(
        "--lineage",
        metavar="WHICH",
        help="`all`, or the beginning of an id; by default what the newest one continues",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="X",
        help="relative difference of metrics that counts as none (0)",
    )
    parser.add_argument(
        "--width", type=int, default=1000, metavar="PIXELS", help="of the picture (1000)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Draw."""
    kind = _kind(args.output)
    if args.width not in WIDTHS:
        raise UsageError("the width is out of range", pixels=args.width, range=str(WIDTHS))
    if len(args.stores) > MAX_RUNS:
        raise UsageError("too many runs for one picture", found=len(args.stores), most=MAX_RUNS)
    canvas = None if kind is None else _canvas()
    found = [runs.read(url, args.lineage, screen) for url in args.stores]
    names = curves.metric_names(found)
    modes = _modes(args.best, names)
    partings = [part(found[0], other, tolerance=args.tolerance) for other in found[1:]]
    scene = Scene(
        runs=tuple(found),
        labels=tuple(string.ascii_uppercase[: len(found)]) if len(found) > 1 else ("",),
        panels=tuple(_panels(args.metric, names)),
        modes=modes,
        notes=tuple(_notes(found, partings, modes)),
        partings=tuple(partings[0]) if len(found) == 2 else (),
    )
    if kind is not None and canvas is not None:
        _write(args, kind, canvas, scene)
    if args.json:
        screen.json(_document(args, scene, partings, names))
    else:
        _draw(screen, args, scene, partings, names)
    return exits.OK


def _kind(output: str | None) -> str | None:
    if output is None:
        return None
    kind = pathlib.PurePath(output).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError("a picture's name ends in .png, .svg or .html", found=output)
    return kind


def _canvas() -> Any:
    """Import what draws, before anything is read."""
    try:
        return importlib.import_module("ckptfmt.cli.canvas")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise UsageError(
            "drawing needs matplotlib: pip install 'ckptfmt[plot]'; tables and --json do not"
        ) from error


def _modes(asked: Sequence[str] | None, names: Sequence[str]) -> dict[str, str]:
    """Return which metrics get their best marked, and what is best."""
    if asked is None:
        known = {name: curves.mode_of(name) for name in names}
        return {name: mode for name, mode in known.items() if mode is not None}
    found = {}
    for word in asked:
        name, _, mode = word.rpartition(":")
        if mode not in ("min", "max") or not name:
            name, mode = word, curves.mode_of(word) or ""
        _expect(name, names)
        if not mode:
            raise UsageError("say which is best: METRIC:min or METRIC:max", found=word)
        found[name] = mode
    return found


def _expect(name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise NotFoundError("no checkpoint has this metric", metric=name, known=names[:20])


def _panels(asked: Sequence[str] | None, names: Sequence[str]) -> list[tuple[str, ...]]:
    for name in asked or ():
        _expect(name, names)
    return curves.panels(asked) if asked else curves.panels(names)[:MAX_PANELS]


def _notes(
    found: Sequence[Run], partings: Sequence[Sequence[Parting]], modes: Mapping[str, str]
) -> list[str]:
    """Return what is to be said in words: the course of each run, and where they part."""
    many = len(found) > 1
    notes = []
    for letter, one in zip(string.ascii_uppercase, found, strict=False):
        course = _course(one, modes)
        if course is not None:
            metric, told = course
            certain = told.since is not None and told.kind != "undecided"
            since = f" since {told.since:,} examples" if certain else ""
            notes.append((f"{letter}: " if many else "") + f"{metric}: {told.kind}{since}")
    for letter, rows in zip(string.ascii_uppercase[1:], partings, strict=False):
        notes += [f"A and {letter}: {sentence}" for sentence in verdict(rows)]
    return notes


def _course(found: Run, modes: Mapping[str, str]) -> tuple[str, Description] | None:
    """Describe the first metric on data that was held out, or the first of all."""
    points = [node.point for node in curves.main_line(found)]
    measured = [name for name in modes if any(p.metrics.get(name) is not None for p in points)]
    for name in sorted(measured, key=lambda name: not _is_held_out(name)):
        return name, describe(points, validation=name, mode=modes[name])
    return None


def _is_held_out(name: str) -> bool:
    try:
        return Metric.parse(name).split in ("val", "valid", "validation", "dev", "eval")
    except UsageError:
        return False


def _write(args: argparse.Namespace, kind: str, canvas: Any, scene: Scene) -> None:
    picture: bytes = canvas.draw(scene, "svg" if kind == "html" else kind, args.width)
    if kind == "html":
        picture = page.page(scene, picture.decode("utf-8")).encode("utf-8")
    backend, key = open_file(args.output)
    publish(backend, key, [picture], nbytes=len(picture), overwrite=args.overwrite)


def _document(
    args: argparse.Namespace,
    scene: Scene,
    partings: Sequence[Sequence[Parting]],
    names: Sequence[str],
) -> dict[str, Any]:
    return {
        "output": args.output,
        "axis": scene.axis,
        "metrics": list(names),
        "panels": [list(panel) for panel in scene.panels],
        "runs": [curves.document(one, scene.modes) for one in scene.runs],
        "partings": [
            {"a": 0, "b": n, "rows": [dataclasses.asdict(row) for row in rows]}
            for n, rows in enumerate(partings, 1)
        ],
        "notes": list(scene.notes),
    }


def _draw(
    screen: Screen,
    args: argparse.Namespace,
    scene: Scene,
    partings: Sequence[Sequence[Parting]],
    names: Sequence[str],
) -> None:
    for line in scene.titles:
        screen.line(line, "title")
    for note in scene.notes:
        screen.line(note)
    screen.line()
    header, rows = scene.table()
    columns = [
        Column(title=text.cut(title, MAX_TITLE), right=True, optional=n > 1)
        for n, title in enumerate(header)
    ]
    screen.table(columns, rows[-MAX_ROWS:])
    if len(rows) > MAX_ROWS:
        screen.line(f"{len(rows) - MAX_ROWS:,} earlier rows are left out (see --json)", "dim")
    if any(len(curves.lines(one)) > 1 for one in scene.runs):
        screen.line("rows are of the newest line; branches are in --json and pictures", "dim")
    for letter, found in zip(string.ascii_uppercase[1:], partings, strict=False):
        _draw_parting(screen, letter, found)
    drawn = {name for panel in scene.panels for name in panel}
    rest = [name for name in names if name not in drawn]
    if rest and not args.metric:
        screen.line(f"more metrics: {', '.join(rest)} (draw one with -m)", "dim")
    if args.output is not None:
        screen.line(f"wrote {args.output}")


def _draw_parting(screen: Screen, letter: str, found: Sequence[Parting]) -> None:
    screen.title(f"where A and {letter} part, in examples seen")
    titles = ("", "compared at", "equal up to", "parts at", "A", letter)
    columns = [Column(title=title, right=bool(title)) for title in titles]
    screen.table(columns, [_cells(row) for row in found])


def _cells(row: Parting) -> list[Cell]:
    last, first = row.last_equal, row.first_different
    return [
        row.name if row.kind != "feed" else curves.FED[row.name],
        f"{row.compared:,}",
        "-" if last is None else f"{last:,}",
        "-" if first is None else f"{first:,}",
        "" if first is None or row.kind == "lineage" else text.number(row.a),
        "" if first is None or row.kind == "lineage" else text.number(row.b),
    ]
