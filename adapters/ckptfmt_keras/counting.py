"""How many examples a step had: what the loss of the epoch was averaged over, counted exactly.

Keras tells callbacks neither the size of a batch nor a step that never repeats; `batch`, the
optimizer's iterations and the data source are each wrong in some case. The count of the loss
metric is right with partial batches, several steps per execution and sample weights. It is read
when somebody asks, and before it is lost: to read it at each step would cost more than all the
rest. Where we made the batches ourselves their sizes are known, and it is only a check.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ckptfmt.errors import StateError, UsageError
from ckptfmt_keras import variables

_log: Final = logging.getLogger("ckptfmt")

EXACT: Final = 2**24  # float32 counts no further in steps of one
_RESET: Final = "reset_metrics"


class Counter:
    """The examples of each step of one `fit`, by the loss metric's count.

    Args:
        batch_size: Examples of a batch where the metric cannot tell: a `train_step` of the
            caller's that does not update it, or epochs of more than 16.7 million examples.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        self._batch_size = batch_size
        self._found: tuple[int, Any] | None = None
        self._why = ""
        self._before = self._begun = 0
        self.known = 0  # examples since `begin`, from whoever made the batches
        self.lost = True  # the metric begins anew: `begin` comes before the next step

    def begin(self, model: Any) -> None:
        """Begin an epoch, or go on within one whose metrics were restored."""
        self._found = _found(model)
        self._why = "the model has no metric that counts its loss"
        self._before = self._begun = 0 if self._found is None else int(self._read(model))
        self.known = 0
        self.lost = False

    def step(self, model: Any, steps: int) -> int:
        """Return the examples since the last call.

        Args:
            model: With the state of JAX not synced: that would cost a millisecond.
            steps: Batches since then, where only their number helps.

        Raises:
            UsageError: they cannot be counted.
        """
        if self._found is None:
            return self._by_size(steps)
        if self.lost:
            return 0  # they were counted before it was
        now = int(self._read(model))
        if now >= EXACT:
            self._found, self._why = None, "an epoch of more examples than a float32 counts"
            return self._by_size(steps)
        examples, self._before = now - self._before, now
        if examples <= 0 and steps:
            self._why = "the step did not update the metric of the loss"
            return self._by_size(steps)
        return examples

    def check(self, model: Any) -> None:
        """Compare what was known with what the loss was averaged over; the log has it."""
        if self._found is None or self.lost or not self.known:
            return
        now = int(self._read(model))
        if now < EXACT and now - self._begun != self.known:
            _log.warning(
                "the data gave %d examples in this epoch, and the loss was averaged over %d:"
                " a step trains on other examples than it was given",
                self.known, now - self._begun,
            )  # fmt: skip

    def watch(self, model: Any, before: Callable[[], None]) -> None:
        """Call something before the metrics of a model are reset, until `unwatch`.

        Whoever measures a model resets them, a callback of the caller's within an epoch, too.
        """
        unwatch(model)
        reset = getattr(model, _RESET)

        def told() -> None:
            before()
            self.lost = True
            reset()

        object.__setattr__(model, _RESET, told)  # Keras need not track it

    def _read(self, model: Any) -> Any:
        assert self._found is not None
        index, variable = self._found
        state = getattr(model, "_jax_state", None)
        if state and not getattr(model, "_jax_state_synced", True):
            return np.asarray(state["metrics_variables"][index])
        try:
            return variables.array_of(variable)
        except StateError:
            model.jax_state_sync()
            return variables.array_of(variable)

    def _by_size(self, steps: int) -> int:
        if steps and self._batch_size is None:
            raise UsageError(f"the examples cannot be counted, {self._why}: pass batch_size=")
        return steps * (self._batch_size or 0)


def unwatch(model: Any) -> None:
    """Leave the metrics of a model to itself again."""
    vars(model).pop(_RESET, None)


def _found(model: Any) -> tuple[int, Any] | None:
    """Return the loss metric's count and its place among the variables of all metrics.

    A metric of the caller's that is called so may count steps: only Keras' own is trusted.
    """
    first = next(iter(model.metrics), None)
    count = getattr(first, "count", None)
    own = getattr(model, "_loss_tracker", first)
    if first is None or first.name != "loss" or count is None or first is not own:
        return None
    places = [n for n, one in enumerate(model.metrics_variables) if one is count]
    return (places[0], count) if places else None
