"""Where two runs part, on one axis of examples: is it the new data? Pure.

Compared is only what both have at exactly the same count of examples; nothing is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ckptfmt.errors import UsageError
from ckptfmt.training.curves import FED, Run, main_line, metric_names, place, told
from ckptfmt.training.segment import Segment
from ckptfmt.training.selection import Number, Point

LINEAGE: Final = "lineage"
FEED: Final = "feed"
METRIC: Final = "metric"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """One thing that two runs have in common up to some count of examples."""

    kind: str  # LINEAGE, FEED or METRIC
    name: str  # `checkpoints`, a field of a segment, or a metric
    compared: int  # values that both have; 0: they cannot be compared
    last_equal: int | None  # examples; None: nowhere
    first_different: int | None  # examples; None: never, as far as both went
    a: Any = None  # values there
    b: Any = None


def part(a: Run, b: Run, *, tolerance: float = 0.0) -> list[Parting]:
    """Compare the main lines of two runs: common checkpoints, how they were fed, metrics.

    Args:
        tolerance: Relative difference up to which values of a metric are equal. NaN equals
            NaN.

    Raises:
        UsageError: `tolerance` is negative or not finite.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError("expected a tolerance of at least 0", found=tolerance)
    ours, theirs = _by_seen(a), _by_seen(b)
    common = sorted(ours.keys() & theirs.keys())
    ids = {node.point.id for node in main_line(b)}
    shared = [place(n.point) for n in main_line(a) if n.point.id in ids]
    found = [_lineage(a, b, [seen for seen in shared if seen is not None])]
    found += _fed(a, b, min(max(ours, default=0), max(theirs, default=0)))
    there = set(metric_names([b]))
    for name in metric_names([a]):
        if name in there:
            rows = [(s, ours[s].metrics.get(name), theirs[s].metrics.get(name)) for s in common]
            found.append(_metric(name, rows, tolerance))
    return found


def _by_seen(run: Run) -> dict[int, Point]:
    """Return the points of the main line; of several at one place the last counts."""
    placed = ((place(node.point), node.point) for node in main_line(run))
    return {seen: point for seen, point in placed if seen is not None}


def _lineage(a: Run, b: Run, shared: Sequence[int]) -> Parting:
    last = max(shared, default=None)
    later = [
        seen
        for run in (a, b)
        for seen in _by_seen(run)
        if last is not None and seen > last
    ]  # fmt: skip
    return Parting(
        kind=LINEAGE,
        name="checkpoints",
        compared=len(shared),
        last_equal=last,
        first_different=min(later, default=None),
    )


def _fed(a: Run, b: Run, end: int) -> list[Parting]:
    """Compare how both were fed, up to the count that both have reached."""
    if a.progress is None or b.progress is None:
        return []
    ours, theirs = a.progress.segments, b.progress.segments
    starts = sorted({row.from_seen for row in (*ours, *theirs) if row.from_seen < max(end, 1)})
    found = []
    for name in FED:
        rows = [(s, getattr(_at(ours, s), name), getattr(_at(theirs, s), name)) for s in starts]
        both = [(s, x, y) for s, x, y in rows if x is not None and y is not None]
        first = next(((s, x, y) for s, x, y in both if x != y), None)
        if both:  # what was not declared is neither equal nor different
            at, x, y = (None, None, None) if first is None else first
            found.append(
                Parting(
                    kind=FEED,
                    name=name,
                    compared=len(both),
                    last_equal=(end if at is None else at) or None,
                    first_different=at,
                    a=x,
                    b=y,
                )
            )
    return found


def _at(segments: Sequence[Segment], seen: int) -> Segment:
    """Return how a run was fed at the example after `seen`."""
    return [row for row in segments if row.from_seen <= seen][-1]


def _metric(
    name: str, rows: Sequence[tuple[int, Number | None, Number | None]], tolerance: float
) -> Parting:
    both = [(s, x, y) for s, x, y in rows if x is not None and y is not None]
    first = next((row for row in both if not _equal(row[1], row[2], tolerance)), None)
    before = [s for s, _, _ in both if first is None or s < first[0]]
    return Parting(
        kind=METRIC,
        name=name,
        compared=len(both),
        last_equal=max(before, default=None),
        first_different=None if first is None else first[0],
        a=None if first is None else first[1],
        b=None if first is None else first[2],
    )


def _equal(x: Number, y: Number, tolerance: float) -> bool:
    if x == y or (x != x and y != y):
        return True
    try:
        return math.isclose(x, y, rel_tol=tolerance, abs_tol=0.0) if tolerance else False
    except OverflowError:
        return False


def verdict(partings: Sequence[Parting]) -> list[str]:
    """Return in sentences what is known: where they part, and what parted before that.

    What comes first may be the cause; it is never said to be.
    """
    metrics = [found for found in partings if found.kind == METRIC and found.compared]
    fed = [found for found in partings if found.kind == FEED]
    changed, parted = _first(fed), _first(metrics)
    sentences = [
        f"the same checkpoints up to {found.last_equal:,} examples"
        for found in partings
        if found.kind == LINEAGE and found.last_equal is not None
    ]
    if not fed:
        sentences.append("how they were fed is not recorded in both")
    elif changed is None:
        sentences.append("as far as was declared, both were fed alike")
    else:
        what = f"{FED[changed.name]} {told(changed.a)} / {told(changed.b)}"
        sentences.append(
            f"fed differently from {changed.first_different:,} examples on: {what}"
        )
    if not metrics:
        sentences.append("no metric was measured at the same examples in both")
    elif parted is None:
        last = max(found.last_equal or 0 for found in metrics)
        sentences.append(f"every metric in common is equal up to {last:,} examples")
    else:
        sentences.append(_parted(parted, changed))
    return sentences


def _first(partings: Sequence[Parting]) -> Parting | None:
    known = [found for found in partings if found.first_different is not None]
    return min(known, key=lambda found: found.first_different or 0, default=None)


def _parted(metric: Parting, changed: Parting | None) -> str:
    """Tell where metrics part, and whether that is before or after a change of the data."""
    at = metric.first_different or 0
    last = metric.last_equal
    until = "" if last is None else f", still equal at {last:,}"
    told_at = f"{metric.name} parts first, at {at:,} examples{until}"
    if changed is None:
        return told_at
    # What was declared at `seen` feeds the examples after it.
    if at <= (changed.first_different or 0):
        return f"{told_at}: before they were fed differently, so it is not that"
    return f"{told_at}: after they were fed differently, so it may be that"
