"""Tables: how wide each column gets. Pure; `screen` draws what comes out.

The same layout serves every terminal, with and without rich: what does not fit is first left
out (optional columns, and a note says which), then folded into more lines. Nothing is cut.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from ckptfmt.cli import text

GAP: Final = 2  # columns of the terminal between two columns of a table
_NARROWEST: Final = 12  # a column is not folded further than this
_TORN: Final = 24  # nor, while another can be, further than its longest word, up to this


class Styled(NamedTuple):
    """Text with a meaning that a colour can show: `good`, `bad`, `warn`, `dim`, `strong`."""

    text: str
    style: str


Cell: TypeAlias = str | Styled


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False  # aligned to the right, as numbers are
    folds: bool = False  # may be narrowed, its text then takes more lines
    optional: bool = False  # may be left out, the last one first


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """A table that fits: for each row, each column, the lines of the cell."""

    columns: tuple[Column, ...]
    widths: tuple[int, ...]
    rows: tuple[tuple[tuple[tuple[str, ...], str], ...], ...]  # ((lines, style), ...) per row
    left_out: tuple[str, ...]  # titles

    @property
    def titled(self) -> bool:
        """Whether it has a line of titles."""
        return any(column.title for column in self.columns)


def lay(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> Laid:
    """Fit a table into `width` columns of a terminal; None is as wide as it likes.

    Terminal columns that cannot be had (many numbers on a narrow terminal) are exceeded.
    """
    columns = [replace(column, title=text.safe(column.title)) for column in columns]
    cells = [[c if isinstance(c, Styled) else Styled(c, "") for c in row] for row in rows]
    cells = [[Styled(text.safe(c.text), c.style) for c in row] for row in cells]
    wanted = [
        max([text.cells(column.title), *(text.cells(row[n].text) for row in cells)])
        for n, column in enumerate(columns)
    ]
    kept = list(range(len(columns)))
    if width is not None:
        least = [
            _least(column, [row[n].text for row in cells], wanted[n])
            for n, column in enumerate(columns)
        ]
        kept = _fitting(columns, least, width)
        wanted = _folded(cells, wanted, least, kept, width)
    return Laid(
        columns=tuple(columns[n] for n in kept),
        widths=tuple(wanted[n] for n in kept),
        rows=tuple(
            tuple((tuple(_lines(row[n].text, wanted[n])), row[n].style) for n in kept)
            for row in cells
        ),
        left_out=tuple(c.title for n, c in enumerate(columns) if n not in kept),
    )


def lines(laid: Laid) -> list[str]:
    """Return a table as plain text, without trailing blanks."""
    found = []
    if laid.titled:
        titles = [column.title for column in laid.columns]
        found.append(_line(laid, titles))
        found.append(_line(laid, ["-" * width for width in laid.widths]))
    for row in laid.rows:
        height = max(len(cell) for cell, _ in row)
        padded = [[*cell, *[""] * (height - len(cell))] for cell, _ in row]
        found += [_line(laid, line) for line in zip(*padded, strict=True)]
    return found


def _line(laid: Laid, texts: Sequence[str]) -> str:
    padded = []
    for column, width, shown in zip(laid.columns, laid.widths, texts, strict=True):
        blank = " " * max(0, width - text.cells(shown))
        padded.append(blank + shown if column.right else shown + blank)
    return (" " * GAP).join(padded).rstrip()


def _least(column: Column, cells: Sequence[str], wanted: int) -> int:
    """Return how narrow a column may get: a title or a number is never broken."""
    if not column.folds:
        return wanted
    numbers = max(map(text.longest_number, cells), default=0)
    return min(wanted, max(_NARROWEST, text.cells(column.title), numbers))


def _fitting(columns: Sequence[Column], least: Sequence[int], width: int) -> list[int]:
    """Return the columns that stay: optional ones go, from the right, until the rest fits."""
    kept = list(range(len(columns)))
    for n in reversed(range(len(columns))):
        if sum(least[k] + GAP for k in kept) - GAP <= width:
            break
        if columns[n].optional:
            kept.remove(n)
    return kept


def _folded(
    cells: Sequence[Sequence[Styled]],
    wanted: Sequence[int],
    least: Sequence[int],
    kept: Sequence[int],
    width: int,
) -> list[int]:
    """Narrow columns until all fit, each time the one where the fewest cells get longer.

    Words are torn apart only when nothing else is left.
    """
    found = list(wanted)
    over = sum(found[n] + GAP for n in kept) - GAP - width
    folding = [n for n in kept if found[n] > least[n]] if over > 0 else []
    needs = {n: sorted(text.cells(row[n].text) for row in cells) for n in folding}
    torn = {n: max(text.longest_piece(row[n].text) for row in cells) for n in folding}
    whole = {n: max(least[n], min(_TORN, torn[n])) for n in folding}
    for _ in range(over):
        able = [n for n in folding if found[n] > least[n]]
        able = [n for n in able if found[n] > whole[n]] or able
        if not able:
            break
        folded = {n: len(cells) - bisect.bisect_left(needs[n], found[n]) for n in able}
        found[min(able, key=lambda n: (folded[n], -found[n]))] -= 1
    return found


def _lines(shown: str, width: int) -> list[str]:
    """Fold a cell; lines after the first repeat its indent and are set two columns deeper."""
    if text.cells(shown) <= width:
        return [shown]
    blank = len(shown) - len(shown.lstrip(" "))
    if not blank or blank + _NARROWEST > width:
        return text.fold(shown, width)
    indent = " " * blank
    return [indent + line for line in text.fold(shown[blank:], width - blank)]
