"""torch_checkpointing, its synchronous way.

As it comes it fails on ext4 (EINVAL): small items are not aligned for O_DIRECT, which is off.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from torch_checkpointing import CheckpointManager
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import FIRST, Saver, sync_tree

NAME = "torch_checkpointing"
READS = "torch_checkpointing_files"
DISTRIBUTIONS = ("torch", "torch-checkpointing")


@functools.cache
def _manager() -> Any:
    config = CheckpointManager.Config.with_sync_save()
    config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
    return CheckpointManager(config)


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        place = folder / f"{seen:010d}"
        _manager().save(str(place), {"state": state, "run": {"seen": seen, "val_loss": loss}})
        if durable:
            sync_tree(place)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = _manager().load(_place(folder), {"state": None})["state"]
    return state


def load_into(folder: pathlib.Path, state: Any) -> None:
    _manager().load(_place(folder), {"state": state})


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    loaded = (_manager().load(str(p), {"run": None})["run"] for p in sorted(folder.iterdir()))
    return [(run["seen"], run["val_loss"]) for run in loaded]


def _place(folder: pathlib.Path) -> str:
    return str(folder / f"{FIRST:010d}")
