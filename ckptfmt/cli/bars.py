"""Progress on stderr, for whatever takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol, TextIO

from ckptfmt.cli import text

DELAY_SECONDS: Final = 1.0  # shorter work shows nothing
_PERIOD_SECONDS: Final = 0.1  # between two drawings


class Drawing(Protocol):
    """How a bar looks on one kind of terminal."""

    def draw(self, label: str, done: int, total: int, amount: str) -> None:
        """Show the bar, over the one shown before."""

    def clear(self) -> None:
        """Leave the line as if there had been no bar."""


class Bar:
    """A progress callback: called with (phase, done, total).

    It may be called often; it draws at most ten times a second.
    """

    def __init__(
        self,
        drawing: Drawing | None,
        *,
        label: str,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drawing = drawing
        self._label = label
        self._unit = unit
        self._clock = clock
        self._next = clock() + DELAY_SECONDS

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._drawing is None or self._clock() < self._next:
            return
        self._next = self._clock() + _PERIOD_SECONDS
        label = text.safe(f"{self._label}: {phase}" if self._label else phase)
        self._drawing.draw(label, done, max(done, total), self._amount(done, max(done, total)))

    def _amount(self, done: int, total: int) -> str:
        if self._unit == "bytes":
            return f"{text.nbytes(done)} of {text.nbytes(total)}"
        return f"{done:,} of {total:,} {self._unit}"

    def clear(self) -> None:
        """Remove the bar from the terminal; the next call shows it again."""
        if self._drawing is not None:
            self._drawing.clear()


class LineDrawing:
    """A bar made of one line and a carriage return: no package needed."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self._stream = stream
        self._width = max(10, width - 1)  # the last column would start a new line
        self._shown = False

    def draw(self, label: str, done: int, total: int, amount: str) -> None:
        """Show the bar, over the one shown before."""
        part = done / total if total else 1.0
        head, tail = f"{label} [", f"] {part:4.0%} {amount}"
        room = self._width - text.cells(head) - text.cells(tail)
        if room < 5:
            head, tail, room = text.cut(f"{label} ", self._width - 5), f"{part:4.0%}", 0
        filled = int(room * part)
        line = head + "#" * filled + "-" * (room - filled) + tail
        self._stream.write("\r" + line + " " * (self._width - text.cells(line)))
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Leave the line as if there had been no bar."""
        if self._shown:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._shown = False
