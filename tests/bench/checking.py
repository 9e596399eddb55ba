"""Is it the same work? What was saved comes back, bit by bit, in every way to read it."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.bench import workloads
from tests.bench.contract import FIRST, FUNCTIONS, Contender, plain
from tests.bench.job import LOSS, Job, Result
from tests.bench.workloads import Workload


def check(job: Job, contender: Contender) -> Result:
    """Save with this contender, if it saves, and compare what it and its reader load.

    The files of one that reads its own are kept: they are what the loads read.
    """
    kept = pathlib.Path(job.fixture)
    reader: Any = importlib.import_module(f"tests.bench.contenders.{contender.READS}")
    folder = kept if reader is contender else pathlib.Path(job.scratch) / "checked"
    arrays = workloads.arrays(job.state)
    if not hasattr(contender, "saver"):
        return {"compared": _compared(job.state, contender, kept, arrays)}
    folder.mkdir(parents=True)
    act = contender.saver(folder, durable=job.state.checkpoints == 1)
    state = contender.prepare(arrays)
    for number in range(job.state.checkpoints):
        if number:
            workloads.change(arrays, list(arrays))
        act(state, FIRST + number, LOSS * (number + 1))
    return {
        "nbytes": folder_nbytes(folder),
        "compared": _compared(job.state, reader, folder, arrays),
    }


def check_second(job: Job, contender: Contender) -> Result:
    """Save, change 5 % in place, save again; compare the newest checkpoint."""
    folder = job.new_folder("checked")
    arrays = workloads.arrays(job.state)
    saver = getattr(contender, "second_saver", contender.saver)
    act, state = saver(folder, durable=True), contender.prepare(arrays)
    act(state, FIRST, LOSS)
    workloads.change(arrays, workloads.changed(arrays))
    act(state, FIRST + 1, LOSS)
    reader: Any = importlib.import_module(f"tests.bench.contenders.{contender.READS}")
    return {"compared": _compared(job.state, reader, folder, arrays)}


def _compared(
    own: Workload, contender: Contender, folder: pathlib.Path, arrays: Any
) -> list[str]:
    """Load in every way that the contender has; raise unless all bits are as saved."""
    if own.checkpoints > 1 and not hasattr(contender, "list_run"):
        return []
    if own.checkpoints > 1:
        expected = [(FIRST + n, LOSS * (n + 1)) for n in range(own.checkpoints)]
        if contender.list_run(folder) != expected:
            raise AssertionError("the listed checkpoints are not those that were saved")
        return ["list_run"]
    done = [name for name in FUNCTIONS[2:7] if hasattr(contender, name)]
    for name in ("load", "load_mmap"):
        if name in done:
            _require_same(flat(getattr(contender, name)(folder)), arrays, name)
    if "load_into" in done:
        target: Mapping[str, Any] = workloads.blank(own)
        state = contender.prepare(target)
        contender.load_into(folder, state)
        filled = contender.values(state) if hasattr(contender, "values") else target
        _require_same(filled, arrays, "load_into")
    if "one" in done:
        _require_same(
            {own.one: contender.one(folder, own.one)}, {own.one: arrays[own.one]}, "one"
        )
    if "listing" in done:
        found = {path: shape for path, shape, _ in contender.listing(folder)}
        if found != own.shapes:
            raise AssertionError("the listed paths and shapes are not those that were saved")
    return done


def _require_same(found: Mapping[str, Any], expected: Mapping[str, Any], how: str) -> None:
    if found.keys() != expected.keys():
        raise AssertionError(f"{how}: other paths than were saved")
    for path, wanted in expected.items():
        array = as_numpy(found[path])
        dtypes = (wanted.dtype, plain(wanted).dtype)  # the bits, where a peer lacks the dtype
        same = array.dtype in dtypes and array.shape == wanted.shape
        if not same or not np.array_equal(bits(array), bits(wanted)):
            raise AssertionError(f"{how}: {path} is not what was saved")


def as_numpy(array: Any) -> npt.NDArray[Any]:
    """Return an array of any library; a tensor of torch in bfloat16 as its bits."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    if str(array.dtype) == "torch.bfloat16":
        array = array.view(sys.modules["torch"].uint16)
    return np.asarray(array)


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the bits as integers as wide as can be: read and compared at memory's speed."""
    view = np.ascontiguousarray(array).reshape(-1)
    wide = next(w for w in (np.uint64, np.uint32, np.uint16) if view.nbytes % w().nbytes == 0)
    return view.view(wide)


def flat(loaded: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the arrays of a nested result by path."""
    found: dict[str, Any] = {}
    for key, value in loaded.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}/"))
        else:
            found[prefix + key] = value
    return found


def folder_nbytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
