"""safetensors.numpy: the peer that the targets are measured against. It verifies nothing."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.bench.contract import FIRST, Listing, Saver, plain, sync
from tests.bench.workloads import Arrays

NAME = "safetensors.numpy"
READS = "safetensors_numpy"
DISTRIBUTIONS = ("safetensors",)


def file(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}.safetensors"


def prepare(arrays: Arrays) -> Arrays:
    return {path: plain(array) for path, array in arrays.items()}


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        save_file(state, file(folder, seen), {"seen": str(seen), "val_loss": str(loss)})
        if durable:
            sync(file(folder, seen))

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    return load_file(file(folder))


def load_into(folder: pathlib.Path, state: Any) -> None:
    with safe_open(file(folder), framework="numpy") as opened:
        for path, array in state.items():
            np.copyto(array, opened.get_tensor(path))


def listing(folder: pathlib.Path) -> Listing:
    found = []
    with safe_open(file(folder), framework="numpy") as opened:
        for path in opened.keys():  # noqa: SIM118 - not a dict
            part = opened.get_slice(path)
            found.append((path, tuple(part.get_shape()), part.get_dtype()))
    return found


def one(folder: pathlib.Path, path: str) -> Any:
    with safe_open(file(folder), framework="numpy") as opened:
        return opened.get_tensor(path)


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for path in sorted(folder.iterdir()):
        with safe_open(path, framework="numpy") as opened:
            own = opened.metadata()
            found.append((int(own["seen"]), float(own["val_loss"])))
    return found
