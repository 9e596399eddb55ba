"""What a picture is drawn on: a figure that is filled from the top, and its type and colours.

Everything is placed in inches, so that no text can run into another. No name is ever read as a
formula, and what the font lacks is shown as an escape.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Final

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckptfmt.cli import text
from ckptfmt.training.scene import Scene

FONT: Final = "DejaVu Sans"  # comes with matplotlib
INK: Final = "#222222"
FAINT: Final = "#6B6B6B"
GRID: Final = "#E4E4E4"
# Okabe and Ito's colours; shapes and dashes tell them apart in grey too.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SHAPES: Final = ("o", "s", "^", "D", "v", "P", "p")
DASHES: Final[tuple[Any, ...]] = (
    "-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
BEST: Final = "#F0E442"
NEW: Final = "#0072B2"
REUSED: Final = "#A9CBE0"

LEFT: Final = 0.8  # margins, inches
RIGHT: Final = 0.3
LINE: Final = 0.2  # of text
CHARACTER: Final = 0.075  # inches, on average, at 9 points


@dataclass(slots=True)
class Sheet:
    """A figure that is filled from the top."""

    figure: Figure
    width: float  # inches
    height: float
    scene: Scene
    limits: tuple[float, float]  # of the axis
    y: float = 0.1  # inches from the top that are used
    signs: set[str] = field(default_factory=set)  # that were drawn and are to be explained

    @property
    def room(self) -> float:
        """Inches from the left to the right end of the axis."""
        return self.width - LEFT - RIGHT

    def axes(self, height: float) -> Axes:
        """Add axes below what is there."""
        self.y += height
        box = (
            LEFT / self.width,
            1 - self.y / self.height,
            self.room / self.width,
            height / self.height,
        )
        axes = self.figure.add_axes(box)
        axes.set_xlim(*self.limits)
        axes.tick_params(
            labelsize=8.5, color=FAINT, labelcolor=INK, bottom=False, labelbottom=False
        )
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(FAINT)
        return axes

    def words(self, shown: str, *, size: float = 9, color: str = INK) -> None:
        """Add a line of text."""
        y = 1 - (self.y + LINE / 2) / self.height
        say(
            self.figure.text(0.15 / self.width, y, "", size=size, color=color, va="center"),
            shown,
        )
        self.y += LINE

    def inches(self, x: float) -> float:
        """Return how far from the left end of the axis a place is."""
        low, high = self.limits
        return (x - low) / (high - low) * self.room


def say(line: Any, shown: str) -> None:
    """Set the text of an artist: `$` is a dollar, and what cannot be drawn an escape."""
    line.set_parse_math(False)
    line.set_text(drawable(shown))


def drawable(shown: str) -> str:
    """Return a text of which every character is in the font."""
    return "".join(c if _has(c) else ascii(c)[1:-1] for c in text.safe(shown))


@functools.cache
def _has(character: str) -> bool:
    font = font_manager.get_font(font_manager.findfont(FONT))
    return bool(font.get_char_index(ord(character)))
