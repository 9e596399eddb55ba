"""safetensors' files as torch tensors: views of the mapped file, where NumPy gets copies."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from tests.bench.contenders.safetensors_numpy import file
from tests.bench.contenders.torch_save import prepare as prepare

NAME = "safetensors.torch"
READS = "safetensors_numpy"
DISTRIBUTIONS = ("safetensors", "torch")


def load_into(folder: pathlib.Path, state: Any) -> None:
    stored = load_file(file(folder))
    for path, tensor in state.items():
        tensor.view(stored[path].dtype).copy_(stored[path])  # bf16 is stored as its bits


def load_mmap(folder: pathlib.Path) -> Mapping[str, Any]:
    return load_file(file(folder))


def one(folder: pathlib.Path, path: str) -> Any:
    with safe_open(file(folder), framework="pt") as opened:
        return opened.get_tensor(path)
