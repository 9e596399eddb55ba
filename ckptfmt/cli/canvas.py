"""Draw runs over examples with matplotlib: PNG or SVG. Imported only when something is drawn.

From top to bottom: titles and notes · what the signs mean · numbers of marks · a panel for each
quantity · sizes · the axis and its virtual epochs · words for the marks.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ckptfmt.cli import panels, text
from ckptfmt.cli import sheet as paper
from ckptfmt.cli.sheet import CHARACTER, LINE, Sheet
from ckptfmt.training import curves
from ckptfmt.training.curves import Edge
from ckptfmt.training.scene import SEEN, Mark, Scene

DPI: Final = 100
MAX_MARKS: Final = 12  # explained below; a page and JSON have all

_GAP: Final = 0.18
_SIGNS: Final = 0.28  # inches for a line that explains them
_SIGN: Final = 0.4  # inches for a sign and the space around it
_AXIS: Final = 0.5
_EPOCHS: Final = 0.42
_NEAR: Final = 0.3  # inches: marks that are closer share a number
_MOST_EDGES: Final = 60  # drawn as lines; of more, only ticks
_COMMENT: Final = re.compile(r"<!--.*?-->\s*", re.DOTALL)
_INDENT: Final = re.compile(r"\s*\n\s*")

_MEANINGS: Final = {
    "stored": "stored",
    "slimmed": "slimmed",
    "deleted": "deleted",
    "best": "best",
    "nan": "no finite number",
    "branch": "other branch",
    "edge": "end of a virtual epoch",
    "restart": "restart",
}


def draw(scene: Scene, kind: str, width: int) -> bytes:
    """Return a picture; the same scene gives the same bytes with one release of matplotlib.

    Args:
        kind: `png` or `svg`.
        width: Pixels.
    """
    settings: dict[str, Any] = {
        "font.family": paper.FONT,
        "svg.hashsalt": "ckptfmt",
        "svg.fonttype": "path",  # as it was looked at, whatever fonts the reader has
    }
    with style.context(settings, after_reset=True):
        figure = _figure(scene, width / DPI)
        out = io.BytesIO()
        about: dict[str, Any] = {"Software": "ckptfmt"} if kind == "png" else {"Date": None}
        figure.savefig(out, format=kind, dpi=DPI, metadata=about)
    if kind == "png":
        return out.getvalue()
    # The comments repeat every text; without them a name is nothing but glyphs.
    shown = _COMMENT.sub("", out.getvalue().decode("utf-8"))
    return _INDENT.sub("\n", shown).encode("utf-8")


def _figure(scene: Scene, width: float, sign_rows: int = 1) -> Figure:
    """Return the figure; what signs it needs, and so in how many lines, shows when drawn."""
    marks = scene.marks()
    columns = int((width - 0.4) / CHARACTER)
    notes = [line for note in scene.notes for line in _wrapped(note, columns)]
    below = [line for row in _explained(marks) for line in _wrapped(row, columns)]
    shown = [panels.entries(scene, panel) for panel in scene.panels]
    room = width - paper.LEFT - paper.RIGHT
    rows = [-(-len(found) // panels.legend_columns(found, room)) for found in shown]
    sized = any(node.new_nbytes is not None for run in scene.runs for node in run.nodes)
    height = (
        0.2 + LINE * (len(scene.titles) + len(notes) + len(below) + bool(marks))
        + _SIGNS * sign_rows
        + sum(LINE * n + panels.HEIGHT + _GAP for n in rows)
        + (0 if rows else panels.FLAT + _GAP)
        + sized * (LINE + panels.SIZES) + _AXIS + _EPOCHS * bool(_grid(scene))
    )  # fmt: skip
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    sheet = Sheet(figure, width, height, scene, _limits(scene))
    for title in scene.titles:
        sheet.words(text.cut(paper.drawable(title), columns - columns // 8), size=10)
    for note in notes:
        sheet.words(note, color=paper.FAINT)
    signs_at = sheet.y + _SIGNS / 2
    sheet.y += _SIGNS * sign_rows
    drawn: list[Axes] = []
    for found, n in zip(shown, rows, strict=True):
        sheet.y += LINE * n + (LINE if marks and not drawn else 0)
        drawn.append(panels.metrics(sheet, found, raised=bool(marks) and not drawn))
        sheet.y += _GAP
    if not shown:
        sheet.y += LINE * bool(marks)
        drawn.append(panels.places(sheet))
        sheet.y += _GAP
    if sized:
        sheet.y += LINE
        drawn.append(panels.sizes(sheet))
    _edges(sheet, drawn)
    _marks(sheet, drawn, marks)
    _restarts(sheet, drawn[0])
    _axis(sheet, drawn[-1])
    for row in below:
        sheet.words(row)
    signs = _packed([name for name in _MEANINGS if name in sheet.signs], room)
    if len(signs) > sign_rows:
        return _figure(scene, width, len(signs))
    for n, names in enumerate(signs):
        _signs(sheet, names, signs_at + n * _SIGNS)
    return figure


def _packed(names: Sequence[str], room: float) -> list[list[str]]:
    """Return names of signs in lines that their explanations fit into."""
    rows: list[list[str]] = []
    left = 0.0
    for name in names:
        need = _SIGN + len(_MEANINGS[name]) * CHARACTER
        if need > left:
            rows.append([])
            left = room
        rows[-1].append(name)
        left -= need
    return rows


def _wrapped(shown: str, columns: int) -> list[str]:
    return textwrap.wrap(paper.drawable(shown), columns, subsequent_indent="    ")


def _explained(marks: Sequence[Mark]) -> list[str]:
    rows = [f"{n}  at {m.x:,}: {m.text}" for n, m in enumerate(marks[:MAX_MARKS], 1)]
    if len(marks) > MAX_MARKS:
        rows.append(f"and {len(marks) - MAX_MARKS:,} more, see --json")
    return rows


def _limits(scene: Scene) -> tuple[float, float]:
    found = [
        float(x) for r in scene.runs for n in r.nodes if (x := scene.x(n.point)) is not None
    ]
    low, high = min(found, default=0.0), max(found, default=1.0)
    if scene.axis == SEEN and (low <= high / 2 or low == high):
        low = 0.0
    margin = (high - low) * 0.035 or 0.5
    return low - margin, high + margin


def _grid(scene: Scene) -> list[Edge]:
    """Return the ends of virtual epochs within the axis; of several runs, if all are alike."""
    if scene.axis != SEEN:
        return []
    found = {tuple(curves.edges(run.progress)) for run in scene.runs}
    low, high = _limits(scene)
    return [edge for edge in found.pop() if low <= edge.seen <= high] if len(found) == 1 else []


def _edges(sheet: Sheet, drawn: Sequence[Axes]) -> None:
    grid = _grid(sheet.scene)
    if not grid or len(grid) > _MOST_EDGES:
        return
    sheet.signs.add("edge")
    for axes in drawn:
        for edge in grid:
            axes.axvline(edge.seen, color=paper.GRID, linewidth=0.8, zorder=0)


def _marks(sheet: Sheet, drawn: Sequence[Axes], marks: Sequence[Mark]) -> None:
    """Draw marks through all panels; those that are close together share one number."""
    low, high = sheet.limits
    numbered = [(n, m) for n, m in enumerate(marks, 1) if low <= m.x <= high]
    for axes in drawn:
        for x in sorted({mark.x for _, mark in numbered}):
            axes.axvline(x, color=paper.INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    groups: list[list[tuple[int, Mark]]] = []
    for n, mark in numbered:
        near = groups and sheet.inches(mark.x) - sheet.inches(groups[-1][0][1].x) < _NEAR
        if near:
            groups[-1].append((n, mark))
        else:
            groups.append([(n, mark)])
    for group in groups:
        first, last = group[0], group[-1]
        name = str(first[0]) if len(group) == 1 else f"{first[0]}–{last[0]}"
        drawn[0].text(
            (first[1].x + last[1].x) / 2, 1.03, name, size=8.5, ha="center", va="bottom",
            transform=drawn[0].get_xaxis_transform(), color="white", weight="bold",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": paper.INK, "linewidth": 0},
        )  # fmt: skip


def _restarts(sheet: Sheet, highest: Axes) -> None:
    """Draw on the ground of the highest panel where a new process went on."""
    for r, run in enumerate(sheet.scene.runs):
        places = sheet.scene.restarts(run)
        if places:
            sheet.signs.add("restart")
            color = paper.COLORS[r] if len(sheet.scene.runs) > 1 else paper.INK
            highest.plot(
                places, [0.0] * len(places), transform=highest.get_xaxis_transform(), zorder=6,
                clip_on=False, **panels.sign(panels.Look(color, "", ""), "restart", 7),
            )  # fmt: skip


def _axis(sheet: Sheet, lowest: Axes) -> None:
    lowest.tick_params(labelbottom=True, bottom=True)
    ticks = max(3, int(sheet.room / 1.1))
    lowest.xaxis.set_major_locator(ticker.MaxNLocator(ticks, integer=True))
    lowest.xaxis.set_major_formatter(lambda x, _: short(round(x)))
    label = "examples seen" if sheet.scene.axis == SEEN else "checkpoint number"
    lowest.set_xlabel(label, size=9, color=paper.INK, labelpad=3)
    sheet.y += _AXIS
    grid = _grid(sheet.scene)
    if not grid:
        return
    step = max(1, -(-len(grid) // max(2, int(sheet.room / 0.45))))
    some = grid[step - 1 :: step]
    # The place is given in heights of the panel.
    height = lowest.get_position().height * sheet.height
    below = lowest.secondary_xaxis(-_AXIS / height)
    below.set_xticks([edge.seen for edge in some], [f"{edge.virtual_epoch:,}" for edge in some])
    below.tick_params(labelsize=8.5, color=paper.FAINT, labelcolor=paper.INK, length=3)
    below.spines["bottom"].set_color(paper.FAINT)
    below.set_xlabel("virtual epoch", size=9, color=paper.INK, labelpad=3)
    sheet.y += _EPOCHS


def short(n: int) -> str:
    """Return a count of examples for a tick, exactly: `250k`, `1.5M`, `1,234,567`."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        whole, rest = divmod(n, unit)
        if whole and rest % (unit // 100) == 0:
            return f"{whole:,}" + f"{rest / unit:.2f}"[1:].rstrip("0").rstrip(".") + name
    return f"{n:,}"


def _signs(sheet: Sheet, used: Sequence[str], y: float) -> None:
    """Explain signs, in one line."""
    look = panels.Look(paper.FAINT, "o", "-")
    handles: list[Line2D] = []
    for name in used:
        if name == "branch":
            handles.append(Line2D([], [], color=paper.FAINT, linestyle=(0, (1, 2))))
        elif name == "edge":
            handles.append(
                Line2D([], [], linestyle="", marker="|", markersize=11, color="#BBBBBB")
            )
        else:
            handles.append(Line2D([], [], **panels.sign(look, name, 5.5)))
    sheet.figure.legend(
        handles, [_MEANINGS[name] for name in used], loc="center left",
        bbox_to_anchor=(paper.LEFT / sheet.width, 1 - y / sheet.height), ncols=len(used) or 1,
        frameon=False, fontsize=8.5, handletextpad=0.4, columnspacing=1.4, borderaxespad=0,
        borderpad=0, handlelength=1.6, labelcolor=paper.FAINT,
    )  # fmt: skip
