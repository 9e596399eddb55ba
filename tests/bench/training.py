"""Measure a PyTorch run: ours beside torch's own ways; `python -m tests.bench.training`.

The run is the W1 state as torch objects: a transformer's parameters and AdamW's moments, 1 GiB
in 444 tensors, with schedule and generators where the contender can keep them. Each sample is
made in a process of its own, the contenders in an order that is shuffled in each round.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.bench import machine, workloads
from tests.bench.contract import sync
from tests.bench.measuring import warm

OURS: Final = "ckptfmt"
VERSIONS: Final = frozenset(
    {"ckptfmt", "numpy", "torch", "safetensors", "torch-checkpointing", "torchdata"}
)
TRAINED: Final = 0.1  # of the parameters, where the rest is frozen
STEP_SECONDS: Final = 4.0  # of training before a save, to compare with
# What has to hold: measure, ours, theirs, and the most that ours may take of theirs.
TARGETS: Final = (
    ("save", OURS, "torch.save + fsync", 1 / 2),
    ("save", OURS, "DCP", 1.0),
    ("save", OURS, "torch_checkpointing", 1.0),
    ("resume", OURS, "DCP", 1.0),
    ("stall", OURS, "one copy, reused memory", 1.1),
    ("step", "while ckptfmt saves", "alone", 1 / 0.9),
    ("frozen", OURS, "safetensors, all of it", 0.35),
    ("frozen", "ckptfmt, frozen=", "safetensors, all of it", 0.2),
    ("tuning", OURS, "safetensors, all of it", 0.35),
    ("tuning", "ckptfmt, frozen=", "safetensors, all of it", 0.2),
)
TITLES: Final = {
    "save": "the whole run, durable: capture to commit",
    "resume": "resume in place, warm",
    "stall": "what a save in the background holds training up",
    "step": "one training step",
    "frozen": f"a model, {100 * (1 - TRAINED):.0f} % of it frozen: next save, durable",
    "tuning": "the same with the moments of what is trained: 25 % of the bytes change",
}

Act = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk to measure")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples")
    parser.add_argument("--from", type=pathlib.Path, dest="read", help="report a run kept so")
    parser.add_argument("--only", default=",".join(TITLES), help="measures")
    parser.add_argument("--act", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        measure, name, folder = options.act
        print(json.dumps(_child(measure, name, pathlib.Path(folder), quick=options.quick)))
        return
    run = json.loads(options.read.read_text()) if options.read else _measured(options)
    print(report(run))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    measures = options.only.split(",")
    todo = [(m, name) for m in measures for name in ACTS[m] if _installed(name)]
    state = workloads.workload("W1", quick=options.quick)
    folder = options.folder or pathlib.Path(tempfile.gettempdir())
    run: dict[str, Any] = {
        "nbytes": state.nbytes,
        "quick": options.quick,
        "rounds": options.rounds,
        "failures": [],
        "samples": {},  # by measure and contender: seconds
        "machine": machine.describe(folder),
        "versions": machine.versions(set(VERSIONS)),
        "load": [machine.load_average()],
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for number in range(options.rounds):
        for measure, name in random.Random(number).sample(todo, len(todo)):
            with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as scratch:
                line = [sys.executable, "-m", "tests.bench.training"]
                line += ["--quick"] if options.quick else []
                done = subprocess.run(
                    [*line, "--act", measure, name, scratch],
                    check=False, capture_output=True, text=True, timeout=900,
                )  # fmt: skip
            if done.returncode and name == OURS:
                raise SystemExit(f"{measure}, {name}: {done.stderr[-3000:]}")
            if done.returncode:  # what another library fails in does not end the run
                reason = done.stderr.strip().splitlines()[-1]
                run["failures"].append(f"{measure}, {name}: {reason}")
                print(number, run["failures"][-1], file=sys.stderr, flush=True)
                continue
            for what, seconds in json.loads(done.stdout).items():
                run["samples"].setdefault(measure, {}).setdefault(what, []).append(seconds)
                print(number, measure, what, f"{seconds:.4f} s", file=sys.stderr, flush=True)
            run["load"].append(machine.load_average())
            if options.json:  # what was measured is kept, whatever becomes of the rest
                options.json.write_text(json.dumps(run, indent=1) + "\n")
    return run


def _installed(name: str) -> bool:
    if name != "torch_checkpointing":
        return True
    try:
        import torch_checkpointing  # noqa: F401
    except ImportError:
        print(f"{name} is left out: it is not installed", file=sys.stderr)
        return False
    return True


def report(run: dict[str, Any]) -> str:
    """Return the table of a run, as Markdown: medians, extremes, and what was to be reached."""
    rows = ["| | median | lowest | highest | ours to it | wanted |", "|-|-|-|-|-|-|"]
    for measure, title in TITLES.items():
        found = {n: s for n, s in run["samples"].get(measure, {}).items() if s}
        if not found:
            continue
        rows.append(f"| **{title}** | | | | | |")
        for name, seconds in found.items():
            middle = statistics.median(seconds)
            cells = [name, *map(_shown, (middle, min(seconds), max(seconds)))]
            ratios, wanted = [], []
            for _, ours, theirs, most in (t for t in TARGETS if t[0] == measure):
                if theirs == name and ours in found:
                    ratio = statistics.median(found[ours]) / middle
                    ratios.append(f"{ratio:.2f}")
                    wanted.append(f"≤ {most:.2f} {'met' if ratio <= most else 'MISSED'}")
            rows.append(f"| {' | '.join([*cells, ', '.join(ratios), ', '.join(wanted)])} |")
    loads = [sample[0] for sample in run["load"]]
    facts = {
        key: run[key] for key in ("nbytes", "rounds", "quick", "began", "machine", "versions")
    }
    facts["load average"] = [min(loads), statistics.median(loads), max(loads)]
    failed = [f"- failed: {reason}" for reason in dict.fromkeys(run["failures"])]
    return "\n".join([*rows, "", *failed, json.dumps(facts)])


def _shown(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1000 * seconds:.2f} ms"


# --- one sample, in a process of its own --------------------------------------------------


def _child(measure: str, name: str, folder: pathlib.Path, *, quick: bool) -> dict[str, float]:
    import torch

    torch.manual_seed(1)
    ACTS[measure][name](folder / "tiny", _Run(workloads.adam(layers=1, width=64)))
    state = workloads.workload("W1", quick=quick)
    found: dict[str, float] = ACTS[measure][name](folder / "run", _Run(state.shapes))
    return found


class _Run:
    """A model of the shapes below `model/`, and AdamW as it is after a step."""

    def __init__(self, shapes: workloads.Shapes) -> None:
        import torch

        own = {p.removeprefix("model/"): s for p, s in shapes.items() if p.startswith("model/")}
        model = torch.nn.Module()
        for path, shape in own.items():
            parameter = torch.nn.Parameter(torch.rand(shape))
            model.register_parameter(path.replace(".", "_"), parameter)
        self.model = model
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.update()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1000)

    def freeze(self) -> list[str]:
        """Freeze the largest part of the parameters; return the names of that part."""
        import torch

        left = TRAINED * sum(p.numel() for p in self.parameters)
        trained, frozen = [], []
        for name, parameter in self.model.named_parameters():
            keep = parameter.numel() <= left and "h_" in name
            left -= parameter.numel() if keep else 0
            parameter.requires_grad_(keep)
            (trained.append(parameter) if keep else frozen.append(name))
        self.parameters = trained
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.update()
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1000)
        return frozen

    def update(self) -> None:
        """Take one step: every trained parameter and its moments change."""
        import torch

        for parameter in self.parameters:
            parameter.grad = torch.rand_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def ours(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    @property
    def theirs(self) -> dict[str, Any]:
        return {name: value.state_dict() for name, value in self.ours.items()}

    @property
    def nbytes(self) -> int:
        moments = sum(
            v.numel() for s in self.optimizer.state.values() for v in s.values() if v.ndim
        )
        return 4 * (sum(p.numel() for p in self.model.parameters()) + moments)


def _timed(folder: pathlib.Path, nbytes: int, act: Act) -> float:
    """Return the seconds of an act, begun with nothing dirty and the page cache primed."""
    os.sync()
    block = memoryview(bytearray(8 << 20))
    with (folder / "priming").open("wb", buffering=0) as file:
        for _ in range(math.ceil(1.1 * nbytes / len(block))):
            file.write(block)
    (folder / "priming").unlink()
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


@contextlib.contextmanager
def _store(folder: pathlib.Path) -> Iterator[Any]:
    import ckptfmt

    with ckptfmt.open(folder / "store") as store:
        yield store


def _save_ours(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import ckptfmt_torch

    folder.mkdir()
    with _store(folder) as store:
        return {OURS: _timed(folder, run.nbytes, lambda: ckptfmt_torch.save(store, **run.ours))}


def _save_torch(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import torch

    folder.mkdir()

    def act() -> None:
        torch.save(run.theirs, folder / "run.pt")
        sync(folder / "run.pt")

    return {"torch.save + fsync": _timed(folder, run.nbytes, act)}


def _dcp(folder: pathlib.Path) -> Any:
    from torch.distributed.checkpoint import FileSystemWriter

    return FileSystemWriter(folder / "dcp", sync_files=True)


def _save_dcp(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    from torch.distributed import checkpoint

    folder.mkdir()

    def act() -> None:
        checkpoint.save(run.theirs, storage_writer=_dcp(folder), no_dist=True)

    return {"DCP": _timed(folder, run.nbytes, act)}


def _save_checkpointing(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    from torch_checkpointing import CheckpointManager
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    folder.mkdir()
    # As it comes, it fails on ext4 (EINVAL): small items are not aligned for O_DIRECT.
    config = CheckpointManager.Config.with_sync_save()
    config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
    manager = CheckpointManager(config)

    def act() -> None:
        manager.save(str(folder / "tc"), run.theirs)
        for file in sorted((folder / "tc").rglob("*")):
            if file.is_file():
                sync(file)

    try:
        return {"torch_checkpointing": _timed(folder, run.nbytes, act)}
    finally:
        manager.close()


def _resume_ours(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import ckptfmt_torch

    folder.mkdir()
    with _store(folder) as store:
        ckptfmt_torch.save(store, **run.ours)
    warm(folder)  # it was written past the page cache
    with _store(folder) as store:
        return {
            OURS: _timed(folder, run.nbytes, lambda: ckptfmt_torch.resume(store, **run.ours))
        }


def _resume_dcp(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    from torch.distributed import checkpoint

    folder.mkdir()
    checkpoint.save(run.theirs, storage_writer=_dcp(folder), no_dist=True)
    warm(folder)

    def act() -> None:
        state = run.theirs
        reader = checkpoint.FileSystemReader(folder / "dcp")
        checkpoint.load(state, storage_reader=reader, no_dist=True)
        run.scheduler.load_state_dict(state["scheduler"])

    return {"DCP": _timed(folder, run.nbytes, act)}


def _resume_torch(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import torch

    folder.mkdir()
    torch.save(run.theirs, folder / "run.pt")
    warm(folder)

    def act() -> None:
        state = torch.load(folder / "run.pt", mmap=True)
        for name, value in run.ours.items():
            value.load_state_dict(state[name])

    return {"torch.load(mmap=True)": _timed(folder, run.nbytes, act)}


def _stall_ours(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import ckptfmt_torch

    folder.mkdir()
    pending: list[Any] = []

    def act() -> None:
        pending.append(ckptfmt_torch.save(store, background=True, **run.ours))

    with _store(folder) as store:
        first = _timed(folder, run.nbytes, act)  # into memory that is new
        pending[0].wait()  # and is kept
        run.update()
        return {OURS: _timed(folder, run.nbytes, act), "ckptfmt, first save": first}


def _stall_copy(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    import torch

    folder.mkdir()
    source = [
        *(p.detach() for p in run.model.parameters()),
        *(v for s in run.optimizer.state.values() for v in s.values()),
    ]
    target = [torch.zeros_like(tensor) for tensor in source]

    def act() -> None:
        for kept, tensor in zip(target, source, strict=True):
            kept.copy_(tensor)

    act()
    run.update()
    return {"one copy, reused memory": _timed(folder, run.nbytes, act)}


def _step(folder: pathlib.Path, run: _Run) -> dict[str, float]:
    """Train something on one thread, alone and while the run is written behind it."""
    import torch

    import ckptfmt_torch

    folder.mkdir()
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(6)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.rand(256, 512)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    def rate(until: Callable[[], bool]) -> float:
        begin, steps = time.perf_counter(), 0
        while not until():
            step()
            steps += 1
        return (time.perf_counter() - begin) / steps

    def after(seconds: float) -> Callable[[], bool]:
        end = time.perf_counter() + seconds
        return lambda: time.perf_counter() > end

    small = run.nbytes < 2**28
    with _store(folder) as store:
        ckptfmt_torch.save(store, background=True, **run.ours).wait()
        run.update()
        os.sync()
        rate(after(0.5))
        alone = rate(after(0.2 if small else STEP_SECONDS))
        pending = ckptfmt_torch.save(store, background=True, **run.ours)
        during = rate(pending.done)
    return {"alone": alone, "while ckptfmt saves": during}


def _frozen(folder: pathlib.Path, run: _Run, *, moments: bool, named: bool) -> dict[str, float]:
    import ckptfmt_torch

    folder.mkdir()
    frozen = [f"model/{each}" for each in run.freeze()]
    saved = run.ours if moments else {"model": run.model}
    with _store(folder) as store:
        for _ in range(2):  # the second one puts what changes into files of its own
            ckptfmt_torch.save(store, **saved)
            run.update()
        seconds = _timed(
            folder,
            run.nbytes,
            lambda: ckptfmt_torch.save(store, frozen=frozen if named else (), **saved),
        )
    return {"ckptfmt, frozen=" if named else OURS: seconds}


def _frozen_safetensors(folder: pathlib.Path, run: _Run, *, moments: bool) -> dict[str, float]:
    from safetensors.torch import save_file

    folder.mkdir()
    run.freeze()

    def act() -> None:
        kept = {
            f"{n}.{key}": value
            for n, s in enumerate(run.optimizer.state.values() if moments else ())
            for key, value in s.items()
        }
        save_file({**run.model.state_dict(), **kept}, folder / "run.safetensors")
        sync(folder / "run.safetensors")

    return {"safetensors, all of it": _timed(folder, run.nbytes, act)}


def _frozen_acts(*, moments: bool) -> dict[str, Act]:
    return {
        OURS: functools.partial(_frozen, moments=moments, named=False),
        "frozen=": functools.partial(_frozen, moments=moments, named=True),
        "safetensors": functools.partial(_frozen_safetensors, moments=moments),
    }


ACTS: Final[dict[str, dict[str, Callable[[pathlib.Path, _Run], dict[str, float]]]]] = {
    "save": {
        OURS: _save_ours,
        "torch.save + fsync": _save_torch,
        "DCP": _save_dcp,
        "torch_checkpointing": _save_checkpointing,
    },
    "resume": {OURS: _resume_ours, "DCP": _resume_dcp, "torch.load": _resume_torch},
    "stall": {OURS: _stall_ours, "copy": _stall_copy},
    "step": {OURS: _step},
    "frozen": _frozen_acts(moments=False),
    "tuning": _frozen_acts(moments=True),
}


if __name__ == "__main__":
    main()
