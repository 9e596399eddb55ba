"""Keras' `.keras`: a zip with the model's configuration and its variables."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tests.bench.contenders import keras_weights
from tests.bench.contenders.keras_weights import keras
from tests.bench.contenders.keras_weights import prepare as prepare
from tests.bench.contract import FIRST, Saver, sync

NAME = "Keras .keras"
READS = "keras_model"
DISTRIBUTIONS = keras_weights.DISTRIBUTIONS
WITHOUT = keras_weights.WITHOUT


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        path = folder / f"{seen:010d}.keras"
        state.save(path)
        if durable:
            sync(path)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    model = keras.saving.load_model(folder / f"{FIRST:010d}.keras", compile=False)
    return keras_weights.values(model)
