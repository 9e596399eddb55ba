"""torch.load with `mmap=True`: the way to a listing and to single tensors, too."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch

from tests.bench.contenders.torch_save import file
from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import Listing

NAME = "torch.load(mmap=True)"
READS = "torch_save"
DISTRIBUTIONS = ("torch",)


def load_mmap(folder: pathlib.Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = torch.load(file(folder), mmap=True)["state"]
    return state


def load_into(folder: pathlib.Path, state: Any) -> None:
    for path, tensor in load_mmap(folder).items():
        state[path].copy_(tensor)


def listing(folder: pathlib.Path) -> Listing:
    return [(p, tuple(t.shape), str(t.dtype)) for p, t in load_mmap(folder).items()]


def one(folder: pathlib.Path, path: str) -> Any:
    return load_mmap(folder)[path]


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    loaded = (torch.load(path, mmap=True) for path in sorted(folder.iterdir()))
    return [(each["seen"], each["val_loss"]) for each in loaded]
