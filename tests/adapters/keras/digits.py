"""A real training, to be killed: run as a script, it resumes, and prints its steps.

    python digits.py FOLDER [--total N] [--epochs N] [--signals] [--background]

Conv, batch norm, dropout, Adam with decaying rate, early stopping, validation, shuffled
batches, on the UCI digits; KERAS_BACKEND says on what.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
import warnings
from typing import Any

if os.environ.get("KERAS_BACKEND") != "tensorflow":
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # Keras looks for it: seconds
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
import numpy as np
from nets import flat
from sklearn.datasets import load_digits

import ckptfmt
import ckptfmt_keras
from ckptfmt.training import Progress

BATCH = 32


def build() -> Any:
    """Return the compiled model, as it is before the first step."""
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def digits() -> tuple[Any, Any]:
    """Return the digits as images, and what they are."""
    x, y = load_digits(return_X_y=True)
    return x.reshape(-1, 8, 8, 1).astype(np.float32) / 16, y


class Tell(keras.callbacks.Callback):
    """Says when a step has ended, for whoever kills this process."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self._pause = pause

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        print("step", flush=True)
        time.sleep(self._pause)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""


def digest(model: Any) -> str:
    """Return the SHA-256 of all the state there is, the generators included."""
    found = hashlib.sha256()
    for path, leaf in sorted(flat(ckptfmt_keras.capture(model)), key=lambda pair: pair[0]):
        found.update(repr((path, leaf)).encode())
    return found.hexdigest()


def train(folder: str, args: argparse.Namespace) -> None:
    """Train to the end, from wherever the store says that the run is."""
    model = build()
    x, y = digits()
    with ckptfmt.open(folder, keep=ckptfmt.keep(last=2)) as store:
        checkpoint = ckptfmt_keras.Checkpoint(
            store,
            every_examples=200,
            save_on_signal=[signal.SIGTERM, signal.SIGUSR1] if args.signals else [],
            background=args.background,
        )
        history = ckptfmt_keras.fit_virtual(
            model,
            (x[:1500], y[:1500]),
            Progress(total=args.total, virtual_epochs=args.epochs),
            checkpoint=checkpoint,
            batch_size=BATCH,
            seed=3,
            callbacks=[
                Tell(args.pause),
                keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.7),
                keras.callbacks.EarlyStopping(patience=20, restore_best_weights=True),
            ],
            validation_data=(x[1500:], y[1500:]),
        )
        seen = checkpoint.seen
    result = {
        "digest": digest(model),
        "history": history.history,
        "epoch": history.epoch,
        "seen": seen,
    }
    pathlib.Path(folder, "result.json").write_text(json.dumps(result))


def main(argv: list[str]) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--total", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--signals", action="store_true")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    train((args := parser.parse_args(argv)).folder, args)


if __name__ == "__main__":
    main(sys.argv[1:])
