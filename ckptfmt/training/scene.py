"""What one picture of several runs says, whatever draws it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckptfmt.training import curves
from ckptfmt.training.curves import Extreme, Line, Run
from ckptfmt.training.parting import METRIC, Parting
from ckptfmt.training.selection import Number, Point

SEEN = "seen"
NUMBER = "number"


class Mark(NamedTuple):
    """A numbered place on the axis, explained in words below the picture."""

    x: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One picture."""

    runs: tuple[Run, ...]  # at least one
    labels: tuple[str, ...]  # of each run, short; "" for one alone
    panels: tuple[tuple[str, ...], ...] = ()  # metrics that share an axis
    modes: Mapping[str, str]  # metric → min or max, where the best is marked
    notes: tuple[str, ...] = ()  # sentences
    partings: tuple[Parting, ...] = ()  # of the first two runs, to be marked

    @property
    def axis(self) -> str:
        """`seen`, or `number` where no checkpoint recorded the examples it has seen."""
        points = (node.point for run in self.runs for node in run.nodes)
        return SEEN if any(curves.place(point) is not None for point in points) else NUMBER

    def x(self, point: Point) -> int | None:
        """Return where a checkpoint is on the axis; None: nowhere."""
        return curves.place(point) if self.axis == SEEN else point.number

    @property
    def titles(self) -> list[str]:
        """One line for each run."""
        return [
            f"{label}  {self._title(run)}" if label else self._title(run)
            for label, run in zip(self.labels, self.runs, strict=True)
        ]

    def _title(self, run: Run) -> str:
        stored = sum(node.point.stored for node in run.nodes)
        parts = [f"{stored:,} {'checkpoint' if stored == 1 else 'checkpoints'}"]
        if deleted := len(run.nodes) - stored:
            parts.append(f"{deleted:,} deleted")
        if branches := len(curves.lines(run)) - 1:
            parts.append(f"{branches:,} {'branch' if branches == 1 else 'branches'}")
        if again := len(self.restarts(run)):
            parts.append(f"{again:,} {'restart' if again == 1 else 'restarts'}")
        seen = [place for node in run.nodes if (place := curves.place(node.point)) is not None]
        if seen:
            parts.append(f"{max(seen):,} examples")
            if without := len(run.nodes) - len(seen):
                parts.append(f"{without:,} not placed: they did not record `seen`")
        return f"{run.name}: {', '.join(parts)}"

    def lines(self, run: Run) -> list[Line]:
        """Return its lines with those checkpoints that are on the axis."""
        found = []
        for line in curves.lines(run):
            nodes = tuple(node for node in line.nodes if self.x(node.point) is not None)
            if nodes:
                forked = line.forked and nodes[0] is line.nodes[0]
                found.append(Line(nodes, line.main, forked))
        return found

    def extremes(self, run: Run) -> list[Extreme]:
        """Return its best points that are on the axis."""
        found = curves.extremes(run, self.modes)
        return [one for one in found if self.x(one.point) is not None]

    def restarts(self, run: Run) -> list[int]:
        """Return where a new process went on with a run as it was: too many to be numbered."""
        if self.axis != SEEN:
            return []
        return [event.seen for event in curves.events(run) if event.kind == curves.RESTART]

    def marks(self) -> list[Mark]:
        """Return what is numbered in the picture, in order of the axis."""
        if self.axis != SEEN:
            return []
        found = [
            Mark(event.seen, f"{label}: {event.text}" if label else event.text)
            for label, run in zip(self.labels, self.runs, strict=True)
            for event in curves.events(run)
            if event.kind != curves.RESTART
        ]
        parted = [
            row
            for row in self.partings
            if row.kind == METRIC and row.first_different is not None
        ]
        if parted:
            first = min(parted, key=lambda row: row.first_different or 0)
            names = " and ".join(self.labels)
            found.append(
                Mark(first.first_different or 0, f"{names} part: {first.name} differs")
            )
        return sorted(found, key=lambda mark: mark.x)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the drawn metrics of the main lines as rows, one for each place."""
        names = [name for panel in self.panels for name in panel]
        titles = ["seen" if self.axis == SEEN else "number"]
        rows: dict[int, dict[int, str]] = {}
        column = 1
        for label, run in zip(self.labels, self.runs, strict=True):
            titles.append(f"checkpoint {label}".strip())
            measured = {name for node in run.nodes for name in node.point.metrics}
            own = [name for name in names if name in measured]
            titles += [f"{name} {label}".strip() for name in own]
            for x, point in self._placed(run):
                row = rows.setdefault(x, {})
                row[column] = str(point.number) + ("" if point.stored else " (deleted)")
                for n, name in enumerate(own, column + 1):
                    row[n] = _shown(point.metrics.get(name))
            column += 1 + len(own)
        filled = [
            [f"{x:,}", *(cells.get(n, "") for n in range(1, column))]
            for x, cells in sorted(rows.items())
        ]
        return titles, filled

    def _placed(self, run: Run) -> Iterator[tuple[int, Point]]:
        for node in curves.main_line(run):
            x = self.x(node.point)
            if x is not None:
                yield x, node.point


def _shown(value: Number | None) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
