"""Plain text on a terminal: sections, tables, and claims that are counted.

Uses rich for colour where it is installed; the text is the same without it, and in a pipe.
"""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Protocol

WIDTH = 95


class _Out(Protocol):
    def __call__(self, text: str, style: str) -> None: ...


class Page:
    """Prints as it goes and remembers which claims did not hold."""

    def __init__(self) -> None:
        self._print = _printer()
        self._sections = 0
        self.held = 0
        self.failed: list[str] = []

    def title(self, text: str, below: str) -> None:
        """Print the first lines."""
        self._print(text, "bold")
        self._wrapped(below, "", "")

    def section(self, text: str) -> None:
        """Begin a numbered section."""
        self._sections += 1
        head = f"{self._sections}  {text} "
        self._print("", "")
        self._print(head.ljust(WIDTH, "─"), "bold cyan")

    def say(self, text: str) -> None:
        """Print a paragraph."""
        self._wrapped(text, "   ", "")

    def quote(self, text: str) -> None:
        """Print what a program said, as it said it, long lines broken."""
        for line in text.splitlines():
            self._wrapped(line, "   │ ", "yellow", "   │   ")

    def verbatim(self, text: str) -> None:
        """Print what a program printed, unchanged."""
        for line in text.splitlines():
            self._print(f"   │ {line}".rstrip(), "yellow")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print columns; those that hold only numbers go to the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        columns = list(zip(head, *cells, strict=True))
        widths = [max(map(len, column)) for column in columns]
        right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
        for n, row in enumerate([head, *cells]):
            aligned = zip(row, widths, right, strict=True)
            self._row([c.rjust(w) if r else c.ljust(w) for c, w, r in aligned], dim=n == 0)

    def feed(
        self, head: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[object]]
    ) -> None:
        """Print rows as they arrive, in columns of given widths."""
        for n, row in enumerate(itertools.chain([head], rows)):
            self._row([str(c).ljust(w) for c, w in zip(row, widths, strict=True)], dim=n == 0)

    def _row(self, cells: Sequence[str], *, dim: bool) -> None:
        self._print("   " + "  ".join(cells).rstrip(), "dim" if dim else "")

    def claim(self, text: str, holds: bool) -> None:
        """Print a claim of this run, and count it."""
        if holds:
            self.held += 1
            self._wrapped(text, "   ✓ ", "green", "     ")
        else:
            self.failed.append(text)
            self._wrapped(text, "   ✗ DOES NOT HOLD: ", "bold red", "     ")

    def end(self, text: str) -> int:
        """Print the balance and return the exit status."""
        self._print("", "")
        if self.failed:
            total = self.held + len(self.failed)
            self._print(f"{len(self.failed)} of {total} claims do not hold:", "bold red")
            for failed in self.failed:
                self._wrapped(failed, "   ✗ ", "bold red", "     ")
            return 1
        self._print(f"All {self.held} claims hold. {text}", "bold green")
        return 0

    def _wrapped(self, text: str, first: str, style: str, rest: str | None = None) -> None:
        lines = textwrap.wrap(
            text,
            WIDTH,
            initial_indent=first,
            subsequent_indent=first if rest is None else rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines or [first.rstrip()]:
            self._print(line, style)


def size(nbytes: int) -> str:
    """Return a number of bytes for people."""
    if nbytes < 1024:
        return f"{nbytes} B"
    return f"{nbytes / 2**10:.1f} KiB" if nbytes < 2**20 else f"{nbytes / 2**20:.1f} MiB"


def _is_number(cell: str) -> bool:
    digits = re.sub(r"[.,]| (B|KiB|MiB)$", "", cell)
    return digits.isdecimal()


def _printer() -> _Out:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no ✓ shows a ?
    try:
        from rich.console import Console
    except ImportError:

        def plain(text: str, style: str) -> None:
            print(text, flush=True)

        return plain
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def styled(text: str, style: str) -> None:
        console.print(text, style=style or None)
        sys.stdout.flush()

    return styled
