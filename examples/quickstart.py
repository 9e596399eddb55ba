"""Save, resume, look, choose: the calls of every day.

python examples/quickstart.py [FOLDER]   (an empty one, or one that is not there yet)
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np

import ckptfmt


def main(folder: str) -> None:
    """Train a line by hand and use its checkpoints."""
    x = np.linspace(-1, 1, 256)
    y = 3 * x + 0.5
    state = {
        "model": {"weight": np.zeros(1), "bias": np.zeros(1)},
        "optimizer": {"step": 0, "momentum": [np.zeros(1), np.zeros(1)]},
    }

    # Retention runs after each save: the newest two and the best one stay.
    keep = ckptfmt.keep(last=2, best=("loss", "min", 1))
    with ckptfmt.open(f"{folder}/line", keep=keep) as store:
        for step in range(1, 51):
            loss = train_step(state, x, y)
            if step % 10 == 0:
                saved = store.save(
                    state,
                    counters={"seen": step * len(x)},
                    metrics={"loss": loss},
                    hyperparameters={"rate": 0.1},
                )
                print(f"saved {saved.number} after {saved.counters['seen']} examples")
    print("on disk:", [checkpoint.number for checkpoint in store])

    # Resume: the newest complete checkpoint, every byte verified. The types come back as saved.
    newest = store.latest()
    resumed = newest.load()
    assert resumed["optimizer"]["step"] == 50
    assert isinstance(resumed["optimizer"]["momentum"], list)

    # Or fill your own arrays: paths, shapes and dtypes must agree, or nothing is touched.
    mine = {"model": {"weight": np.empty(1), "bias": np.empty(1)}}
    print(newest.compare(mine, select="model"))
    newest.load(select="model", into=mine)
    assert mine["model"]["weight"].tobytes() == resumed["model"]["weight"].tobytes()

    # Choose by a metric, by examples seen, by a tag.
    store.tag(newest.number, "published")
    for which in ("best:loss", "examples:12000", "tag:published"):
        print(f"{which}: checkpoint {store.resolve(which).number}")

    # Look without reading: arrays are lazy until they are sliced or converted.
    weight = newest["model/weight"]
    print(weight, "=", np.asarray(weight))

    # One file to hand to somebody else: with its facts, or as plain safetensors.
    ckptfmt.pack(newest, f"{folder}/line.safetensors")
    again = ckptfmt.open_checkpoint(f"{folder}/line.safetensors")
    print("in one file:", again.metrics["loss"], again.hyperparameters)


def train_step(state: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
    """Move the weights by gradient descent with momentum, in place; return the loss."""
    model, optimizer = state["model"], state["optimizer"]
    error = x * model["weight"] + model["bias"] - y
    gradients = np.array([(error * x).mean()]), np.array([error.mean()])
    names = ("weight", "bias")
    for name, momentum, gradient in zip(names, optimizer["momentum"], gradients, strict=True):
        momentum *= 0.8
        momentum += gradient
        model[name] -= 0.1 * momentum
    optimizer["step"] += 1
    return float((error**2).mean())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as name:
            main(name)
