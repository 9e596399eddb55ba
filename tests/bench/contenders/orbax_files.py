"""Orbax, NumPy arrays, without compression: with it the bytes on disk are not the same."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from tests.bench.checking import flat
from tests.bench.contract import FIRST, Listing, Saver, nested, sync_tree
from tests.bench.workloads import Arrays

NAME = "Orbax"
READS = "orbax_files"
DISTRIBUTIONS = ("orbax-checkpoint", "jax")


@functools.cache
def _checkpointer() -> Any:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False))


def prepare(arrays: Arrays) -> dict[str, Any]:
    return nested(arrays)


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        about = {"seen": seen, "val_loss": loss}
        place = folder / f"{seen:010d}"
        _checkpointer().save(place, args=ocp.args.PyTreeSave(state, custom_metadata=about))
        if durable:
            sync_tree(place)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = _checkpointer().restore(_place(folder))
    return state


def listing(folder: pathlib.Path) -> Listing:
    tree = _checkpointer().metadata(_place(folder)).item_metadata.tree
    return [(path, tuple(own.shape), str(own.dtype)) for path, own in flat(tree).items()]


def one(folder: pathlib.Path, path: str) -> Any:
    wanted = nested({path: np.empty(0, np.float32)})
    how = ocp.args.PyTreeRestore(item=wanted, partial_restore=True)
    return flat(_checkpointer().restore(_place(folder), how))[path]


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for place in sorted(folder.iterdir()):
        about = _checkpointer().metadata(place).item_metadata.custom_metadata
        found.append((about["seen"], about["val_loss"]))
    return found


def _place(folder: pathlib.Path) -> pathlib.Path:
    return folder / f"{FIRST:010d}"
