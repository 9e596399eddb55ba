"""Keras' `.weights.h5`: the arrays as variables of a model that is there."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import keras
import numpy as np

from tests.bench.contract import FIRST, Saver, sync
from tests.bench.workloads import Arrays

NAME = "Keras .weights.h5"
READS = "keras_weights"
DISTRIBUTIONS = ("keras", "jax", "h5py")
WITHOUT = ("W4",)  # its variables here are float32


@keras.saving.register_keras_serializable("ckptfmt_bench")
class Variables(keras.layers.Layer):  # type: ignore[misc]
    """Nothing but variables, of these shapes by path."""

    def __init__(self, shapes: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.shapes = {path: tuple(shape) for path, shape in shapes.items()}
        for number, shape in enumerate(self.shapes.values()):
            self.add_weight(shape=shape, name=f"array_{number}", initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "shapes": self.shapes}


def prepare(arrays: Arrays) -> Any:
    layer = Variables({path: array.shape for path, array in arrays.items()})
    model = keras.Sequential([keras.Input((1,)), layer])
    for variable, array in zip(layer.weights, arrays.values(), strict=True):
        variable.assign(array)
    return model


def values(state: Any) -> Mapping[str, Any]:
    (layer,) = state.layers
    return {
        path: np.asarray(variable.value)
        for path, variable in zip(layer.shapes, layer.weights, strict=True)
    }


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        path = folder / f"{seen:010d}.weights.h5"
        state.save_weights(path)
        if durable:
            sync(path)

    return save


def load_into(folder: pathlib.Path, state: Any) -> None:
    state.load_weights(folder / f"{FIRST:010d}.weights.h5")
