"""The same files read with `verify=False`: what the verification costs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import ckptfmt
from tests.bench.contenders.ckptfmt_store import prepare as prepare

NAME = "ckptfmt, verify=False"
READS = "ckptfmt_store"
DISTRIBUTIONS = ("ckptfmt",)


def load(folder: pathlib.Path) -> Mapping[str, Any]:
    return ckptfmt.load(folder, verify=False)


def load_into(folder: pathlib.Path, state: Any) -> None:
    ckptfmt.load(folder, into=state, verify=False)


def load_mmap(folder: pathlib.Path) -> Mapping[str, Any]:
    return ckptfmt.load(folder, mmap=True, verify=False)


def one(folder: pathlib.Path, path: str) -> Any:
    return np.asarray(ckptfmt.open(folder).latest().lazy(path, verify=False))
