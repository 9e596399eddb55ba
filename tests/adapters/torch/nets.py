"""What the tests train: small, with every kind of state, the same bits each time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def net() -> nn.Sequential:
    """Return a network with parameters, buffers, an integer buffer and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(4 * 6 * 6, 10),
    )  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Take some steps on data drawn from torch's generator; return the losses."""
    losses = []
    for _ in range(steps):
        x, y = torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        losses.append(float(optimizer.step(closure).detach()))  # type: ignore[arg-type]
    return losses


def bits(value: Any) -> Any:
    """Return a copy in which tensors are their bytes, to compare bit for bit."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [bits(child) for child in value]
    return copy.deepcopy(value)


def everything(*objects: Any) -> list[Any]:
    """Return the bits of some objects and of the global generators."""
    return [*(bits(one.state_dict()) for one in objects), bits(torch.get_rng_state())]
