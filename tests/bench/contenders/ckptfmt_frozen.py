"""A second save that takes the caller's word for what did not change (`frozen=`)."""

from __future__ import annotations

import pathlib
from typing import Any

import ckptfmt
from tests.bench import workloads
from tests.bench.contenders import ckptfmt_store
from tests.bench.contract import Saver
from tests.bench.workloads import Arrays

NAME = "ckptfmt, frozen="
READS = "ckptfmt_store"
DISTRIBUTIONS = ("ckptfmt",)
ONLY = ("second-cached", "second-durable")


def prepare(arrays: Arrays) -> tuple[dict[str, Any], list[str]]:
    """Return the state and the paths that the change leaves alone."""
    frozen = sorted(arrays.keys() - set(workloads.changed(arrays)))
    return ckptfmt_store.prepare(arrays), frozen


def saver(folder: pathlib.Path, *, durable: bool) -> Saver:
    store = ckptfmt.open(folder, durable=durable)

    def save(state: Any, seen: int, loss: float) -> None:
        whole, frozen = state
        named = frozen if len(store) else ()
        store.save(whole, counters={"seen": seen}, metrics={"val_loss": loss}, frozen=named)

    return save
