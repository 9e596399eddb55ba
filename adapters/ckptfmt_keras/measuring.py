"""The metrics of a save: what Keras has, and what is measured on the weights that are saved."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ckptfmt_keras import capturing, generators
from ckptfmt_keras.settings import AT_SAVE, Settings


def metrics(
    model: Any,
    settings: Settings,
    logs: Mapping[str, Any],
    validation: Any,
    *,
    own: bool,
    epoch_ended: bool,
) -> dict[str, float]:
    """Return the metrics to save; measuring leaves no trace in the training.

    Args:
        validation: The data to measure on.
        own: Whether it is other data than that of the validation of the `fit`.

    Raises:
        UsageError: the metric by which to keep the best is not among them.
    """
    evaluate = settings.evaluate
    if evaluate == AT_SAVE:
        measured = epoch_ended and any(name.startswith("val_") for name in logs)
        again = own or not measured
        evaluate = functools.partial(_evaluated, model, validation) if again else None
    if evaluate is None:
        return settings.metrics(logs, epoch_ended=epoch_ended)
    drawn = generators.capture_host()
    running = {key: np.array(value) for key, value in capturing.metrics(model).items()}
    stop = model.stop_training
    found = settings.metrics(logs, evaluate(), epoch_ended=epoch_ended)
    here = capturing.metric_variables(model)
    for key, value in running.items():
        here[key].assign(value)
    model.stop_training = stop
    generators.restore_host(drawn)
    return found


def _evaluated(model: Any, data: Any) -> dict[str, float]:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    found = model.evaluate(x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
    return {f"val_{name}": float(value) for name, value in found.items()}
