"""Stores whose every byte is known, and a way to run the command line on them."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.cli import main
from ckptfmt.options import Sources

BEGIN = datetime.datetime(2026, 3, 1, 8, 0, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _here(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the test's own folder, so that addresses are short."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> Cli:
    """Run the command line in this process; its folder is shown as `@`."""

    def run(*words: str) -> Ran:
        status = main([*words])
        shown = capsys.readouterr()
        folder = os.fspath(tmp_path)
        return Ran(
            status=status,
            out=shown.out.replace(folder, "@"),
            err=shown.err.replace(folder, "@"),
        )

    return run


def known_sources() -> Sources:
    """Return a clock that advances ten minutes a look, and ids that count."""
    times: Iterator[int] = itertools.count(int(BEGIN.timestamp() * 1e6), 600_000_000)
    ids = itertools.count(1)
    return Sources(now=lambda: next(times), save_id=lambda: f"{next(ids):024x}")


@pytest.fixture
def empty() -> Store:
    """Return a store without a checkpoint, at `run`."""
    return ckptfmt.open("run", durable=False, sources=known_sources())


@pytest.fixture
def store(empty: Store) -> Store:
    """Return a store of three checkpoints, at `run`."""
    w = np.arange(6000, dtype="f4").reshape(60, 100)
    for n in range(3):
        w = w.copy()
        w[n] += 0.5
        empty.save(
            {
                "model": {"fc/1": {"w": w, "b": np.zeros(100, "f4")}, "tied": w},
                "optimizer": [{"lr": 0.1 / (n + 1), "betas": (0.9, 0.999)}, {}],
                "name": "first\nsecond",
            },
            counters={"seen": 1_000_000 * n},
            metrics={
                "val_loss": 0.5 / (n + 1),
                "acc": float("nan") if n == 1 else 0.5 + n / 10,
            },
            hyperparameters={"lr": 0.1, "layers": [100, 10]},
            artifacts={"vocab.txt": b"a b c"},
            tags=["warm"] if n == 0 else (),
        )
    return empty


@dataclass(frozen=True)
class Damage:
    """Ways to break the store at `run`."""

    store: Store

    def flip(self, path: str | os.PathLike[str], offset: int = -1) -> None:
        """Change one byte of a file; a negative offset counts from its end."""
        file = pathlib.Path(path)
        data = bytearray(file.read_bytes())
        data[offset] ^= 0xFF
        file.write_bytes(data)

    def summary(self, number: int) -> None:
        """Make a manifest unreadable."""
        self.flip(f"run/manifests/{number:010d}-000.ckpt", 200)

    def body(self, number: int) -> None:
        """Damage a manifest where only those see it who read it whole."""
        self.flip(f"run/manifests/{number:010d}-000.ckpt")

    def newer(self, number: int) -> None:
        """Make a manifest one of a format that is not known yet."""
        file = pathlib.Path(f"run/manifests/{number:010d}-000.ckpt")
        data = bytearray(file.read_bytes())
        data[8:10] = (99).to_bytes(2, "little")
        data[40:48] = bytes(8)
        data[40:48] = hashlib.sha256(data[:128]).digest()[:8]  # the header's own check
        file.write_bytes(data)

    def data(self, number: int) -> str:
        """Flip the last byte of the largest file that a checkpoint wrote; return its key."""
        files = [f for f in self.store[number].manifest.tables.files if f.number == number]
        key = max(files, key=lambda file: file.nbytes).key
        self.flip(pathlib.Path("run", key))
        return key


@pytest.fixture
def damage(store: Store) -> Damage:
    """Return ways to break the store of three checkpoints."""
    return Damage(store)
