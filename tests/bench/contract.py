"""What a contender is: a module in `contenders/` with these names, or some of them.

A function that is missing is a measure that the contender does not take part in. Only what the
measures in `worker.py` call "act" is timed: opening a saver and preparing a state are not.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from tests.bench.workloads import BFLOAT16, Arrays

Saver: TypeAlias = Callable[[Any, int, float], None]
"""Saves (prepared state, examples seen, validation loss) as one more checkpoint."""

Listing: TypeAlias = list[tuple[str, tuple[int, ...], str]]
"""(path, shape, dtype in the contender's words) of each array."""

FIRST: Final = 1  # examples seen at the first checkpoint: the one that loads read

# In the order of the tables. The ratios are to the second one and to the best limit.
CONTENDERS: Final = (
    "ckptfmt_store",
    "safetensors_numpy",
    "ckptfmt_unverified",
    "ckptfmt_mapped",
    "ckptfmt_frozen",
    "safetensors_torch",
    "torch_save",
    "torch_save_without_crc",
    "torch_load_mmap",
    "torch_dcp",
    "torchsnapshot_files",
    "torch_checkpointing_files",
    "tensorizer_file",
    "orbax_files",
    "keras_model",
    "keras_weights",
    "h5py_file",
    "numpy_savez",
    "limit_page_cache",
    "limit_direct",
    "limit_mapped",
)
OURS: Final = "ckptfmt_store"
PEER: Final = "safetensors_numpy"
LIMITS: Final = ("limit_page_cache", "limit_direct", "limit_mapped")

# In every round, of all measures; a failure of one fails the run. The others take minutes.
CORE: Final = (
    OURS, "ckptfmt_unverified", "ckptfmt_mapped", "ckptfmt_frozen", PEER, *LIMITS,
)  # fmt: skip
# What cannot live with each other, or with the oldest of our dependencies. See
# `environments.py`; the rest runs where the benchmark itself does.
ENVIRONMENTS: Final[dict[str, tuple[str, ...]]] = {
    "torch": (
        "safetensors_torch", "torch_save", "torch_save_without_crc", "torch_load_mmap",
        "torch_dcp", "torchsnapshot_files", "torch_checkpointing_files", "tensorizer_file",
    ),
    "jax": ("orbax_files", "keras_model", "keras_weights", "h5py_file"),
}  # fmt: skip

FUNCTIONS: Final = (
    "saver", "second_saver", "load", "load_into", "load_mmap", "listing", "one", "list_run",
)  # fmt: skip


class Contender(Protocol):
    """The names in a contender's module."""

    NAME: str  # in the tables
    READS: str  # module whose files it loads: its own, unless it is another way to load
    DISTRIBUTIONS: tuple[str, ...]  # whose versions are recorded
    ONLY: tuple[str, ...]  # keys of the measures it takes part in; not there: in all
    WITHOUT: tuple[str, ...]  # workloads that it cannot store; not there: none

    def prepare(self, arrays: Arrays) -> Any:
        """Return the state as the contender wants it, over the same memory."""

    def saver(self, folder: pathlib.Path, *, durable: bool) -> Saver:
        """Return what saves into a folder; `durable` means synced, file and folder."""

    def second_saver(self, folder: pathlib.Path, *, durable: bool) -> Saver:
        """Return what saves when little has changed, if that is another way."""

    def load(self, folder: pathlib.Path) -> Mapping[str, Any]:
        """Return all arrays in new memory; keys are paths, or their parts when nested."""

    def load_into(self, folder: pathlib.Path, state: Any) -> None:
        """Fill the arrays of a prepared state."""

    def values(self, state: Any) -> Mapping[str, Any]:
        """Return the arrays of a prepared state, if it does not share their memory."""

    def load_mmap(self, folder: pathlib.Path) -> Mapping[str, Any]:
        """Return arrays over the stored file."""

    def listing(self, folder: pathlib.Path) -> Listing:
        """Return path, shape and dtype of all arrays."""

    def one(self, folder: pathlib.Path, path: str) -> Any:
        """Return one array; the checkpoint is not open yet."""

    def list_run(self, folder: pathlib.Path) -> list[tuple[int, float]]:
        """Return (examples seen, loss) of all checkpoints, oldest first."""


def plain(array: Any) -> Any:
    """Return the bits of a dtype that NumPy itself lacks as integers, over the same memory."""
    return array.view(np.uint16) if array.dtype.name == BFLOAT16 else array


def nested(arrays: Arrays) -> dict[str, Any]:
    """Return the same arrays as a tree of dicts: `/` parts the names."""
    state: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, name = path.split("/")
        inner = state
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = array
    return state


def sync_tree(folder: pathlib.Path) -> None:
    """Make all files below a folder, and their names, durable."""
    for path in (folder, *folder.rglob("*")):
        sync(path)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file and its name durable: what `durable` means for all contenders."""
    for each in (os.fspath(path), os.path.dirname(path)):
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
