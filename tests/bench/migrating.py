"""Measure `.pt` → store beside torch.load and a save; `python -m tests.bench.migrating`.

The file is W1 as `torch.save` writes it: 444 tensors, 1 GiB, in the page cache. Ours reads it
without PyTorch, digests the file for the report, and commits to a store, durable and verified.
The peers read it with `torch.load(weights_only=True)` and save it once more: to safetensors
with fsync, which is the least that a migration by hand does, and to a store of ours. Each
sample is made in a process of its own, in shuffled order; imports are not timed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tests.bench import machine, workloads
from tests.bench.contract import sync
from tests.bench.measuring import resident

OURS: Final = "ckptfmt migrate"
PEER: Final = "torch.load + safetensors + fsync"
MOST: Final = 1.0  # of the peer's time that ours may take
MEMORY_NBYTES: Final = 128 * 2**20  # that ours may take, whatever the file's size
_SAMPLE_SECONDS: Final = 0.002

Samples = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.migrating", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small file: does it still run?")
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk to measure")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples")
    parser.add_argument("--act", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        name, source, folder = options.act
        print(json.dumps(_sample(name, source, pathlib.Path(folder))))
        return
    samples = measured(options.rounds, options.folder, quick=options.quick)
    run = {
        "samples": samples,
        "load": [machine.load_average()],
        "machine": machine.describe(options.folder or pathlib.Path(tempfile.gettempdir())),
        "versions": machine.versions({"ckptfmt", "numpy", "safetensors", "torch"}),
    }
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    print(report(samples))
    sys.exit(0 if met(samples) else 1)


def measured(rounds: int, folder: pathlib.Path | None, *, quick: bool) -> Samples:
    """Return the samples of all contenders."""
    samples: Samples = {name: [] for name in ACTS}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        here = pathlib.Path(name)
        source = here / "model.pt"
        _child("make", source, here, quick=quick)
        for _ in range(rounds):
            for contender in random.sample(list(ACTS), len(ACTS)):
                with tempfile.TemporaryDirectory(dir=here) as into:
                    samples[contender].append(_child(contender, source, pathlib.Path(into)))
    return samples


def _child(
    name: str, source: pathlib.Path, folder: pathlib.Path, *, quick: bool = False
) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.migrating", "--act", name]
    done = subprocess.run(
        [*command, str(source), str(folder), *(["--quick"] if quick else [])],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _sample(name: str, source: str, folder: pathlib.Path) -> dict[str, float]:
    if name == "make":
        _make(source, quick="--quick" in sys.argv)
        return {}
    act = ACTS[name](source, folder)
    with open(source, "rb") as file:  # into the page cache, for all alike
        while file.read(2**24):
            pass
    sync(folder)
    before, peak, done = resident()["private"], [0], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], resident()["private"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    busy, own, began = machine.busy_seconds(), time.process_time(), time.perf_counter()
    act()
    seconds = time.perf_counter() - began
    others = (machine.busy_seconds() - busy) - (time.process_time() - own)
    done.set()
    watcher.join()
    return {
        "seconds": seconds,
        "processor": time.process_time() - own,
        "others": max(0.0, others) / seconds,
        "memory": float(max(0, peak[0] - before)),
    }


def _make(source: str, *, quick: bool) -> None:
    import torch

    state: dict[str, dict[str, Any]] = {}
    for path, array in workloads.arrays(workloads.workload("W1", quick=quick)).items():
        section, _, name = path.partition("/")
        state.setdefault(section, {})[name] = torch.from_numpy(array)
    torch.save(state, source)
    sync(source)


def _ours(source: str, folder: pathlib.Path) -> Callable[[], object]:
    from ckptfmt import migrate

    migrate.open(source)  # imports the reader
    return lambda: migrate.migrate(source, folder / "store")


def _ours_compared(source: str, folder: pathlib.Path) -> Callable[[], object]:
    from ckptfmt import migrate

    migrate.open(source)
    return lambda: migrate.migrate(source, folder / "store", verify=True)


def _by_safetensors(source: str, folder: pathlib.Path) -> Callable[[], object]:
    import torch
    from safetensors.torch import save_file

    def act() -> None:
        state = torch.load(source, weights_only=True)
        flat = {f"{s}.{n}": t for s, branch in state.items() for n, t in branch.items()}
        save_file(flat, folder / "x.safetensors")
        sync(folder / "x.safetensors")

    return act


def _by_torch(source: str, folder: pathlib.Path) -> Callable[[], object]:
    import torch

    import ckptfmt
    import ckptfmt_torch  # noqa: F401 (imported before the time begins)

    def act() -> None:
        state = torch.load(source, weights_only=True)
        plain = {s: {n: t.numpy() for n, t in branch.items()} for s, branch in state.items()}
        with ckptfmt.open(folder / "store") as store:
            store.save(plain)

    return act


ACTS: Final[dict[str, Callable[[str, pathlib.Path], Callable[[], object]]]] = {
    OURS: _ours,
    "ckptfmt migrate --verify": _ours_compared,
    PEER: _by_safetensors,
    "torch.load + ckptfmt": _by_torch,
}


def _median(samples: Samples, name: str, key: str) -> float:
    return statistics.median(one[key] for one in samples[name])


def report(samples: Samples) -> str:
    """Return a table, the ratio to the peer, and whether the targets are met."""
    head = (
        f"{'':<34}{'median':>9}{'lowest':>9}{'highest':>9}{'CPU':>9}{'memory':>10}{'others':>8}"
    )
    rows = [head]
    for name, found in samples.items():
        seconds = [one["seconds"] for one in found]
        rows.append(
            f"{name:<34}{statistics.median(seconds):>7.2f} s{min(seconds):>7.2f} s"
            f"{max(seconds):>7.2f} s{_median(samples, name, 'processor'):>7.2f} s"
            f"{max(one['memory'] for one in found) / 2**20:>6.0f} MiB"
            f"{_median(samples, name, 'others'):>8.2f}"
        )
    ratio = _median(samples, OURS, "seconds") / _median(samples, PEER, "seconds")
    memory = max(one["memory"] for one in samples[OURS]) / 2**20
    rows += [
        f"{ratio:.2f}x of {PEER}; at most {MOST:.2f}x wanted",
        f"{memory:.0f} MiB of memory; at most {MEMORY_NBYTES // 2**20} MiB wanted",
        "met" if met(samples) else "MISSED",
    ]
    return "\n".join(rows)


def met(samples: Samples) -> bool:
    """Tell whether ours takes no longer than the peer, and bounded memory."""
    ratio = _median(samples, OURS, "seconds") / _median(samples, PEER, "seconds")
    return ratio <= MOST and all(one["memory"] <= MEMORY_NBYTES for one in samples[OURS])


if __name__ == "__main__":
    main()
