"""Tests of ckptfmt_keras: run by `make test-keras`, once for each backend, each in a process.

KERAS_BACKEND says which one; what needs several backends at once starts processes of its own.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator

import pytest

import ckptfmt

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # --import-mode=importlib does not
collect_ignore_glob = [] if importlib.util.find_spec("keras") else ["test_*"]
BACKENDS = ("torch", "jax", "tensorflow")

if not collect_ignore_glob:
    if not os.environ.get("CKPTFMT_SOAK"):  # there as many threads as the machine has
        # Tests share the cores: threads of a framework would only wait for each other's. It
        # holds for processes that tests start, too.
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ.setdefault(name, "1")
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():  # of the frameworks, while they are imported
        warnings.simplefilter("ignore")
        import keras
    if os.environ["KERAS_BACKEND"] != "torch":  # once is enough
        collect_ignore_glob += ["test_backends.py", "test_article.py"]


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[ckptfmt.Store]:
    with ckptfmt.open(tmp_path / "run") as opened:
        yield opened


@pytest.fixture
def backend() -> str:
    found: str = keras.backend.backend()
    return found


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Begin each test with the same seeds and policy, whatever the one before did."""
    keras.utils.set_random_seed(7)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")


# What the frameworks themselves do; a warning of ours is still an error.
THEIRS = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:Layer .* looks like it has unbuilt state:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if pathlib.Path(__file__).parent in item.path.parents:
            for line in THEIRS:
                item.add_marker(pytest.mark.filterwarnings(line))
