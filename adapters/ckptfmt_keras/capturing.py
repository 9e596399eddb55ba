"""The whole of a model as one state tree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ckptfmt_keras import architecture, assets, generators, optimizers, variables
from ckptfmt_keras import callbacks as states

RNG: Final = "rng"
ASSETS: Final = "assets"


def capture(
    model: Any, *, callbacks: Iterable[Any] = (), rng: bool = True, optimizer: bool = True
) -> dict[str, Any]:
    """Return the state of a model and its training as a state tree for `Store.save`.

    On the CPU arrays share the memory of the variables where the backend allows it: they may
    change when training goes on. `save_async` makes its own copy before it returns.

    Args:
        model: A built `keras.Model`.
        callbacks: Those whose state belongs to the run; see `ckptfmt_keras.callbacks`.
        rng: Whether to include every random generator.
        optimizer: Whether to include the optimizer and the metrics of a compiled model.

    Returns:
        `model` (ordinal and name of each variable), and where there are any: `optimizer`,
        `metrics`, `states` (of stateful RNNs), `callbacks`, `assets` (files of preprocessing
        layers), `rng`.

    Raises:
        UsageError: the model is not built.
    """
    entries = variables.weights(model)
    state: dict[str, Any] = {
        "model": {entry.key: variables.array_of(entry.variable) for entry in entries}
    }
    if optimizer and getattr(model, "optimizer", None) is not None:
        state["optimizer"] = _optimizer(model, entries)
        state["metrics"] = metrics(model)
    carried = architecture.carried(model)
    if carried:
        state["states"] = {key: variables.array_of(one) for key, one in carried.items()}
    files = assets.capture(model)
    if files:
        state[ASSETS] = files
    given = list(callbacks)
    if given:
        state["callbacks"] = states.capture(given)
    if rng:
        state[RNG] = generators.capture(model)
    return state


def metrics(model: Any) -> dict[str, Any]:
    """Return the accumulated metrics of the epoch that runs."""
    return {key: variables.array_of(v) for key, v in metric_variables(model).items()}


def metric_variables(model: Any) -> dict[str, Any]:
    """Return the variables of a compiled model's metrics, by ordinal and name."""
    return {
        f"{number:04d}.{variables.local_name(variable)}": variable
        for number, variable in enumerate(model.metrics_variables)
    }


def _optimizer(model: Any, entries: list[variables.Entry]) -> dict[str, Any]:
    optimizers.build(model)
    tree: dict[str, Any] = {}
    for path, variable in optimizers.located(model.optimizer, entries).items():
        *above, last = path.split("/")
        place = tree
        for name in above:
            place = place.setdefault(name, {})
        whole = optimizers.is_integer(variable)
        place[last] = variables.integers(variable) if whole else variables.array_of(variable)
    return tree
