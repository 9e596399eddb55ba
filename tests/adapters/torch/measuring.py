"""What saves and restores cost the process they run in: run as a script, it prints JSON.

python measuring.py saves FOLDER [--background]     what 100 saves leave behind
python measuring.py restores FOLDER                 memory that restores need for a while
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ckptfmt
import ckptfmt_torch

SAVES = 100
WARM = 20  # saves until nothing is made for the first time any more


def status(name: str) -> int:
    """Return a row of /proc/self/status in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def resources() -> dict[str, int]:
    """Return what the process holds: own memory in bytes, threads, open files."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system first
    return {
        "memory": status("RssAnon"),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


def saves(folder: str, *, background: bool) -> dict[str, int]:
    """Save 4 MB after each step; return by how much the resources grew over 100 saves."""
    model = nn.Linear(512, 640)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(8, 512)
    with ckptfmt.open(folder, keep=ckptfmt.keep(last=2), durable=False) as store:

        def steps(count: int) -> dict[str, int]:
            for _ in range(count):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
                ckptfmt_torch.save(
                    store, background=background, model=model, optimizer=optimizer
                )
            store.latest()  # waits for one in the background
            return resources()

        before = steps(WARM)
        after = steps(SAVES)
    return {name: after[name] - before[name] for name in before}


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return 210 MB in 50 layers."""
    return nn.Sequential(*(nn.Linear(1024, 1024, dtype=dtype) for _ in range(50)))


def transposed() -> nn.Sequential:
    """Return the same layers with weights that NumPy cannot be handed as one block."""
    model = layers()
    for layer in model:
        layer.weight.data = layer.weight.data.T
    return model


def grown(act: Callable[[], Any]) -> int:
    """Return by how much memory grew at most while `act` ran, in bytes."""
    resources()
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    act()
    return status("VmHWM") - before


def restores(folder: str) -> dict[str, int]:
    """Restore 210 MB of a model into models of several kinds; return what each took."""
    with ckptfmt.open(folder, durable=False) as store:
        ckptfmt_torch.save(store, model=layers(), rng=False)
    half = {torch.float32: torch.bfloat16}
    found = {}
    for kind, model, casts in (
        ("plain", layers(), {}),
        ("transposed", transposed(), {}),
        ("cast", layers(torch.bfloat16), half),
    ):
        with ckptfmt.open(folder) as store:
            restore = functools.partial(
                ckptfmt_torch.restore, store.latest(), model=model, map_dtype=casts, rng=False
            )
            found[kind] = grown(restore)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder, *options = sys.argv[1:]
    if what == "saves":
        print(json.dumps(saves(folder, background="--background" in options)))
    else:
        print(json.dumps(restores(folder)))
