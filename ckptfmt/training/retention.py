"""Which checkpoints stay. Pure: a history and rules in, numbers out; nothing is deleted here.

The rules are a union: a checkpoint stays if any of them wants it. Every rule is stable, so
that what it kept yesterday it keeps today although the rest of yesterday's history is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ckptfmt.errors import UsageError
from ckptfmt.training.selection import Point, check_mode, ranked

MICROSECONDS_PER_HOUR: Final = 3_600_000_000

Best = tuple[str, str, int]  # (metric, "min" or "max", how many)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Rules of retention; build it with `keep`, which also accepts shorter spellings.

    Raises:
        UsageError: a number is out of range, a mode unknown, or there is no rule at all.
    """

    last: int | None = None  # the newest so many, >= 1
    best: tuple[Best, ...] = ()  # so many of each metric, >= 1
    every_examples: int | None = None  # the first of each window of so many examples, >= 1
    every_hours: float | None = None  # the first of each window of so many hours, > 0
    slim: tuple[str, ...] = ()  # sections that older ones lose; no rule by itself

    def __post_init__(self) -> None:
        if self.last is not None:
            _check_count("last", self.last)
        if self.every_examples is not None:
            _check_count("every_examples", self.every_examples)
        if self.every_hours is not None:
            _check_hours(self.every_hours)
        for rule in self.best:
            _check_best(rule)
        if not all(isinstance(name, str) and name for name in self.slim):
            raise UsageError(f"slim must be names of sections, got {self.slim!r}")
        if not self.best and self.last is self.every_examples is self.every_hours is None:
            raise UsageError(
                "keep() needs at least one rule; to keep everything, pass keep=None"
            )


def keep(
    *,
    last: int | None = None,
    best: Best | Sequence[Best] | None = None,
    every_examples: int | None = None,
    every_hours: float | None = None,
    slim: str | Iterable[str] = (),
) -> Keep:
    """Return the rules of retention for `ckptfmt.open(keep=...)`.

    Rules count over the whole store and are a union. Whatever they say, the newest checkpoint
    of each lineage stays, and so do the pinned ones.

    Args:
        last: The newest so many, by number.
        best: `(metric, mode, n)`, or a list of such: the n best of each metric.
        every_examples: For ever, the first checkpoint of each window of so many examples.
            One that did not record the examples it has seen is not kept by this rule.
        every_hours: For ever, the first checkpoint of each window of so many hours, by the
            time recorded in it. Windows are aligned to the epoch, not to the run.
        slim: Sections, such as `optimizer`, that older checkpoints lose: of those that stay,
            all but the newest `last` (1 without that rule), the newest of each lineage and
            the pinned ones. A slimmed checkpoint still has its weights, but no run can go on
            from it.

    Raises:
        UsageError: a number is out of range, a mode unknown, or there is no rule at all.
    """
    rules: tuple[Best, ...]
    if best is None:
        rules = ()
    elif isinstance(best, str) or not isinstance(best, Sequence):
        raise UsageError(f"best must be (metric, mode, n) or a list of such, got {best!r}")
    elif best and isinstance(best[0], str):
        rules = (tuple(best),)  # type: ignore[assignment]  # checked by Keep
    else:
        rules = tuple(tuple(rule) if isinstance(rule, list) else rule for rule in best)  # type: ignore[misc]
    return Keep(
        last=last,
        best=rules,
        every_examples=every_examples,
        every_hours=every_hours,
        slim=(slim,) if isinstance(slim, str) else tuple(slim),
    )


def survivors(points: Iterable[Point], rules: Keep, pinned: Iterable[int] = ()) -> set[int]:
    """Return the numbers that stay: those of any rule, the pinned ones, and the newest.

    Never empty unless `points` is; `tips` tells what stays besides. Pinned numbers that are not
    in `points` are left out. As long as not a single point names the metric of a `best` rule,
    all of them stay: it is not measured yet, or misspelt, and neither is a reason to delete.
    """
    history = sorted(points, key=lambda point: point.number)
    if not history:
        return set()
    numbers = {point.number for point in history}
    if any(all(metric not in p.metrics for p in history) for metric, _, _ in rules.best):
        return numbers
    staying = {history[-1].number}
    staying |= numbers.intersection(pinned)
    staying.update(point.number for point in _wanted(history, rules))
    return staying


def tips(points: Iterable[Point], ancestors: Callable[[int], Iterable[str]]) -> set[int]:
    """Return the numbers that no other point continues: the newest of each lineage.

    Args:
        ancestors: From a number to the ids of all it went through, deleted ones included;
            asked for the newest of each lineage only.
    """
    found: set[int] = set()
    passed: set[str] = set()
    # A child has a higher number than its parent, and knows all that its parent went through.
    for point in sorted(points, key=lambda point: point.number, reverse=True):
        if point.id not in passed:
            found.add(point.number)
            passed.update(ancestors(point.number))
    return found


def lighter(points: Iterable[Point], rules: Keep, whole: Collection[int]) -> set[int]:
    """Return what loses the sections `rules.slim`: all but the newest and `whole`."""
    numbers = sorted(point.number for point in points)
    return set(numbers[: -(rules.last or 1)]) - set(whole) if rules.slim else set()


def _wanted(history: list[Point], rules: Keep) -> Iterator[Point]:
    """Yield what the rules want of a history in ascending order; repeats are possible."""
    if rules.last is not None:
        yield from history[-rules.last :]
    for metric, mode, count in rules.best:
        yield from ranked(history, metric, mode)[:count]
    if rules.every_examples is not None:
        span = rules.every_examples
        yield from _first_of_each((p.seen // span, p) for p in history if p.seen is not None)
    if rules.every_hours is not None:
        span = max(1, round(rules.every_hours * MICROSECONDS_PER_HOUR))
        yield from _first_of_each((point.time // span, point) for point in history)


def _first_of_each(windows: Iterable[tuple[int, Point]]) -> Iterator[Point]:
    # First by number, not by position in the window: a later commit, after a rollback or
    # with a clock set back, must not displace what was promised to stay for ever.
    taken: set[int] = set()
    for window, point in windows:
        if window not in taken:
            taken.add(window)
            yield point


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be an integer >= 1, got {value!r}")


def _check_hours(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"every_hours must be a number > 0, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"every_hours must be finite and > 0, got {value!r}")


def _check_best(rule: object) -> None:
    match rule:
        case (str(metric), str(mode), count) if metric:
            check_mode(mode)
            _check_count(f"best count of {metric!r}", count)
        case _:
            raise UsageError(f"best must be (metric, mode, n) or a list of such, got {rule!r}")
