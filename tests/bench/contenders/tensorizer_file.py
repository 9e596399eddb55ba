"""tensorizer: one file of tensors, with digests that it does not check unless asked to."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tensorizer import TensorDeserializer, TensorSerializer

from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import FIRST, Saver, sync

NAME = "tensorizer"
READS = "tensorizer_file"
DISTRIBUTIONS = ("torch", "tensorizer")


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        path = folder / f"{seen:010d}.tensors"
        serializer = TensorSerializer(str(path))
        serializer.write_state_dict(state)
        serializer.close()
        if durable:
            sync(path)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    return dict(_opened(folder, lazy=False).items())


def load_into(folder: pathlib.Path, state: Any) -> None:
    for path, tensor in _opened(folder, lazy=False).items():
        state[path].copy_(tensor.detach())


def one(folder: pathlib.Path, path: str) -> Any:
    return _opened(folder, lazy=True)[path]


def _opened(folder: pathlib.Path, *, lazy: bool) -> Any:
    path = str(folder / f"{FIRST:010d}.tensors")
    return TensorDeserializer(path, device="cpu", lazy_load=lazy)
