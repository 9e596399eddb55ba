"""The panels of a picture: metrics over examples, and sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.markers import CARETUP
from matplotlib.patches import Patch

from ckptfmt.cli import sheet as paper
from ckptfmt.cli import text
from ckptfmt.cli.sheet import Sheet
from ckptfmt.training.curves import Line, Node, Run, as_float
from ckptfmt.training.scene import Scene
from ckptfmt.training.selection import Number

HEIGHT: Final = 1.75  # inches
SIZES: Final = 0.9
FLAT: Final = 0.5  # a panel without values
_LOG_FROM: Final = 1000.0  # largest / smallest value from which an axis is logarithmic
_CHARACTER: Final = 0.068  # inches, on average, in a legend
_LONGEST: Final = 40  # characters of a name in a legend
_WIDEST: Final = 4.4  # points added to the first of several runs
_HATCHED: Final = 0.08  # inches: narrower bars are plain
_LARGEST: Final = 1e100  # axes compute with squares and powers of values
_SMALLEST_FILLED: Final = 4.5  # points: half of a smaller sign cannot be seen


class Look(NamedTuple):
    """How a line is told from others, in colour and in grey."""

    color: str
    shape: str
    dashes: Any
    more: float = 0.0  # points: wider, so that it is seen below an equal line


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric of one run."""

    metric: str
    run: Run
    look: Look
    label: str  # in the legend


class Drawn(NamedTuple):
    """One checkpoint in one panel."""

    x: float
    y: float  # NaN or infinite: measured, and cannot be shown on an axis
    node: Node


def entries(scene: Scene, panel: Sequence[str]) -> list[Entry]:
    """Return what a panel shows: colours tell runs apart, or metrics where there is one run."""
    found = []
    for m, metric in enumerate(panel):
        for r, run in enumerate(scene.runs):
            if all(node.point.metrics.get(metric) is None for node in run.nodes):
                continue
            n = r if len(scene.runs) > 1 else m
            look = Look(
                paper.COLORS[n % len(paper.COLORS)],
                paper.SHAPES[n % len(paper.SHAPES)],
                paper.DASHES[m % len(paper.DASHES)],
                min(_WIDEST, 2.2 * (len(scene.runs) - 1 - r)),
            )
            name = text.cut(paper.drawable(metric), _LONGEST)
            label = f"{name} {scene.labels[r]}".strip() + _best(scene, run, metric)
            found.append(Entry(metric, run, look, label))
    return found


def _best(scene: Scene, run: Run, metric: str) -> str:
    """Return what a legend says of the best value."""
    for found in scene.extremes(run):
        if found.metric == metric:
            word = "lowest" if found.mode == "min" else "highest"
            gone = "" if found.point.stored else ", deleted"
            value = text.number(found.point.metrics[metric])
            return f" ({word} {value} at {found.point.number}{gone})"
    return ""


def legend_columns(found: Sequence[Entry], room: float) -> int:
    """Return how many names fit beside each other above a panel."""
    longest = max(len(entry.label) for entry in found)
    beside = room - 0.8  # where a logarithmic axis says what it is
    return max(1, min(len(found), int(beside / (longest * _CHARACTER + 0.6))))


def metrics(sheet: Sheet, found: Sequence[Entry], *, raised: bool) -> Axes:
    """Draw one panel; `raised` leaves a line for the numbers of marks below the legend."""
    axes = sheet.axes(HEIGHT)
    values: list[float] = []
    for entry in found:
        for line in sheet.scene.lines(entry.run):
            rows = [
                Drawn(float(x), y, node)
                for node in line.nodes
                if (x := sheet.scene.x(node.point)) is not None
                and (y := _drawn(node.point.metrics.get(entry.metric))) is not None
            ]
            _line(sheet, axes, line, rows, entry.look)
            values += [row.y for row in rows if math.isfinite(row.y)]
        _stars(sheet, axes, entry)
    if not values:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
    elif min(values) > 0 and max(values) / min(values) >= _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.text(
            1,
            1.03,
            "logarithmic",
            size=8,
            color=paper.FAINT,
            ha="right",
            transform=axes.transAxes,
        )
    else:
        axes.margins(y=0.12)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    _legend(sheet, axes, found, paper.LINE if raised else 0.0)
    return axes


