"""Where a command's output goes: tables for people on stdout, bars and warnings on stderr.

Everything that is written passes through here, and `text.safe`: no name in a checkpoint can
move the cursor, change a colour or begin a line of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TextIO

from ckptfmt.cli import jsonable, table, text
from ckptfmt.cli.bars import Bar, Drawing, LineDrawing
from ckptfmt.cli.table import Cell, Column, Laid

_PIECE: Final = 2**15  # characters written at once


class Pen(Protocol):
    """Draws what was laid out."""

    def line(self, shown: str, style: str) -> None:
        """Write one line."""

    def table(self, laid: Laid) -> None:
        """Write a table."""


class PlainPen:
    """Writes aligned text without any colour."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, shown: str, style: str) -> None:
        """Write one line."""
        self._stream.write(shown + "\n")

    def table(self, laid: Laid) -> None:
        """Write a table."""
        self._stream.writelines(line + "\n" for line in table.lines(laid))


class Screen:
    """What a command may say, and how.

    Colours and widths are those of the terminal; without a terminal, lines are as long as
    they are and there is no colour, so that other programs can read them.
    """

    def __init__(
        self,
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err
        for stream in (self._out, self._err):
            _never_fail_to_encode(stream)
        self._clock = clock
        self.quiet = False  # True: no bars
        self._bar: Bar | None = None
        self.width = _width() if self._out.isatty() else None
        self._pen = _pen(self._out, self.width)

    def line(self, shown: str = "", style: str = "") -> None:
        """Write one line."""
        self._unbar()
        self._pen.line(text.safe(shown), style)

    def title(self, shown: str) -> None:
        """Begin a part of the output."""
        self.line()
        self.line(shown, "title")

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        """Write a table as wide as the terminal allows, and say what had no room."""
        self._unbar()
        laid = table.lay(columns, rows, self.width)
        self._pen.table(laid)
        if laid.left_out:
            names = ", ".join(laid.left_out)
            self.line(f"no room for: {names} (widen the terminal, or use --json)", "dim")

    def fields(self, pairs: Sequence[tuple[str, Cell]]) -> None:
        """Write names and values, one pair to a line."""
        columns = (Column(title=""), Column(title="", folds=True))
        self.table(columns, [(table.Styled(name, "dim"), shown) for name, shown in pairs])

    def json(self, document: object) -> None:
        """Write a JSON document."""
        self._unbar()
        shown = jsonable.dumps(document) + "\n"
        # In pieces: an unbuffered stdout (PYTHONUNBUFFERED) does not notice that the reader of
        # a pipe goes away in the middle of a write.
        for start in range(0, len(shown), _PIECE):
            self._out.write(shown[start : start + _PIECE])

    def warn(self, message: str) -> None:
        """Write a warning to stderr."""
        self._complain(f"warning: {message}")

    def error(self, code: str, message: str) -> None:
        """Write to stderr why a command failed, on one line."""
        self._complain(f"error[{code}]: {message}")

    def foreign(self, trace: str) -> None:
        """Write to stderr what somebody else's code has to say, line by line."""
        for line in trace.splitlines():
            self._complain(line)

    def _complain(self, message: str) -> None:
        self._unbar()
        self._out.flush()  # in the order of events, where both go to one terminal
        self._err.write(text.safe(message) + "\n")
        self._err.flush()

    @contextlib.contextmanager
    def bar(self, label: str = "", *, unit: str = "bytes") -> Iterator[Bar]:
        """Return a progress callback; its bar is gone when the block ends."""
        bar = Bar(self._drawing(), label=label, unit=unit, clock=self._clock)
        self._bar = bar
        try:
            yield bar
        finally:
            bar.clear()
            self._bar = None

    def _drawing(self) -> Drawing | None:
        if self.quiet or not self._err.isatty():
            return None
        if not _has_rich():
            return LineDrawing(self._err, _width())
        from ckptfmt.cli.rich_screen import RichDrawing

        return RichDrawing(self._err)

    def _unbar(self) -> None:
        if self._bar is not None:
            self._bar.clear()

    def flush(self) -> None:
        """Send out what is still buffered; a reader that is gone is noticed here."""
        self._out.flush()


class Warnings(logging.Handler):
    """Shows what the library logs: guarantees that are lost, checkpoints passed over."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a warning."""
        self._screen.warn(record.getMessage())


def _pen(stream: TextIO, width: int | None) -> Pen:
    if width is None or not _has_rich():
        return PlainPen(stream)
    from ckptfmt.cli.rich_screen import RichPen

    return RichPen(stream, width)


def _has_rich() -> bool:
    return importlib.util.find_spec("rich") is not None


def _width() -> int:
    return shutil.get_terminal_size().columns


def _never_fail_to_encode(stream: TextIO) -> None:
    """Let characters that the terminal's encoding lacks come out as escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
