"""torch.save and torch.load as they come."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch

from tests.bench.contract import FIRST, Saver, plain, sync
from tests.bench.workloads import Arrays

NAME = "torch.save / load"
READS = "torch_save"
DISTRIBUTIONS = ("torch",)


def file(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}.pt"


def prepare(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {path: _tensor(array) for path, array in arrays.items()}


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        torch.save({"seen": seen, "val_loss": loss, "state": state}, file(folder, seen))
        if durable:
            sync(file(folder, seen))

    return save


def _tensor(array: Any) -> torch.Tensor:
    tensor = torch.from_numpy(plain(array))
    return tensor if plain(array) is array else tensor.view(torch.bfloat16)


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = torch.load(file(folder))["state"]
    return state


def load_into(folder: pathlib.Path, state: Any) -> None:
    for path, tensor in torch.load(file(folder))["state"].items():
        state[path].copy_(tensor)
