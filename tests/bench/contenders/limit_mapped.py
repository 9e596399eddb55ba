"""One array as a view of the mapped file: nothing is copied, nothing is faster."""

from __future__ import annotations

import pathlib
from typing import Any

from tests.bench.contenders.limit_page_cache import load_mmap
from tests.bench.contenders.limit_page_cache import prepare as prepare

NAME = "limit: mapped"
READS = "limit_page_cache"
DISTRIBUTIONS = ("numpy",)


def one(folder: pathlib.Path, path: str) -> Any:
    return load_mmap(folder)[path]
