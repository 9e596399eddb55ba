"""Which way a run goes: well-behaved, rising, rose and fell again, or undecided.

The course of the validation metric is cut where it turns back by more than its noise (a
"zigzag", as charts of prices are read). What its last leg does decides; that is described,
with the numbers, and nothing is stopped. A rise in the middle is no reason to stop: rare cases
come late, and with large models a second descent may follow ("double descent", Nakkiran et al.,
2019, arXiv:1912.02292).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckptfmt.training.selection import Number, Point, check_mode

WELL_BEHAVED: Final = "well-behaved"
RISING: Final = "validation rising"
ROSE_AND_FELL: Final = "rose and fell again"
UNDECIDED: Final = "undecided"

LEAST_VALUES: Final = 4  # fewer say nothing
LEAST_RISING: Final = 2  # values beyond the noise: one is an accident
_NOISE_FACTOR: Final = 3.0
_SHARE_OF_RANGE: Final = 0.01  # a turn below this share of all that happened is none


class Value(NamedTuple):
    """One measured value; lower is better."""

    seen: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Where a run is."""

    kind: str  # WELL_BEHAVED, RISING, ROSE_AND_FELL or UNDECIDED
    since: int | None  # examples at which the last leg began
    best: Point | None
    noise: float  # turns smaller than this do not count
    evidence: tuple[str, ...]  # sentences with the numbers


def describe(
    history: Iterable[Point],
    *,
    validation: str = "val_loss",
    training: str | None = None,
    mode: str = "min",
) -> Description:
    """Describe the course of a run. It never says what to do.

    Args:
        history: One lineage, oldest first, as `Store.history` returns it. Points without the
            metric or without `seen` are passed over.
        validation: The metric that is watched.
        training: The same on the training data; it is evidence for or against overfitting.
        mode: Whether `min` or `max` is better, for both.

    Raises:
        UsageError: mode is neither `min` nor `max`.
    """
    check_mode(mode)
    points = [p for p in history if p.seen is not None]
    measured = [(p, p.metrics.get(validation)) for p in points]
    good = [(p, v) for p, v in measured if v is not None and v == v]
    values = [_cost(p, v, mode) for p, v in good]
    best = min(good, key=lambda pair: _cost(pair[0], pair[1], mode).cost)[0] if good else None
    broken = _broken_since(measured)
    if broken is not None:
        text = f"{validation} is NaN since {broken:,} examples"
        return _described(UNDECIDED, broken, best, 0.0, [text])
    if len(values) < LEAST_VALUES:
        text = f"{len(values)} values of {validation}, at least {LEAST_VALUES} are needed"
        return _described(UNDECIDED, None, best, 0.0, [text])
    noise = _noise([value.cost for value in values])
    turns = _turns(values, noise)
    kind, evidence = _judge(values, turns, noise, validation, mode)
    if training is not None:
        since = turns[-2].seen if len(turns) > 1 else values[0].seen
        evidence.append(_training(points, training, mode, since, kind))
    return _described(kind, turns[-2].seen if len(turns) > 1 else None, best, noise, evidence)


def _described(
    kind: str, since: int | None, best: Point | None, noise: float, evidence: Sequence[str]
) -> Description:
    return Description(kind=kind, since=since, best=best, noise=noise, evidence=tuple(evidence))


def _cost(point: Point, value: Number, mode: str) -> Value:
    return Value(point.seen or 0, float(value) if mode == "min" else -float(value))


def _broken_since(measured: Sequence[tuple[Point, Number | None]]) -> int | None:
    """Return where the NaN at the end of the values begin."""
    values = [(p.seen, v) for p, v in measured if v is not None]
    tail = list(itertools.takewhile(lambda pair: pair[1] != pair[1], reversed(values)))
    return tail[-1][0] if tail else None


def _noise(costs: Sequence[float]) -> float:
    """Return what a turn must exceed: three times the usual distance from the neighbours.

    The distance of a value from the middle of it and its neighbours is 0 on any monotonic
    course, however steep; its median is not moved by a few outliers.
    """
    finite = [cost for cost in costs if math.isfinite(cost)]
    if len(finite) < LEAST_VALUES:
        return 0.0
    threes = zip(finite, finite[1:], finite[2:], strict=False)
    off = [abs(b - statistics.median((a, b, c))) for a, b, c in threes]
    span = max(finite) - min(finite)
    return max(_NOISE_FACTOR * statistics.median(off), _SHARE_OF_RANGE * span)


def _turns(values: Sequence[Value], noise: float) -> list[Value]:
    """Return the first value, those where the course turned by more than the noise, the last
    extreme; consecutive ones go up and down by turns."""
    turns = [values[0]]
    low = high = values[0]
    direction = 0
    for value in values[1:]:
        low = min(low, value, key=lambda v: v.cost)
        high = max(high, value, key=lambda v: v.cost)
        if direction >= 0 and value.cost < high.cost - noise:  # it turned down
            if direction:
                turns.append(high)
            direction, low, high = -1, value, value
        elif direction <= 0 and value.cost > low.cost + noise:
            if direction:
                turns.append(low)
            direction, low, high = 1, value, value
    if direction:
        turns.append(low if direction < 0 else high)
    return turns


def _judge(
    values: Sequence[Value], turns: Sequence[Value], noise: float, name: str, mode: str
) -> tuple[str, list[str]]:
    sign = 1.0 if mode == "min" else -1.0
    worse = "rose" if mode == "min" else "fell"
    better = "fell" if mode == "min" else "rose"

    def leg(a: Value, b: Value) -> str:
        word = worse if b.cost > a.cost else better
        return (
            f"{name} {word} from {sign * a.cost:.6g} at {a.seen:,} examples"
            f" to {sign * b.cost:.6g} at {b.seen:,}"
        )

    legs = list(itertools.pairwise(turns))
    evidence = [leg(a, b) for a, b in legs[-3:]]
    evidence.append(f"turns below {noise:.3g} count as noise")
    if not legs:
        return UNDECIDED, [f"{name} moved by no more than its noise", *evidence]
    start, end = legs[-1]
    if end.cost > start.cost:
        above = sum(v.seen > start.seen and v.cost > start.cost + noise for v in values)
        if above < LEAST_RISING:
            evidence.append("one value alone is above: the next one will tell")
            return UNDECIDED, evidence
        return RISING, evidence
    rises = any(b.cost > a.cost for a, b in legs)
    return (ROSE_AND_FELL if rises else WELL_BEHAVED), evidence


def _training(points: Sequence[Point], name: str, mode: str, since: int, kind: str) -> str:
    after = [
        _cost(p, v, mode)
        for p in points
        if (v := p.metrics.get(name)) is not None and v == v and (p.seen or 0) >= since
    ]
    if len(after) < LEAST_RISING:
        return f"{name} has too few values since {since:,} examples to compare"
    sign = 1.0 if mode == "min" else -1.0
    first, last = sign * after[0].cost, sign * after[-1].cost
    improved = after[-1].cost < after[0].cost
    meaning = ""
    if kind == RISING:
        meaning = ": overfitting" if improved else ": not overfitting, the training itself"
    return f"{name} went from {first:.6g} to {last:.6g} since {since:,} examples{meaning}"
