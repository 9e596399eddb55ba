"""Early stopping: does a history say that going on gains nothing? Pure, and never forced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ckptfmt.errors import FormatError, UsageError
from ckptfmt.training.exact import whole
from ckptfmt.training.selection import Number, Point, check_mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What early stopping says of a history, and why."""

    stop: bool
    best: Point | None  # the last one that was an improvement; None before any value
    waited: int  # examples since then, at the newest value
    reason: str  # for people


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """A rule: stop when a metric has not improved for so many examples.

    It has no state of its own: the history is its state. After a restart, a rollback or a
    change of the rule the verdict is that of an uninterrupted run with this rule.

    Raises:
        UsageError: a value is out of range.
    """

    monitor: str  # name of the metric
    mode: str = "min"  # or "max"
    min_delta: float = 0.0  # a smaller change is no improvement; >= 0
    patience: int  # examples without an improvement after which to stop, >= 0

    def __post_init__(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise UsageError(f"monitor must be the name of a metric, got {self.monitor!r}")
        check_mode(self.mode)
        whole("patience", self.patience)
        delta: object = self.min_delta
        if isinstance(delta, bool) or not isinstance(delta, int | float):
            raise UsageError(f"min_delta must be a number >= 0, got {delta!r}")
        if not (math.isfinite(delta) and delta >= 0):
            raise UsageError(f"min_delta must be finite and >= 0, got {delta!r}")

    def judge(self, history: Iterable[Point]) -> Verdict:
        """Return whether to stop; ask it after each validation.

        Args:
            history: One lineage, oldest first, as `Store.history` returns it. Points without
                the metric or without `seen` say nothing. NaN is a value that is no
                improvement.
        """
        best: Point | None = None
        mark: Number = 0
        newest: int | None = None
        for point in history:
            value = point.metrics.get(self.monitor)
            if value is None or point.seen is None:
                continue
            newest = point.seen
            if value == value and (best is None or self._improves(value, mark)):
                best, mark = point, value
        if newest is None:
            return Verdict(stop=False, best=None, waited=0, reason=f"no {self.monitor} yet")
        if best is None or best.seen is None:
            return Verdict(
                stop=False, best=None, waited=0, reason=f"{self.monitor} was always NaN"
            )
        waited = max(0, newest - best.seen)
        return Verdict(
            stop=waited > 0 and waited >= self.patience,
            best=best,
            waited=waited,
            reason=f"{self.monitor} was best at {best.seen:,} examples ({mark:g}), {waited:,}"
            f" ago; patience is {self.patience:,}",
        )

    def _improves(self, value: Number, mark: Number) -> bool:
        if self.mode == "min":
            return value < mark - self.min_delta if self.min_delta else value < mark
        return value > mark + self.min_delta if self.min_delta else value > mark

    def state(self) -> dict[str, Any]:
        """Return the rule as plain values, for the section `callbacks` of a checkpoint."""
        return asdict(self)

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> EarlyStopping:
        """Return the rule that `state` described.

        Raises:
            FormatError: it is none.
        """
        try:
            return cls(**state)
        except (TypeError, UsageError) as error:
            raise FormatError("this is no early stopping", cause=str(error)) from error
