"""numpy.savez: one zip of .npy members, with CRC-32."""

from __future__ import annotations

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.bench.contract import FIRST, Listing, Saver, plain, sync
from tests.bench.workloads import Arrays

NAME = "numpy.savez"
READS = "numpy_savez"
DISTRIBUTIONS = ("numpy",)


def file(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}.npz"


def prepare(arrays: Arrays) -> Arrays:
    return {path: plain(array) for path, array in arrays.items()}


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        np.savez(file(folder, seen), **state, seen=np.int64(seen), val_loss=np.float64(loss))
        if durable:
            sync(file(folder, seen))

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    with np.load(file(folder)) as opened:
        return {path: opened[path] for path in opened.files if "/" in path}


def load_into(folder: pathlib.Path, state: Any) -> None:
    with np.load(file(folder)) as opened:
        for path, array in state.items():
            np.copyto(array, opened[path])


def listing(folder: pathlib.Path) -> Listing:
    found = []
    with zipfile.ZipFile(file(folder)) as opened:
        for member in opened.namelist():
            with opened.open(member) as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if "/" in member:
                found.append((member.removesuffix(".npy"), shape, str(dtype)))
    return found


def one(folder: pathlib.Path, path: str) -> Any:
    with np.load(file(folder)) as opened:
        return opened[path]


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for path in sorted(folder.iterdir()):
        with np.load(path) as opened:
            found.append((int(opened["seen"]), float(opened["val_loss"])))
    return found
