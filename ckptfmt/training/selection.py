"""Choose a checkpoint by what is known of it: by a metric, or by examples seen.

Pure: a history of `Point`s in, one or more of them out. Metrics live in manifests and
annotations, so a query gives the same answer after a restart or a copy of the folder.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.training.exact import whole

MODES: Final = ("min", "max")
MAX_NAMES: Final = 20  # metric names listed in a message

Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One committed checkpoint on the axis of a run."""

    number: int  # ascending order of commits
    id: str  # checkpoint id
    seen: int | None  # examples in the lineage of the weights; None if not recorded
    time: int  # microseconds since the epoch by the writer's clock; informational
    metrics: Mapping[str, Number | None]  # None: asked for, not measured
    process: str | None = None  # id of the first checkpoint that its process saved, if known
    stored: bool = True  # False: deleted since; what is known of it lives in its descendants


def best(points: Iterable[Point], metric: str, mode: str = "min") -> Point:
    """Return the point whose metric is lowest (`min`) or highest (`max`).

    A value that is NaN, None or absent is never best. Of equal values the one committed
    earlier wins: training longer gained nothing.

    Raises:
        UsageError: `mode` is neither `min` nor `max`.
        NotFoundError: no point has a comparable value; the message names known metrics.
    """
    history = list(points)
    ordered = ranked(history, metric, mode)
    if not ordered:
        raise _no_metric(history, metric)
    return ordered[0]


def ranked(points: Iterable[Point], metric: str, mode: str = "min") -> list[Point]:
    """Return the points that have a comparable value of `metric`, best first.

    Ties are ordered by number, ascending. Empty when nobody has the metric.

    Raises:
        UsageError: `mode` is neither `min` nor `max`.
    """
    check_mode(mode)
    valued: list[tuple[Number, Point]] = []
    for point in points:
        value = point.metrics.get(metric)
        if value is not None and value == value:  # only NaN differs from itself
            valued.append((value, point))
    valued.sort(key=lambda pair: pair[1].number)
    # Two stable sorts: negating the value instead would round integers beyond 2**53.
    valued.sort(key=operator.itemgetter(0), reverse=mode == "max")
    return [point for _, point in valued]


def at(points: Iterable[Point], *, examples: int) -> Point:
    """Return the newest point that has seen at most `examples` examples.

    Newest on the axis of examples: the largest `seen` wins, and of equal ones, such as
    after a rollback, the one committed last. Points that never recorded `seen` are passed
    over.

    Raises:
        UsageError: `examples` is not an integer, or negative.
        NotFoundError: every point has seen more, or none recorded `seen`.
    """
    return all_at(points, examples=examples)[-1]


def all_at(points: Iterable[Point], *, examples: int) -> list[Point]:
    """Return every point that `at` chooses from: those of equal `seen`, ascending by number.

    Raises:
        UsageError, NotFoundError: as in `at`.
    """
    limit = whole("examples", examples)
    known = [(point.seen, point) for point in points if point.seen is not None]
    largest = max((seen for seen, _ in known if seen <= limit), default=None)
    if largest is not None:
        equal = (point for seen, point in known if seen == largest)
        return sorted(equal, key=lambda point: point.number)
    if known:
        first = min(seen for seen, _ in known)
        raise NotFoundError(
            f"no checkpoint has seen at most {limit} examples, the earliest has seen {first}",
            examples=limit,
        )
    raise NotFoundError(
        "no checkpoint recorded the examples it has seen: pass counters={'seen': ...} to save",
        examples=limit,
    )


def check_mode(mode: str) -> None:
    """Raise unless `mode` says in which direction a metric improves.

    Raises:
        UsageError: `mode` is neither `min` nor `max`.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be 'min' or 'max', got {mode!r}", mode=mode)


def _no_metric(points: list[Point], metric: str) -> NotFoundError:
    if not points:
        return NotFoundError("there is no checkpoint to choose from", metric=metric)
    names = sorted({name for point in points for name in point.metrics})
    if metric in names:
        return NotFoundError(
            "no checkpoint has a comparable value of this metric, all are NaN, None or absent",
            metric=metric,
        )
    if not names:
        return NotFoundError("no checkpoint has any metric", metric=metric)
    near = difflib.get_close_matches(metric, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(map(repr, names[:MAX_NAMES]))
    more = f", ... and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return NotFoundError(
        f"no checkpoint has this metric; {hint}known: {listed}{more}", metric=metric
    )
