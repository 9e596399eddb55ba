"""What is measured. In each: prepare, rehearse with a tiny state, then measure the act."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.bench import workloads
from tests.bench.checking import as_numpy, bits, flat, folder_nbytes
from tests.bench.contract import FIRST, Contender
from tests.bench.job import LOSS, TINY, Job, Result
from tests.bench.measuring import evict, measured, warm

REPEATS: Final = 5  # of what takes milliseconds; the median counts


def save(job: Job, contender: Contender) -> Result:
    """Save once into an empty folder."""
    state = contender.prepare(workloads.arrays(job.state))
    _rehearse(job, contender)
    folder = job.new_folder("saved")
    act = contender.saver(folder, durable=job.durable)
    result = measured(job, lambda: act(state, FIRST, LOSS))
    return result | {"nbytes": folder_nbytes(folder)}


def second_save(job: Job, contender: Contender) -> Result:
    """Save, change 5 % in place, save again: the second save is measured."""
    arrays = workloads.arrays(job.state)
    state = contender.prepare(arrays)
    _rehearse(job, contender)
    folder = job.new_folder("saved")
    saver = getattr(contender, "second_saver", contender.saver)
    act = saver(folder, durable=job.durable)
    act(state, FIRST, LOSS)
    before = folder_nbytes(folder)
    changed = workloads.change(arrays, workloads.changed(arrays))
    result = measured(job, lambda: act(state, FIRST + 1, LOSS / 2))
    return result | {"nbytes": folder_nbytes(folder) - before, "changed": changed}


def load(job: Job, contender: Contender) -> Result:
    """Load all arrays into new memory."""
    return _loading(job, contender, contender.load)


def load_mmap(job: Job, contender: Contender) -> Result:
    """Load views of the file and read every byte of them."""

    def act(folder: pathlib.Path) -> Any:
        return [_read(array) for array in flat(contender.load_mmap(folder)).values()]

    return _loading(job, contender, act)


def load_and_read(job: Job, contender: Contender) -> Result:
    """Load all arrays, mapped if the contender can, and read every byte of them."""
    if hasattr(contender, "load_mmap"):
        return load_mmap(job, contender)

    def act(folder: pathlib.Path) -> Any:
        return [_read(array) for array in flat(contender.load(folder)).values()]

    return _loading(job, contender, act)


def load_into(job: Job, contender: Contender) -> Result:
    """Fill arrays that are there."""
    target = contender.prepare(workloads.blank(job.state))
    own = contender.prepare(workloads.blank(TINY))
    tiny = str(pathlib.Path(job.scratch) / "tiny")

    def act(folder: pathlib.Path) -> None:
        contender.load_into(folder, own if str(folder) == tiny else target)

    return _loading(job, contender, act)


def listing(job: Job, contender: Contender) -> Result:
    """Open the checkpoint, list all arrays."""
    return _loading(job, contender, contender.listing, repeats=REPEATS)


def one(job: Job, contender: Contender) -> Result:
    """Open the checkpoint, load one array and read every byte of it."""
    path = job.state.one

    def act(folder: pathlib.Path) -> Any:
        if folder.name == "tiny":
            return contender.one(folder, TINY.one)
        return _read(contender.one(folder, path))

    return _loading(job, contender, act, repeats=REPEATS)


def many_saves(job: Job, contender: Contender) -> Result:
    """Save a small state again and again into one folder, each time with other values."""
    arrays = workloads.arrays(job.state)
    state = contender.prepare(arrays)
    _rehearse(job, contender)
    act = contender.saver(job.new_folder("saved"), durable=job.durable)
    numbers = iter(range(FIRST, FIRST + job.state.checkpoints))

    def change() -> None:
        for array in arrays.values():
            np.add(array, 1, out=array)

    return measured(
        job,
        lambda: act(state, next(numbers), LOSS),
        repeats=job.state.checkpoints,
        before=change,
        value=sum,
    )


def list_run(job: Job, contender: Contender) -> Result:
    """List all checkpoints of a run with a counter and a metric."""
    return _loading(job, contender, contender.list_run, repeats=REPEATS)


def _loading(
    job: Job, contender: Contender, act: Callable[[pathlib.Path], Any], *, repeats: int = 1
) -> Result:
    folder = pathlib.Path(job.fixture)
    act(_tiny(job, contender))
    if job.cold:
        return measured(job, lambda: act(folder), repeats=repeats, before=lambda: evict(folder))
    warm(folder)
    return measured(job, lambda: act(folder), repeats=repeats)


def _read(array: Any) -> int:
    """Read every byte, as fast as memory allows."""
    return int(np.bitwise_xor.reduce(bits(as_numpy(array))))


def _tiny(job: Job, contender: Contender) -> pathlib.Path:
    """Return a folder with a tiny checkpoint: a first call pays for imports."""
    folder = job.new_folder("tiny")
    writer: Any = importlib.import_module(f"tests.bench.contenders.{contender.READS}")
    writer.saver(folder, durable=False)(writer.prepare(workloads.arrays(TINY)), FIRST, LOSS)
    return folder


def _rehearse(job: Job, contender: Contender) -> None:
    act = contender.saver(job.new_folder("rehearsal"), durable=job.durable)
    act(contender.prepare(workloads.arrays(TINY)), FIRST, LOSS)
