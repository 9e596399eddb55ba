"""Pictures of a run: bars for its table, lines for its curves. SVG; matplotlib is needed."""

from __future__ import annotations

import io
import math
import pathlib
import re
import statistics
from typing import Any, Final

from matplotlib import style, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckptfmt.cli.sheet import COLORS, FAINT, FONT, GRID, INK
from tests.bench import curves
from tests.bench.contract import CORE, LIMITS, OURS, PEER
from tests.bench.curves import CURVES, Curve
from tests.bench.measures import MEASURES, TARGETS, TO_LIMIT, Measure
from tests.bench.report import Cell, cells

Run = dict[str, Any]

BARS: Final = "bench.svg"
LINES: Final = "bench-curves.svg"
SHOWN: Final = (  # the rows of issue and README that say most
    ("W1", "save-durable"), ("W1", "save-cached"), ("W1", "into"), ("W1", "read-cold"),
    ("W2", "save-durable"), ("W2", "read"), ("W3", "second-durable"), ("W6", "list-run"),
)  # fmt: skip
MOST: Final = 8  # bars in a panel: ours, the peer, and the fastest of the others
LOOKS: Final = {OURS: (COLORS[0], "o"), PEER: (COLORS[1], "s")}
LIMIT: Final = (FAINT, "")
_COMMENT: Final = re.compile(r"<!--.*?-->\s*", re.DOTALL)
_INDENT: Final = re.compile(r"\s*\n\s*")


def draw(run: Run, folder: pathlib.Path) -> pathlib.Path:
    """Write the picture of a run into a folder; return its path."""
    settings: dict[str, Any] = {
        "font.family": FONT,
        "font.size": 8.5,
        "svg.hashsalt": "ckptfmt",
        "svg.fonttype": "path",
    }
    with style.context(settings, after_reset=True):
        figure = _curves(run) if run.get("curves") else _bars(run)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    path = folder / (LINES if run.get("curves") else BARS)
    text = _INDENT.sub("\n", _COMMENT.sub("", out.getvalue().decode("utf-8")))
    path.write_text(text if text.endswith("\n") else text + "\n", "utf-8")
    return path


def _bars(run: Run) -> Figure:
    shown = [m for m in MEASURES if (m.workload, m.key) in SHOWN and cells(run, m)]
    figure = Figure(figsize=(9.0, 2.35 * -(-len(shown) // 2) + 0.5), facecolor="white")
    panels = figure.subplots(-(-len(shown) // 2), 2, squeeze=False).flat
    for panel, measure in zip(panels, shown, strict=False):
        _bar_panel(run, panel, measure)
    for panel in list(panels)[len(shown) :]:
        panel.set_axis_off()
    figure.suptitle(
        "times as multiples of what the hardware needs for the same bytes (black line);"
        " less is better; dashed: what ckptfmt is to reach; logarithmic",
        fontsize=9.0, color=INK, x=0.01, ha="left",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return figure


def _bar_panel(run: Run, panel: Axes, measure: Measure) -> None:
    chosen = _chosen(cells(run, measure))
    ratios = [cell.to_limit or math.nan for cell in chosen]
    low, high = min(0.8, *ratios), max(2.0, *ratios)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.25, high * (high / low) ** 0.6)  # room for the words
    for target in TARGETS:
        same = (target.workload, target.key) == (measure.workload, measure.key)
        if same and target.to == TO_LIMIT and target.contender == OURS:
            panel.axvline(target.limit, color=COLORS[2], linewidth=1, linestyle=(0, (4, 2)))
    panel.axvline(1.0, color=INK, linewidth=0.8)
    for row, (cell, ratio) in enumerate(zip(chosen, ratios, strict=True)):
        color = LOOKS[cell.contender][0] if cell.contender in LOOKS else "#BBBBBB"
        panel.barh(row, ratio, color=color, height=0.72)
        panel.text(
            ratio * (high / low) ** 0.02, row, f"{ratio:.2f}x, {_seconds(cell.median)}",
            va="center", color=INK, size=7.5,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip
    panel.set_yticks(range(len(chosen)), [cell.name for cell in chosen])
    panel.invert_yaxis()
    panel.set_title(f"{measure.workload} {measure.title}", fontsize=8.5, loc="left", color=INK)
    steps = (1.0,) if high / low > 30 else (1.0, 2.0, 5.0)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    _plain(panel)


def _chosen(found: list[Cell]) -> list[Cell]:
    """Return ours, the peer, and the fastest of the others; no limits."""
    first = [cell for cell in found if cell.contender in (OURS, PEER)]
    others = [c for c in found if c.contender not in CORE and c.contender not in LIMITS]
    return first + sorted(others, key=lambda cell: cell.median)[: MOST - len(first)]


def _curves(run: Run) -> Figure:
    figure = Figure(figsize=(9.0, 8.2), facecolor="white")
    for panel, curve in zip(figure.subplots(3, 2).flat, CURVES, strict=True):
        _curve_panel(run, panel, curve)
    figure.suptitle(
        "seconds: median, lowest and highest sample", fontsize=9.5, color=INK, x=0.01, ha="left"
    )
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    return figure


def _curve_panel(run: Run, panel: Axes, curve: Curve) -> None:
    for name, contender in run["contenders"].items():
        found = curves.points(run, curve, name)
        if not found:
            continue
        x = [many for many, _ in found]
        y = [statistics.median(seconds) for _, seconds in found]
        low = [middle - min(s) for middle, (_, s) in zip(y, found, strict=True)]
        high = [max(s) - middle for middle, (_, s) in zip(y, found, strict=True)]
        color, marker = LOOKS.get(name, LIMIT)
        panel.errorbar(
            x, y, yerr=[low, high], color=color, marker=marker, markersize=4, linewidth=1.3,
            elinewidth=0.8, capsize=2, label=contender["name"],
            linestyle="-" if name in LOOKS else "--",
        )  # fmt: skip
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(curve.title, fontsize=8.5, loc="left", color=INK)
    panel.set_xlabel(curve.axis, color=INK)
    ticks = sorted(
        {many for name in run["contenders"] for many, _ in curves.points(run, curve, name)}
    )
    panel.set_xticks(ticks, [f"{many:,}" for many in ticks])
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: _seconds(value))
    panel.grid(visible=True, color=GRID, linewidth=0.6)
    panel.legend(frameon=False, fontsize=7.5)
    _plain(panel)


def _plain(panel: Axes) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.tick_params(colors=INK, labelsize=7.5)


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1000 * value:.3g} ms" if value >= 0.001 else f"{1e6 * value:.3g} µs"