def _drawn(value: Number | None) -> float | None:
    """Return where a value is drawn; infinite where it is beyond what an axis can show."""
    found = as_float(value)
    if found is None or not math.isfinite(found):
        return found
    if abs(found) > _LARGEST:
        return math.inf
    return found if abs(found) > 1 / _LARGEST else 0.0


def places(sheet: Sheet) -> Axes:
    """Draw where checkpoints are, when nothing was measured."""
    axes = sheet.axes(FLAT)
    for r, run in enumerate(sheet.scene.runs):
        look = Look(paper.COLORS[r], paper.SHAPES[r], "-")
        for n, line in enumerate(sheet.scene.lines(run)):
            level = -r - n / 10
            rows = [Drawn(float(sheet.scene.x(o.point) or 0), level, o) for o in line.nodes]
            _line(sheet, axes, line, rows, look)
    axes.margins(y=0.5)
    axes.set_yticks([-float(r) for r in range(len(sheet.scene.runs))], sheet.scene.labels)
    return axes


def _line(sheet: Sheet, axes: Axes, line: Line, rows: Sequence[Drawn], look: Look) -> None:
    alpha = 1.0 if line.main else 0.6
    # A value that is no number leaves a gap; one that was not measured leaves none.
    shown = [row.y if math.isfinite(row.y) else math.nan for row in rows]
    axes.plot(
        [row.x for row in rows], shown, color=look.color, alpha=alpha, zorder=3,
        linestyle=look.dashes if line.main else (0, (1, 2)), linewidth=1.3 + look.more / 2,
    )  # fmt: skip
    if not line.main and rows:
        sheet.signs.add("branch")
    # Where a branch leaves another line, that line has drawn the checkpoint.
    own = [row for row in rows if not (line.forked and row.node is line.nodes[0])]
    size = look.more + (5.5 if len(own) <= 40 else 4.0 if len(own) <= 120 else 2.6)
    for state in ("stored", "slimmed", "deleted"):
        some = [row for row in own if row.node.state == state and math.isfinite(row.y)]
        if some:
            sheet.signs.add(state)
            axes.plot(
                [row.x for row in some], [row.y for row in some], alpha=alpha, zorder=4,
                **sign(look, state, size),
            )  # fmt: skip
    broken = [row.x for row in own if not math.isfinite(row.y)]
    if broken:
        sheet.signs.add("nan")
        axes.plot(
            broken, [0.05] * len(broken), transform=axes.get_xaxis_transform(), zorder=4,
            **sign(look, "nan", size),
        )  # fmt: skip


def sign(look: Look, state: str, size: float) -> dict[str, Any]:
    """Return how a checkpoint in some state is drawn."""
    plain: dict[str, Any] = {
        "linestyle": "", "marker": look.shape, "markersize": size, "color": look.color,
        "markeredgewidth": 0.9,
    }  # fmt: skip
    match state:
        case "deleted":
            plain["markerfacecolor"] = "white"
        case "slimmed":
            half = {"fillstyle": "bottom", "markerfacecoloralt": "white"}
            plain |= {**half, "markersize": max(size, _SMALLEST_FILLED)}
        case "nan":
            plain |= {"marker": "x", "markersize": max(size, _SMALLEST_FILLED)}
        case "restart":
            plain["marker"] = CARETUP  # a shape of its own: its tip is the place
        case "best":
            plain |= {
                "marker": "*", "markersize": 13, "markerfacecolor": paper.BEST,
                "markeredgecolor": paper.INK,
            }  # fmt: skip
    return plain


def _stars(sheet: Sheet, axes: Axes, entry: Entry) -> None:
    for found in sheet.scene.extremes(entry.run):
        x, y = sheet.scene.x(found.point), _drawn(found.point.metrics.get(entry.metric))
        if found.metric != entry.metric or x is None or y is None or not math.isfinite(y):
            continue
        sheet.signs.add("best")
        how = sign(entry.look, "best", 13)
        if not found.point.stored:
            how["markerfacecolor"] = "white"
        axes.plot([float(x)], [y], zorder=5, **how)


