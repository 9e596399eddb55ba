"""How many examples a step had: what the loss of the epoch was averaged over, counted exactly.

Keras tells callbacks neither the size of a batch nor a step that never repeats; `batch`, the
optimizer's iterations and the data source are each wrong in some case. The count of the loss
metric is right with partial batches, several steps per execution and sample weights.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ckptfmt.errors import UsageError
from ckptfmt_keras import variables

EXACT: Final = 2**24  # float32 counts no further in steps of one


class Counter:
    """The examples of each step of one `fit`, by the loss metric's count.

    Args:
        batch_size: Examples of a batch where the metric cannot tell: a `train_step` of the
            caller's that does not update it, or epochs of more than 16.7 million examples.
    """

    def __init__(self, batch_size: int | None = None) -> None:
        self._batch_size = batch_size
        self._index: int | None = None
        self._before = 0

    def begin(self, model: Any) -> None:
        """Begin an epoch, or go on within one whose metrics were restored."""
        self._index = _index(model)
        self._before = 0 if self._index is None else int(self._read(model))

    def step(self, model: Any, steps: int) -> int:
        """Return the examples since the last call.

        Args:
            model: With the state of JAX not synced: that would cost a millisecond.
            steps: Batches since then, where only their number helps.

        Raises:
            UsageError: they cannot be counted.
        """
        if self._index is None:
            return self._by_size(steps, "the model has no metric that counts its loss")
        now = int(self._read(model))
        if now >= EXACT:
            return self._by_size(steps, "an epoch of more examples than a float32 counts")
        examples, self._before = now - self._before, now
        if examples <= 0:
            return self._by_size(steps, "the step did not update the metric of the loss")
        return examples

    def _read(self, model: Any) -> Any:
        state = getattr(model, "_jax_state", None)
        if state and not getattr(model, "_jax_state_synced", True):
            return np.asarray(state["metrics_variables"][self._index])
        variable = model.metrics_variables[self._index]
        if variable.value is None and hasattr(model, "jax_state_sync"):
            model.jax_state_sync()
        return variables.array_of(variable)

    def _by_size(self, steps: int, reason: str) -> int:
        if self._batch_size is None:
            raise UsageError(f"the examples cannot be counted, {reason}: pass batch_size=")
        return steps * self._batch_size


def _index(model: Any) -> int | None:
    """Return the place of the loss metric's count among the variables of all metrics."""
    first = next(iter(model.metrics), None)
    count = getattr(first, "count", None)
    if first is None or first.name != "loss" or count is None:
        return None
    places = [n for n, one in enumerate(model.metrics_variables) if one is count]
    return places[0] if places else None
