"""One array over the stored file instead of a copy; verified when it is first looked at."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

import ckptfmt
from tests.bench.contenders.ckptfmt_store import prepare as prepare

NAME = "ckptfmt, mmap=True"
READS = "ckptfmt_store"
DISTRIBUTIONS = ("ckptfmt",)


def one(folder: pathlib.Path, path: str) -> Any:
    return np.asarray(ckptfmt.open(folder).latest().lazy(path, mmap=True))
