"""`ckptfmt diff`: what differs between two checkpoints."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import ckptfmt
from ckptfmt.checks import environment
from ckptfmt.cli import address, compare, exits, findings, text
from ckptfmt.cli.compare import ABSENT, ArrayDiff, Status, ValueDiff, Word
from ckptfmt.cli.document import Document
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Cell, Column, Styled

MAX_ROWS: Final = 200  # of arrays, and of values, unless --full
_STYLES: Final[Mapping[Status, str]] = {
    "changed": "warn",
    "added": "good",
    "removed": "bad",
    "equal": "dim",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("a", metavar="A", help=f"address, {address.HELP}")
    parser.add_argument("b", metavar="B", help="address of the other")
    parser.add_argument(
        "--values", action="store_true", help="read changed arrays and say by how much"
    )
    parser.add_argument("-a", "--all", action="store_true", help="also list equal arrays")
    parser.add_argument("-f", "--full", action="store_true", help="nothing cut short")


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Compare two checkpoints; 1 if their state or what describes it differs."""
    a, b = ckptfmt.open_checkpoint(args.a), ckptfmt.open_checkpoint(args.b)
    with screen.bar() as bar:
        arrays = compare.arrays(a, b, values=args.values, progress=bar)
    values = compare.plain(a, b)
    found = environment.compare(a.environment, b.environment)
    differ = bool(values) or any(diff.status != "equal" for diff in arrays)
    if args.json:
        screen.json(
            {
                "a": {"url": a.url, "number": a.number, "identity": a.identity},
                "b": {"url": b.url, "number": b.number, "identity": b.identity},
                "equal": not differ,
                "arrays": [_array(diff) for diff in arrays],
                "values": [_value(diff) for diff in values],
                "environment": findings.documents(found),
            }
        )
    else:
        screen.line(f"A  checkpoint {a.number} of {a.url}")
        screen.line(f"B  checkpoint {b.number} of {b.url}")
        _draw_arrays(screen, arrays, args)
        _draw_values(screen, values, full=args.full)
        if found:
            screen.title("environment")
            findings.draw(screen, found, sides=("A", "B"))
    return exits.PROBLEMS if differ else exits.OK


def _array(diff: ArrayDiff) -> Document:
    found: Document = {"path": diff.path, "status": diff.status}
    for name, side in (("a", diff.a), ("b", diff.b)):
        found[name] = None if side is None else {"dtype": side[0], "shape": side[1]}
    values = diff.values
    found["values"] = None if values is None else dataclasses.asdict(values)
    return found


def _value(diff: ValueDiff) -> Document:
    return {"where": diff.where, "path": diff.path, "a": _known(diff.a), "b": _known(diff.b)}


def _known(side: object) -> Document | None:
    if side is ABSENT:
        return None
    if isinstance(side, Word):  # a container or an array: there is no value to show
        return {"kind": str(side)}
    return {"kind": text.kind(side), "value": side}


def _draw_arrays(screen: Screen, diffs: Sequence[ArrayDiff], args: argparse.Namespace) -> None:
    counts = collections.Counter(diff.status for diff in diffs)
    parts = [f"{counts[status]:,} {status}" for status in _STYLES if counts[status]]
    screen.title(f"arrays: {', '.join(parts) or 'none'}")
    shown = [diff for diff in diffs if args.all or diff.status != "equal"]
    columns = [
        Column(title="status"),
        Column(title="array", folds=True),
        Column(title="type", folds=True),
    ]
    if args.values:
        columns += [Column(title=t, right=True) for t in ("max abs", "max rel", "differing")]
    rows = [
        _array_cells(diff, args.values) for diff in (shown if args.full else shown[:MAX_ROWS])
    ]
    if rows:
        screen.table(columns, rows)
    _more(screen, len(shown) - len(rows))


def _array_cells(diff: ArrayDiff, with_values: bool) -> list[Cell]:
    sides = [
        f"{side[0]} {text.shape(side[1])}" for side in (diff.a, diff.b) if side is not None
    ]
    found: list[Cell] = [
        Styled(diff.status, _STYLES[diff.status]),
        diff.path,
        " -> ".join(dict.fromkeys(sides)),
    ]
    if with_values:
        values = diff.values
        if values is None:
            found += ["", "", ""]
        else:
            nans = values.nan_in_a + values.nan_in_b
            found += [
                text.difference(values.max_abs),
                text.difference(values.max_rel),
                f"{values.differing:,}" + (f" ({nans:,} nan)" if nans else ""),
            ]
    return found


def _draw_values(screen: Screen, diffs: Sequence[ValueDiff], *, full: bool) -> None:
    within = [diff for diff in diffs if diff.where == "tree"]
    around = [diff for diff in diffs if diff.where != "tree"]
    for title, some in (("metadata", around), ("values of the tree", within)):
        if not some:
            continue
        screen.title(f"{title}: {text.count(len(some), 'difference')}")
        shown = some if full else some[:MAX_ROWS]
        # Two tables: the long paths of the tree leave the short ones of metadata their room.
        columns = [Column(title=name, folds=True) for name in ("path", "A", "B")]
        rows: list[list[Cell]] = [_sides(diff, 1_000_000 if full else 60) for diff in shown]
        if some is around:
            columns.insert(0, Column(title="where"))
            rows = [[diff.where, *row] for diff, row in zip(shown, rows, strict=True)]
        screen.table(columns, rows)
        _more(screen, len(some) - len(shown))


def _sides(diff: ValueDiff, width: int) -> list[Cell]:
    a, b = _side(diff.a, width), _side(diff.b, width)
    if a == b:  # cut before the first difference
        a, b = (_side(side, 1_000_000) for side in (diff.a, diff.b))
        begin = max(0, _alike(str(a), str(b)) - width // 2)
        a, b = (text.cut("..." + str(side)[begin:], width) for side in (a, b))
    return [diff.path, a, b]


def _alike(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    same = (one == other for one, other in zip(a, b, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))


def _side(value: object, width: int) -> Cell:
    if value is ABSENT:
        return Styled("-", "dim")
    return str(value) if isinstance(value, Word) else text.value(value, width)


def _more(screen: Screen, n: int) -> None:
    if n:
        screen.line(f"... and {n:,} more (--full)", "dim")
