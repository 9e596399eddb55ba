"""Train a small CNN in PyTorch, load it, and have the load proven equal, or explained.

    python examples/torch_same_predictions.py [FOLDER]

Determinism flags are set, the environment is recorded with every checkpoint (torch, NumPy,
SciPy and all else that is installed), preprocessing travels with it, and augmentation is on in
training only, which is checked. Then the same checkpoint is loaded four times: cleanly, with
another scaler, in training mode, and with a layer whose epsilon is another one. Needs PyTorch.
The exit status is 1 if a verdict is not the expected one.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from torch import nn

import ckptfmt
import ckptfmt_torch

SCALING = {"mean": 0.5, "std": 0.25}


class Scale:
    """Preprocessing: what was fitted once must be used ever after."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, images: Any) -> Any:
        """Return standardised images."""
        return (images - self.mean) / self.std


class Noise(nn.Module):  # type: ignore[misc]  # untyped where torch is absent
    """Augmentation: in training only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images with a little noise."""
        return images + 0.1 * torch.randn_like(images) if self.training else images


def network(epsilon: float = 1e-5) -> nn.Sequential:
    """Return a small CNN for images of 8 x 8 pixels; it augments its inputs in training."""
    return nn.Sequential(
        Noise(), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, eps=epsilon), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(8 * 6 * 6, 2),
    )  # fmt: skip


def train(model: nn.Module, scale: Scale) -> None:
    """Tell images that are bright on the left from others."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        images = torch.rand(32, 1, 8, 8)
        labels = (images[..., :4].mean((1, 2, 3)) > images[..., 4:].mean((1, 2, 3))).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(scale(images)), labels)
        loss.backward()
        optimizer.step()


def main(folder: str) -> int:
    """Return the number of verdicts that are not the expected ones."""
    settings = ckptfmt_torch.deterministic(7)
    print("may still differ between runs:", *settings.remaining, sep="\n  - ")
    model, scale = network(), Scale(**SCALING)
    train(model, scale)
    images = torch.rand(4, 1, 8, 8)
    probe = ckptfmt_torch.probe(model, images, prepare=scale)
    print(f"augmentation is off at inference: two runs agree: {probe.deterministic}")
    with ckptfmt.open(folder) as store:
        ckptfmt_torch.save(store, model=model, preprocessing=SCALING, probe=probe)
        saved = store.latest()
    record = saved.environment
    for name in ("torch", "numpy", "scipy"):
        print(f"recorded: {name} {record['distributions'].get(name, 'not installed')}")

    def load(mean: float = SCALING["mean"], epsilon: float = 1e-5) -> Any:
        config = {**SCALING, "mean": mean}
        inputs = ckptfmt_torch.Inputs(prepare=Scale(**config), preprocessing=config)
        loaded = network(epsilon)
        report = ckptfmt_torch.restore(saved, model=loaded, inputs=inputs, rng=False)
        return loaded, report.replay

    clean, replay = load()
    wrong = int(not probe.deterministic) + _tell("a clean load", replay, None)
    wrong += _tell("another scaler", load(mean=0.4)[1], "preprocessing")
    training = ckptfmt_torch.diagnose(saved, clean.train())
    wrong += _tell("left in training mode", training, "train mode")
    wrong += _tell("another epsilon", load(epsilon=1e-1)[1], "settings")
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
