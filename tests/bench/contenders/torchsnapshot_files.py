"""torchsnapshot: a folder of files for each snapshot."""

from __future__ import annotations

import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

import torch
from torchsnapshot import Snapshot, StateDict

from tests.bench.contenders.torch_save import prepare as prepare
from tests.bench.contract import FIRST, Listing, Saver, sync_tree

NAME = "torchsnapshot"
READS = "torchsnapshot_files"
DISTRIBUTIONS = ("torch", "torchsnapshot")
_BELOW = "0/state/"  # rank and key, in its names


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    def save(state: Any, seen: int, loss: float) -> None:
        place = folder / f"{seen:010d}"
        run = StateDict(seen=seen, val_loss=loss)
        Snapshot.take(str(place), {"state": StateDict(**state), "run": run})
        if durable:
            sync_tree(place)

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    state = {
        path: torch.empty(own.shape, dtype=getattr(torch, own.dtype.removeprefix("torch.")))
        for path, own in _stored(folder).items()
    }
    load_into(folder, state)
    return state


def load_into(folder: pathlib.Path, state: Any) -> None:
    _snapshot(folder).restore({"state": StateDict(**state)})


def listing(folder: pathlib.Path) -> Listing:
    return [(path, tuple(own.shape), own.dtype) for path, own in _stored(folder).items()]


def one(folder: pathlib.Path, path: str) -> Any:
    return _snapshot(folder).read_object(_BELOW + urllib.parse.quote(path, safe=""))


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    found = []
    for place in sorted(folder.iterdir()):
        snapshot = Snapshot(str(place))
        seen, loss = (snapshot.read_object(f"0/run/{name}") for name in ("seen", "val_loss"))
        found.append((seen, loss))
    return found


def _snapshot(folder: pathlib.Path) -> Any:
    return Snapshot(str(folder / f"{FIRST:010d}"))


def _stored(folder: pathlib.Path) -> dict[str, Any]:
    known = _snapshot(folder).get_manifest()
    return {
        urllib.parse.unquote(name.removeprefix(_BELOW)): own
        for name, own in known.items()
        if name.startswith(_BELOW)
    }
