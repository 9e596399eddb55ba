"""torch.distributed.checkpoint with its writer to files, one process."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed import checkpoint

from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import FIRST, Listing, Saver, sync

NAME = "torch DCP"
READS = "torch_dcp"
DISTRIBUTIONS = ("torch",)


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        place = _place(folder, seen)
        writer = checkpoint.FileSystemWriter(place, sync_files=durable)
        whole = {**state, "seen": seen, "val_loss": loss}
        checkpoint.save(whole, storage_writer=writer, no_dist=True)
        if durable:
            sync(place)  # it syncs the files; the names are left to do
            sync(place / ".metadata")

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    state = {
        path: torch.empty(own.size, dtype=own.properties.dtype)
        for path, own in _stored(folder).items()
    }
    load_into(folder, state)
    return state


def load_into(folder: pathlib.Path, state: Any) -> None:
    _load(_place(folder), state)


def listing(folder: pathlib.Path) -> Listing:
    return [
        (path, tuple(own.size), str(own.properties.dtype))
        for path, own in _stored(folder).items()
    ]


def one(folder: pathlib.Path, path: str) -> Any:
    own = _stored(folder)[path]
    state = {path: torch.empty(own.size, dtype=own.properties.dtype)}
    load_into(folder, state)
    return state[path]


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for place in sorted(folder.iterdir()):
        state: dict[str, Any] = {"seen": 0, "val_loss": 0.0}
        _load(place, state)
        found.append((state["seen"], state["val_loss"]))
    return found


def _place(folder: pathlib.Path, seen: int = FIRST) -> pathlib.Path:
    return folder / f"{seen:010d}"


def _load(place: pathlib.Path, state: dict[str, Any]) -> None:
    checkpoint.load(state, storage_reader=checkpoint.FileSystemReader(place), no_dist=True)


def _stored(folder: pathlib.Path) -> dict[str, Any]:
    """Return what the metadata say of each tensor."""
    known = checkpoint.FileSystemReader(_place(folder)).read_metadata().state_dict_metadata
    return {path: own for path, own in known.items() if "/" in path}
