"""The same tables and bars, in colour. The only module that imports rich."""

from __future__ import annotations

from typing import Final, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ckptfmt.cli import text
from ckptfmt.cli.table import GAP, Laid

_PERCENTAGE: Final = 6  # columns, with the gap before it and a free one at the end
_SMALLEST_BAR: Final = 12
_WIDE: Final = 70  # columns that a whole bar needs; less shows the percentage alone
_STYLES: Final = {
    "": "",
    "title": "bold",
    "strong": "bold",
    "good": "green",
    "warn": "yellow",
    "bad": "red",
    "dim": "dim",
}


class RichPen:
    """Writes to one terminal."""

    def __init__(self, stream: TextIO, width: int) -> None:
        # Nothing in a name is markup, an emoji code or a number to be coloured.
        self._console = Console(
            file=stream, width=width, highlight=False, markup=False, emoji=False
        )

    def line(self, shown: str, style: str) -> None:
        """Write one line; the terminal wraps it, so that it can be copied whole."""
        self._console.print(Text(shown, style=_STYLES[style]), soft_wrap=True)

    def table(self, laid: Laid) -> None:
        """Write a table in the widths it was laid out in."""
        drawn = Table(
            box=SIMPLE_HEAD if laid.titled else None,
            show_header=laid.titled,
            show_edge=False,
            pad_edge=False,
            padding=(0, GAP - 1 if laid.titled else GAP, 0, 0),  # that box adds one itself
            header_style="bold",
        )
        for column, width in zip(laid.columns, laid.widths, strict=True):
            drawn.add_column(
                Text(column.title),
                justify="right" if column.right else "left",
                no_wrap=True,
                width=width,
            )
        for row in laid.rows:
            drawn.add_row(*(Text("\n".join(lines), style=_STYLES[s]) for lines, s in row))
        self._console.print(drawn, soft_wrap=True)


class RichDrawing:
    """A progress bar by rich."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._progress: Progress | None = None

    def draw(self, label: str, done: int, total: int, amount: str) -> None:
        """Show the bar, over the one shown before."""
        wide = self._console.width >= _WIDE
        rest = text.cells(amount) + _SMALLEST_BAR + 1 if wide else 0
        label = text.cut(label, max(1, self._console.width - rest - _PERCENTAGE))
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                *([BarColumn()] if wide else []),
                TextColumn("{task.percentage:>3.0f}%", markup=False),
                *([TextColumn("{task.fields[amount]}", markup=False)] if wide else []),
                console=self._console,
                transient=True,
                auto_refresh=False,  # no thread: it is drawn when there is news
            )
            self._progress.add_task(label, total=total, amount=amount)
            self._progress.start()
        task = self._progress.task_ids[0]
        self._progress.update(
            task, description=label, completed=done, total=total, amount=amount, refresh=True
        )

    def clear(self) -> None:
        """Leave the line as if there had been no bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
