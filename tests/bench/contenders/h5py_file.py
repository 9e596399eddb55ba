"""h5py: one HDF5 file, a dataset for each array, no checksum."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import h5py

from tests.bench.contract import FIRST, Listing, Saver, plain, sync
from tests.bench.workloads import Arrays

NAME = "h5py"
READS = "h5py_file"
DISTRIBUTIONS = ("h5py",)


def file(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}.h5"


def prepare(arrays: Arrays) -> Arrays:
    return {path: plain(array) for path, array in arrays.items()}


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        with h5py.File(file(folder, seen), "w") as opened:
            opened.attrs.update({"seen": seen, "val_loss": loss})
            for path, array in state.items():
                opened.create_dataset(path, data=array)
        if durable:
            sync(file(folder, seen))

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    with h5py.File(file(folder)) as opened:
        return {path: dataset[()] for path, dataset in _datasets(opened)}


def load_into(folder: pathlib.Path, state: Any) -> None:
    with h5py.File(file(folder)) as opened:
        for path, array in state.items():
            opened[path].read_direct(array)


def listing(folder: pathlib.Path) -> Listing:
    with h5py.File(file(folder)) as opened:
        return [(path, own.shape, str(own.dtype)) for path, own in _datasets(opened)]


def one(folder: pathlib.Path, path: str) -> Any:
    with h5py.File(file(folder)) as opened:
        return opened[path][()]


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for path in sorted(folder.iterdir()):
        with h5py.File(path) as opened:
            found.append((int(opened.attrs["seen"]), float(opened.attrs["val_loss"])))
    return found


def _datasets(opened: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []

    def visit(path: str, each: Any) -> None:
        if isinstance(each, h5py.Dataset):
            found.append((path, each))

    opened.visititems(visit)
    return found