def _legend(sheet: Sheet, axes: Axes, found: Sequence[Entry], raise_by: float) -> None:
    """Put the names above the axes, never over lines."""
    handles = [
        Line2D(
            [],
            [],
            color=e.look.color,
            marker=e.look.shape,
            linestyle=e.look.dashes,
            markersize=5,
        )
        for e in found
    ]
    legend = axes.legend(
        handles, ["-"] * len(found), loc="lower left",
        bbox_to_anchor=(0, 1 + (raise_by + 0.03) / HEIGHT),
        ncols=legend_columns(found, sheet.room), frameon=False, fontsize=8.5, handlelength=2.8,
        borderaxespad=0, borderpad=0, labelspacing=0.35, columnspacing=1.5,
    )  # fmt: skip
    fits = int((sheet.room - 0.4) / _CHARACTER)  # of a narrow picture, less than a long name
    for line, entry in zip(legend.get_texts(), found, strict=True):
        paper.say(line, text.cut(paper.drawable(entry.label), fits))


def sizes(sheet: Sheet) -> Axes:
    """Draw what each stored checkpoint wrote, and what it shares with earlier ones."""
    axes = sheet.axes(SIZES)
    scene, several = sheet.scene, len(sheet.scene.runs) > 1
    rows = [
        (r, float(x), node.new_nbytes, node.reused_nbytes or 0)
        for r, run in enumerate(scene.runs)
        for node in run.nodes
        if node.new_nbytes is not None and (x := scene.x(node.point)) is not None
    ]
    handles: list[tuple[Any, str]] = []
    if several:
        for r, label in enumerate(scene.labels):
            more = min(_WIDEST, 2.2 * (len(scene.runs) - 1 - r))
            look = Look(paper.COLORS[r], paper.SHAPES[r], "", more)
            own = [(x, new) for n, x, new, _ in rows if n == r]
            how = sign(look, "stored", 4.0 + more)
            axes.plot([x for x, _ in own], [new for _, new in own], **how)
            handles.append((Line2D([], [], **how), f"written by it {label}"))
    else:
        width = _bar_width(sheet, sorted({x for _, x, _, _ in rows}))
        axes.bar(
            [x for _, x, _, _ in rows], [new for _, _, new, _ in rows], width, color=paper.NEW
        )
        axes.bar(
            [x for _, x, _, _ in rows], [old for _, _, _, old in rows], width,
            bottom=[new for _, _, new, _ in rows], color=paper.REUSED, edgecolor="white",
            hatch="////" if sheet.inches(width) - sheet.inches(0) > _HATCHED else None,
            linewidth=0,
        )  # fmt: skip
        shared = Patch(facecolor=paper.REUSED, hatch="////", edgecolor="white", linewidth=0)
        handles = [
            (Patch(color=paper.NEW), "bytes written by it"),
            (shared, "reused of earlier"),
        ]
    axes.set_ylim(bottom=0, top=max([1, *(new + old for _, _, new, old in rows)]) * 1.1)
    axes.yaxis.set_major_locator(ticker.MultipleLocator(_binary(axes.get_ylim()[1] / 2.5)))
    axes.yaxis.set_major_formatter(lambda y, _: text.nbytes(round(y)))
    axes.legend(
        [handle for handle, _ in handles], [label for _, label in handles], loc="lower left",
        bbox_to_anchor=(0, 1.03), ncols=len(handles), frameon=False, fontsize=8.5,
        borderaxespad=0, borderpad=0, columnspacing=1.5,
    )  # fmt: skip
    return axes


def _binary(nbytes: float) -> float:
    """Return the power of two at or below a number of bytes, at least 1."""
    return 2.0 ** max(0, math.floor(math.log2(nbytes)))


def _bar_width(sheet: Sheet, xs: Sequence[float]) -> float:
    """Return a width that leaves gaps between bars, but is never less than can be seen."""
    low, high = sheet.limits
    gaps = sorted(b - a for a, b in itertools.pairwise(xs))
    usual = gaps[len(gaps) // 2] if gaps else (high - low) / 20
    least = 0.015 * (high - low) / sheet.room  # 1.5 pixels
    return min(max(usual * 0.7, least), (high - low) / 20)
