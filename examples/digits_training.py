"""Train a small network on the UCI digits, with checkpoints that make the run restartable.

    python examples/digits_training.py runs/digits

Kill it at any moment and start it again: it goes on from the newest checkpoint, and ends with
the same bits as a run that was never killed. `digits_resume.py` shows that it does.

What makes the resume exact is the state: not only the weights, but also the optimizer's
moments, every random generator, the order of the data and the position in it, and the loss
curve so far. `Run.state` and `Run.restore` are all there is to it. Two rules: generators are
restored last, because libraries draw numbers while they are imported or built; and everything
that shapes the rest of the run is in the state.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import ckptfmt
from ckptfmt import rng
from ckptfmt.errors import NotFoundError

Array: TypeAlias = npt.NDArray[Any]
Weights: TypeAlias = dict[str, dict[str, Array]]  # layer → weight and bias

HIDDEN = 1024
BATCH = 64
EXAMPLES = 20_000  # the run ends when it has seen so many
EVERY = 2_000  # examples between checkpoints: on purpose no multiple of the data set
DROPOUT = 0.2
RATE = 1e-3
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
HYPERPARAMETERS = {
    "hidden": HIDDEN,
    "batch": BATCH,
    "examples": EXAMPLES,
    "dropout": DROPOUT,
    "adam": {"rate": RATE, "beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON},
}
PREPROCESSING = {"divide_by": 16.0, "held_out_every": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """1,797 images of 8 × 8 pixels, every fifth one held out."""

    train_x: Array  # [1437, 64], float32, 0 to 1
    train_y: Array  # [1437], int64
    held_x: Array
    held_y: Array


@functools.cache
def load_digits() -> Digits:
    """Return the UCI digits from the copy that comes with scikit-learn; no network."""
    from sklearn.datasets import load_digits as bundled

    x, y = bundled(return_X_y=True)
    x = (x / PREPROCESSING["divide_by"]).astype(np.float32)
    held = np.arange(len(x)) % PREPROCESSING["held_out_every"] == 0
    return Digits(train_x=x[~held], train_y=y[~held], held_x=x[held], held_y=y[held])


@dataclass(slots=True)
class Run:
    """All that changes while the network is trained, and nothing else."""

    model: Weights
    mean: Weights  # Adam's first moments
    square: Weights  # and second ones
    order: Array  # of the examples in this pass over the data
    generator: np.random.Generator
    step: int = 0
    seen: int = 0  # examples since the start
    position: int = 0  # in `order`
    losses: list[float] = field(default_factory=list)  # one a step

    @classmethod
    def start(cls, seed: int = 7) -> Run:
        """Return a run that has not seen anything; seeds every generator there is."""
        data = load_digits()
        random.seed(seed)
        np.random.seed(seed)
        generator = np.random.default_rng(seed)
        sizes = [64, HIDDEN, HIDDEN, 10]
        model = {
            f"layer{n}": {
                "weight": (
                    generator.standard_normal((a, b), dtype=np.float32) * np.sqrt(2 / a)
                ).astype(np.float32),
                "bias": np.zeros(b, np.float32),
            }
            for n, (a, b) in enumerate(itertools.pairwise(sizes), start=1)
        }
        order = generator.permutation(len(data.train_x))
        return cls(model, zeros_like(model), zeros_like(model), order, generator)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {
            "model": self.model,
            "optimizer": {"step": self.step, "mean": self.mean, "square": self.square},
            "rng": rng.capture({"train": self.generator}),
            "data": {"order": self.order, "position": self.position},
            "callbacks": {"losses": np.array(self.losses, np.float64)},
        }

    @classmethod
    def restore(cls, checkpoint: ckptfmt.Checkpoint) -> Run:
        """Return the run as it was when the checkpoint was saved."""
        state = checkpoint.load()
        load_digits()  # imports scikit-learn first: an import may draw from the generators
        generator = np.random.default_rng()
        rng.restore(state["rng"], {"train": generator})
        return cls(
            model=state["model"],
            mean=state["optimizer"]["mean"],
            square=state["optimizer"]["square"],
            order=state["data"]["order"],
            generator=generator,
            step=state["optimizer"]["step"],
            seen=checkpoint.counters["seen"],
            position=state["data"]["position"],
            losses=state["callbacks"]["losses"].tolist(),
        )

    def advance(self) -> None:
        """Train on the next batch; the last one of a pass over the data is shorter."""
        digits = load_digits()
        if self.position == len(self.order):
            self.order, self.position = self.generator.permutation(len(self.order)), 0
        batch = self.order[self.position : self.position + BATCH]
        loss, gradients = backward(
            self.model, digits.train_x[batch], digits.train_y[batch], self.generator
        )
        self.step += 1
        adam(self.model, gradients, self.mean, self.square, self.step)
        self.position += len(batch)
        self.seen += len(batch)
        self.losses.append(loss)


def zeros_like(weights: Weights) -> Weights:
    """Return zeros in the shape of `weights`."""
    return {
        layer: {name: np.zeros_like(array) for name, array in own.items()}
        for layer, own in weights.items()
    }


def body(model: Weights, x: Array) -> Array:
    """Return the last hidden layer, [examples, HIDDEN]."""
    for layer in ("layer1", "layer2"):
        x = np.maximum(x @ model[layer]["weight"] + model[layer]["bias"], 0)
    return x


def head(model: Weights, hidden: Array, y: Array) -> tuple[float, dict[str, Array], Array]:
    """Return loss, gradients of the last layer, and gradient of its logits."""
    logp = log_softmax(hidden @ model["layer3"]["weight"] + model["layer3"]["bias"])
    rows = np.arange(len(y))
    delta = np.exp(logp)
    delta[rows, y] -= 1
    delta /= np.float32(len(y))
    loss = float(-logp[rows, y].mean(dtype=np.float64))
    return loss, {"weight": hidden.T @ delta, "bias": delta.sum(axis=0)}, delta


def log_softmax(x: Array) -> Array:
    """Return the logarithms of the probabilities of each row."""
    x = x - x.max(axis=1, keepdims=True)
    answer: Array = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return answer


def backward(
    model: Weights, x: Array, y: Array, generator: np.random.Generator
) -> tuple[float, Weights]:
    """Return loss and gradients of one batch, with dropout drawn from `generator`."""
    inputs, masks = [x], []
    for layer in ("layer1", "layer2"):
        hidden = np.maximum(inputs[-1] @ model[layer]["weight"] + model[layer]["bias"], 0)
        keep = generator.random(hidden.shape, dtype=np.float32) >= DROPOUT
        mask = (hidden > 0) * keep * np.float32(1 / (1 - DROPOUT))
        inputs.append(hidden * mask)
        masks.append(mask)
    loss, last, delta = head(model, inputs[2], y)
    gradients: Weights = {"layer3": last}
    for layer, above, n in (("layer2", "layer3", 1), ("layer1", "layer2", 0)):
        delta = (delta @ model[above]["weight"].T) * masks[n]
        gradients[layer] = {"weight": inputs[n].T @ delta, "bias": delta.sum(axis=0)}
    return loss, gradients


def adam(model: Weights, gradients: Weights, mean: Weights, square: Weights, step: int) -> None:
    """Move the weights that have gradients, in place; the others stay as they are."""
    rate = np.float32(RATE * np.sqrt(1 - BETA2**step) / (1 - BETA1**step))
    for layer, own in gradients.items():
        for name, gradient in own.items():
            m, v = mean[layer][name], square[layer][name]
            m += np.float32(1 - BETA1) * (gradient - m)
            v += np.float32(1 - BETA2) * (gradient * gradient - v)
            model[layer][name] -= rate * m / (np.sqrt(v) + np.float32(EPSILON))


def evaluate(model: Weights) -> dict[str, float]:
    """Return loss and accuracy on the held-out images."""
    digits = load_digits()
    hidden = body(model, digits.held_x)
    loss, _, _ = head(model, hidden, digits.held_y)
    answer = (hidden @ model["layer3"]["weight"] + model["layer3"]["bias"]).argmax(axis=1)
    return {"val_loss": loss, "val_accuracy": float((answer == digits.held_y).mean())}


def train(url: str) -> None:
    """Train to the end, from wherever the store says the run was."""
    keep = ckptfmt.keep(last=3, best=("val_loss", "min", 2))
    with ckptfmt.open(url, keep=keep) as store:
        try:
            checkpoint = store.latest()
        except NotFoundError:
            run = Run.start()
            print("start: nothing saved yet", flush=True)
        else:
            run = Run.restore(checkpoint)
            print(f"resume: checkpoint {checkpoint.number}, {run.seen} examples", flush=True)
        while run.seen < EXAMPLES:
            edge = (run.seen // EVERY + 1) * EVERY
            while run.seen < edge:
                run.advance()
            saved = store.save(
                run.state(),
                counters={"seen": run.seen, "step": run.step},
                metrics={"loss": run.losses[-1], **evaluate(run.model)},
                hyperparameters=HYPERPARAMETERS,
                preprocessing=PREPROCESSING,
            )
            print(f"saved: checkpoint {saved.number}, {run.seen} examples", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="train on the UCI digits, restartable")
    parser.add_argument("store", help="folder or URL of the checkpoints")
    train(parser.parse_args().store)
