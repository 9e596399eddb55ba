"""A real training, to be killed: run as a script, it resumes, and prints its loss curve.

    python digits.py FOLDER [--total N] [--epochs N] [--signals] [--background]

Conv, batch norm, dropout, AdamW, OneCycle, GradScaler, an averaged model, a shuffling loader
with two workers, accumulation of three batches, on the UCI digits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import random
import signal
import sys
import time
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ckptfmt
import ckptfmt_torch
from ckptfmt.training import Progress

ACCUMULATION = 3


def build(total: int) -> dict[str, Any]:
    """Return the objects of the run, as they are before the first step."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(8 * 36, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = total // (32 * ACCUMULATION) + 10
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps),
        "scaler": torch.amp.GradScaler("cpu"),
        "ema": torch.optim.swa_utils.AveragedModel(model),
    }


def loader(workers: int) -> DataLoader[Any]:
    """Return the digits in shuffled batches of 32."""
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16,
                         torch.tensor(y))  # fmt: skip
    batches = ckptfmt_torch.BatchSampler(len(data), 32, seed=3)
    return DataLoader(data, batch_sampler=batches, num_workers=workers)


def digest(run: dict[str, Any]) -> str:
    """Return the SHA-256 of all the state there is, the generators included."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for child in value:
                add(child)
        elif hasattr(value, "tobytes"):
            found.update(str((value.dtype, value.shape)).encode() + value.tobytes())
        else:
            found.update(repr(value).encode())

    add(ckptfmt_torch.capture(**run))
    return found.hexdigest()


def train(folder: str, args: argparse.Namespace) -> None:
    """Train to the end, from wherever the store says that the run is."""
    run = build(args.total)
    model, optimizer, scaler = run["model"], run["optimizer"], run["scaler"]
    curve: list[float] = []

    class Curve:
        def state_dict(self) -> dict[str, Any]:
            return {"losses": list(curve)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            curve[:] = state["losses"]

    with ckptfmt.open(folder, keep=ckptfmt.keep(last=2)) as store:
        epochs = ckptfmt_torch.VirtualEpochs(
            store,
            Progress(
                total=args.total, virtual_epochs=args.epochs, accumulation=ACCUMULATION,
            ),
            loader=loader(args.workers),
            save_on_signal=[signal.SIGTERM, signal.SIGUSR1] if args.signals else [],
            background=args.background,
            callbacks={"curve": Curve()},
            **run,
        )  # fmt: skip
        for count, (x, y) in enumerate(epochs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x), y) / ACCUMULATION
            scaler.scale(loss).backward()
            curve.append(loss.item())
            if (count + 1) % ACCUMULATION == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                run["scheduler"].step()
                run["ema"].update_parameters(model)
            print("step", flush=True)
            time.sleep(args.pause)
    result = {"digest": digest(run), "curve": curve, "seen": epochs.progress.seen}
    pathlib.Path(folder, "result.json").write_text(json.dumps(result))


def main(argv: list[str]) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--total", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--signals", action="store_true")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args(argv)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    train(args.folder, args)


if __name__ == "__main__":
    main(sys.argv[1:])
