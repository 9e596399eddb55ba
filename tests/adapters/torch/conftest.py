"""Tests of ckptfmt_torch: run by `make test-torch`, in an environment that has torch."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from collections.abc import Iterator

import pytest

import ckptfmt

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # --import-mode=importlib does not
collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("NOT RUN: no CUDA device here")


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[ckptfmt.Store]:
    with ckptfmt.open(tmp_path / "run") as opened:
        yield opened
