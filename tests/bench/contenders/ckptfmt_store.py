"""This library as its users call it: digests on, every load verified."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import ckptfmt
from tests.bench.contract import Listing, Saver, nested
from tests.bench.workloads import Arrays

NAME = "ckptfmt"
READS = "ckptfmt_store"
DISTRIBUTIONS = ("ckptfmt", "numpy", "msgpack", "xxhash")


def prepare(arrays: Arrays) -> dict[str, Any]:
    return nested(arrays)


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    store = ckptfmt.open(folder, durable=durable)

    def save(state: Any, seen: int, loss: float) -> None:
        store.save(state, counters={"seen": seen}, metrics={"val_loss": loss})

    return save


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    return ckptfmt.load(folder)


def load_into(folder: pathlib.Path, state: Any) -> None:
    ckptfmt.load(folder, into=state)


def load_mmap(folder: pathlib.Path) -> Mapping[str, Any]:
    return ckptfmt.load(folder, mmap=True)


def listing(folder: pathlib.Path) -> Listing:
    arrays = ckptfmt.open(folder).latest().arrays
    return [(path, info.shape, info.dtype) for path, info in arrays.items()]


def one(folder: pathlib.Path, path: str) -> Any:
    return np.asarray(ckptfmt.open(folder).latest()[path])


def list_run(folder: pathlib.Path) -> list[tuple[int, float]]:
    return [(c.counters["seen"], c.metrics["val_loss"]) for c in ckptfmt.open(folder)]
