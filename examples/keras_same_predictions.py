"""Train a small CNN in Keras, load it, and have the load proven equal, or explained.

    KERAS_BACKEND=torch python examples/keras_same_predictions.py [FOLDER]

Determinism is set, the environment is recorded with every checkpoint (Keras, its backend,
NumPy, SciPy and all else that is installed), preprocessing travels with it, and the augmenting
layer of the model is on in training only, which is checked. Then the same checkpoint is loaded
five times: cleanly, with another scaler, called as in training, in another precision, and into
code that builds a layer with another epsilon. Needs Keras and any of its backends. The exit
status is 1 if a verdict is not the expected one.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import keras
import numpy as np
from keras import layers

import ckptfmt
import ckptfmt_keras

SCALING = {"mean": 0.5, "std": 0.25}


class Scale:
    """Preprocessing: what was fitted once must be used ever after."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, images: Any) -> Any:
        """Return standardised images."""
        return ((images - self.mean) / self.std).astype(np.float32)


def network(epsilon: float = 1e-3) -> Any:
    """Return a small CNN for images of 8 x 8 pixels; it augments its inputs in training."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)), layers.GaussianNoise(0.02), layers.Conv2D(8, 3),
            layers.BatchNormalization(epsilon=epsilon), layers.ReLU(), layers.Dropout(0.2),
            layers.Flatten(), layers.Dense(2),
        ]
    )  # fmt: skip


def train(model: Any, scale: Scale) -> None:
    """Tell images that are bright on the left from others."""
    images = np.random.rand(1024, 8, 8, 1)
    labels = (images[:, :, :4].mean((1, 2, 3)) > images[:, :, 4:].mean((1, 2, 3))).astype(int)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss=loss)
    model.fit(scale(images), labels, batch_size=32, epochs=2, verbose=0)


def main(folder: str) -> int:
    """Return the number of verdicts that are not the expected ones."""
    settings = ckptfmt_keras.deterministic(7)
    print("may still differ between runs:", *settings.remaining, sep="\n  - ")
    model, scale = network(), Scale(**SCALING)
    train(model, scale)
    images = np.random.rand(4, 8, 8, 1)
    probe = ckptfmt_keras.probe(model, images, prepare=scale)
    print(f"augmentation is off at inference: two runs agree: {probe.deterministic}")
    wrong = int(not probe.deterministic)
    with ckptfmt.open(folder) as store:
        ckptfmt_keras.save_model(model, store, preprocessing=SCALING, probe=probe)
        saved = store.latest()
    record = saved.environment
    for name in ("keras", "numpy", "scipy"):
        print(f"recorded: {name} {record['distributions'].get(name, 'not installed')}")

    def load(mean: float = SCALING["mean"]) -> Any:
        config = {**SCALING, "mean": mean}
        inputs = ckptfmt_keras.Inputs(prepare=Scale(**config), preprocessing=config)
        reports: list[Any] = []
        found = ckptfmt_keras.load_model(saved, inputs=inputs, report=reports.append)
        return found, reports[0].replay

    def restored(other: Any) -> Any:
        return ckptfmt_keras.restore(
            saved, other, strict=False, rng=False, optimizer=False, replay="always"
        ).replay

    clean, replay = load()
    wrong += _tell("a clean load", replay, None)
    wrong += _tell("another scaler", load(mean=0.4)[1], "preprocessing")
    training = ckptfmt_keras.diagnose(saved, clean, training=True)
    wrong += _tell("called as in training", training, "train mode")
    keras.config.set_dtype_policy("mixed_bfloat16")
    narrow = network()
    keras.config.set_dtype_policy("float32")
    wrong += _tell("another precision", restored(narrow), "precision")
    wrong += _tell("another epsilon", restored(network(epsilon=1.0)), "settings")
    return wrong


def _tell(what: str, replay: Any, cause: str | None) -> int:
    print(f"\n{what}: {replay}")
    first = replay.causes[0].name if replay.causes else None
    right = first == cause and (cause is not None or replay.verdict == "identical")
    if not right:
        print(f"NOT AS EXPECTED: {cause or 'identical'}")
    return int(not right)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(min(1, main(sys.argv[1] if len(sys.argv) > 1 else scratch)))
