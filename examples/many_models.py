"""A sweep: one store per run, compared by what their manifests say, the best ones averaged.

    python examples/many_models.py [FOLDER]

No array is read to find the best runs; then only their weights are.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile

import numpy as np

import ckptfmt

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
STEPS = 200


def main(folder: str) -> None:
    """Sweep the learning rate of a linear regression and average the best three."""
    runs = pathlib.Path(folder) / "sweep"
    for rate in RATES:
        train(runs / f"rate-{rate}", rate)

    print("run          steps   val_loss")
    ranking = []
    for run in sorted(runs.iterdir()):
        checkpoint = ckptfmt.open(run).best("val_loss")
        steps, loss = checkpoint.counters["step"], checkpoint.metrics["val_loss"]
        assert loss is not None  # best() never chooses a checkpoint without the metric
        ranking.append((loss, run.name, checkpoint))
        print(f"{run.name:11} {steps:6} {loss:10.6f}")

    # `select` reads the weights and leaves the optimizer where it is.
    chosen = [checkpoint for _, _, checkpoint in sorted(ranking)[:3]]
    weights = [c.load(select="model/weight")["model"]["weight"] for c in chosen]
    mean = np.mean(weights, axis=0)
    file = f"{folder}/average.safetensors"
    average = ckptfmt.save(
        {"model": {"weight": mean}},
        file,
        metrics={"val_loss": loss_of(mean, "val")},
        hyperparameters={"average_of": [f"{c.url}@{c.number}" for c in chosen]},
    )
    print(f"average of the best three: {average.metrics['val_loss']:.6f}")
    assert ckptfmt.load(file)["model"]["weight"].tobytes() == mean.tobytes()


def train(run: pathlib.Path, rate: float) -> None:
    """Train one model; its store keeps the best checkpoint and the newest."""
    x, y = data("train")
    state = {"model": {"weight": np.zeros(16)}, "optimizer": {"velocity": np.zeros(16)}}
    weight, velocity = state["model"]["weight"], state["optimizer"]["velocity"]
    keep = ckptfmt.keep(last=1, best=("val_loss", "min", 1))
    with ckptfmt.open(run, keep=keep) as store:
        for step in range(1, STEPS + 1):
            velocity *= 0.9
            velocity += x.T @ (x @ weight - y) / len(x)
            weight -= rate * velocity
            if step % 20 == 0:
                store.save(
                    state,
                    counters={"step": step, "seen": step * len(x)},
                    metrics={"val_loss": loss_of(weight, "val")},
                    hyperparameters={"rate": rate},
                )


def data(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and noisy targets of one linear rule."""
    rng = np.random.default_rng({"train": 1, "val": 2}[split])
    x = rng.standard_normal((256, 16))
    return x, x @ np.arange(16) / 16 + 0.3 * rng.standard_normal(256)


def loss_of(weight: np.ndarray, split: str) -> float:
    """Return the mean squared error."""
    x, y = data(split)
    return float(((x @ weight - y) ** 2).mean())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as name:
            main(name)
