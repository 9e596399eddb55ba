"""What the tests build and train: small, with every kind of state, the same bits each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

import ckptfmt_keras

SIZE = 48


def data(features: int = 8) -> tuple[Any, Any]:
    """Return examples and labels, always the same."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(SIZE, features)).astype(np.float32), rng.integers(0, 3, SIZE)


def net(**names: str) -> Any:
    """Return a compiled network with batch norm and dropout."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(6, activation="relu", name=names.get("first")),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, name=names.get("last")),
        ]
    )
    return compiled(model)


def compiled(model: Any, **options: Any) -> Any:
    """Compile a model for the labels of `data`."""
    given = {"optimizer": "adam", "metrics": ["accuracy"], **options}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, **given)
    return model


def trained(model: Any, steps: int = 3) -> Any:
    """Train a model a little."""
    x, y = data()
    for _ in range(steps):
        model.train_on_batch(x, y)
    return model


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and bits of each leaf of a state tree."""
    if isinstance(tree, Mapping):
        for key, child in tree.items():
            yield from flat(child, f"{path}/{key}")
    elif hasattr(tree, "tobytes"):
        yield path, (str(tree.dtype), tuple(tree.shape), np.asarray(tree).tobytes())
    else:
        yield path, tree


def bits(model: Any, *sections: str) -> dict[str, Any]:
    """Return a copy of the state of a model, to compare bit for bit."""
    state = ckptfmt_keras.capture(model)
    wanted = sections or ("model", "optimizer", "rng")
    return {path: leaf for name in wanted for path, leaf in flat(state.get(name, {}), name)}


def outputs(model: Any) -> bytes:
    """Return what a model predicts, as bytes."""
    predicted: bytes = np.asarray(model.predict(data()[0], verbose=0)).tobytes()
    return predicted
