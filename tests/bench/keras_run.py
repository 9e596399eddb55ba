"""Measure a Keras run: ours beside Keras' own ways; `python -m tests.bench.keras_run`.

A network of 16 layers of 2048 x 2048 with Adam's moments, 0.8 GB; one of 800 tiny variables,
2,400 with the moments; and what our callback costs a batch when no save is due. Each sample is
made in a process of its own, the contenders in an order that is shuffled in each round.
KERAS_BACKEND says on which backend.
"""

from __future__ import annotations

import argparse
import json
import math
import os
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

from tests.bench import machine, measuring
from tests.bench.contract import sync

OURS: Final = "ckptfmt"
VERSIONS: Final = frozenset(
    {"ckptfmt", "keras", "torch", "jax", "tensorflow", "tensorflow-cpu", "numpy", "h5py",
     "orbax-checkpoint"}
)  # fmt: skip
STEPS: Final = 200  # batches over which the cost of one is averaged
# What has to hold: measure, contender it is held against or None, most, and its unit.
TARGETS: Final = (
    ("save", ".keras + fsync", 1 / 3, "of its time"),
    ("save", ".weights.h5 + fsync", 1 / 1.5, "of its time"),
    ("tiny", ".weights.h5 + fsync", 1 / 2, "of its time"),
    ("save memory", None, 64 * 2**20, "bytes"),
    ("load memory", None, 64 * 2**20, "bytes"),
    ("batch of fit", None, 20e-6, "s"),
    ("batch of fit_virtual", None, 20e-6, "s"),
)
TITLES: Final = {
    "save": "the whole run, ours durable",
    "save memory": "peak of private memory while it is saved, above what it was",
    "load": "back into a model that is there",
    "load memory": "peak of private memory meanwhile, above what it was",
    "tiny": "2,400 tiny variables",
    "batch of fit": "CPU time of our callback in `fit`, each batch, no save due",
    "batch of fit_virtual": "the same in `fit_virtual`",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.keras_run", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk to measure")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples")
    parser.add_argument("--from", type=pathlib.Path, dest="read", help="report a run kept so")
    parser.add_argument("--only", default=",".join(ACTS), help="measures")
    parser.add_argument("--act", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        measure, name, folder = options.act
        size = (2, 64, 8) if options.quick else (16, 2048, 400)
        print(json.dumps(ACTS[measure][name](pathlib.Path(folder), *size)))
        return
    run = json.loads(options.read.read_text()) if options.read else _measured(options)
    print(report(run))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    todo = [(m, name) for m in options.only.split(",") for name in ACTS[m]]
    folder = options.folder or pathlib.Path(tempfile.gettempdir())
    run: dict[str, Any] = {
        "backend": os.environ.get("KERAS_BACKEND"),
        "quick": options.quick,
        "rounds": options.rounds,
        "failures": [],
        "samples": {},  # by measure and contender
        "machine": machine.describe(folder),
        "versions": machine.versions(set(VERSIONS)),
        "load": [machine.load_average()],
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for number in range(options.rounds):
        for measure, name in random.Random(number).sample(todo, len(todo)):
            with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as scratch:
                line = [sys.executable, "-m", "tests.bench.keras_run"]
                line += ["--quick"] if options.quick else []
                done = subprocess.run(
                    [*line, "--act", measure, name, scratch],
                    check=False, capture_output=True, text=True, timeout=900,
                )  # fmt: skip
            if done.returncode and name == OURS:
                raise SystemExit(f"{measure}, {name}: {done.stderr[-3000:]}")
            if done.returncode:  # what another way fails in does not end the run
                reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
                run["failures"].append(f"{measure}, {name}: {reason}")
                continue
            for what, found in json.loads(done.stdout.splitlines()[-1]).items():
                kind, _, who = what.rpartition(": ")
                run["samples"].setdefault(kind, {}).setdefault(who, []).append(found)
                print(number, what, found, file=sys.stderr, flush=True)
            run["load"].append(machine.load_average())
            if options.json:  # what was measured is kept, whatever becomes of the rest
                options.json.write_text(json.dumps(run, indent=1) + "\n")
    return run


def report(run: dict[str, Any]) -> str:
    """Return the table of a run, as Markdown: medians, extremes, and what was to be reached."""
    rows = ["| | median | lowest | highest | ours to it | wanted |", "|-|-|-|-|-|-|"]
    for measure, title in TITLES.items():
        found = run["samples"].get(measure, {})
        if not found:
            continue
        rows.append(f"| **{title}** | | | | | |")
        ours = statistics.median(found[OURS])
        for name, samples in found.items():
            middle = statistics.median(samples)
            cells = [_shown(measure, one) for one in (middle, min(samples), max(samples))]
            ratio = f"{ours / middle:.2f}" if middle > 0 else ""
            wanted = [
                _judged(most, unit, ours / middle if against else ours)
                for kind, against, most, unit in TARGETS
                if kind == measure and name == (against or OURS)
            ]
            rows.append(f"| {' | '.join([name, *cells, ratio, ', '.join(wanted)])} |")
    loads = [sample[0] for sample in run["load"]]
    facts = {key: run[key] for key in ("backend", "rounds", "quick", "began", "machine")}
    facts |= {"versions": run["versions"]}
    facts["load average"] = [min(loads), statistics.median(loads), max(loads)]
    failed = [f"- failed: {reason}" for reason in dict.fromkeys(run["failures"])]
    return "\n".join([*rows, "", *failed, json.dumps(facts)])


def _judged(most: float, unit: str, found: float) -> str:
    shown = f"{most:.2f} of its time" if unit == "of its time" else _unit(most, unit)
    return f"≤ {shown} {'met' if found <= most else 'MISSED'}"


def _unit(value: float, unit: str) -> str:
    return f"{value / 2**20:.0f} MiB" if unit == "bytes" else f"{1e6 * value:.0f} µs"


def _shown(measure: str, value: float) -> str:
    if measure.endswith("memory"):
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3f} s" if value >= 0.1 else f"{1e6 * value:.1f} µs"


# --- one sample, in a process of its own --------------------------------------------------


def _network(layers: int, width: int) -> Any:
    """Return a network after a step: Adam has its moments, and none of them is zero."""
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((width,)), *(keras.layers.Dense(width) for _ in range(layers))]
    )
    model.compile("adam", "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        if variable.shape:
            variable.assign(keras.random.uniform(variable.shape))
    return model


def _timed(
    measure: str, folder: pathlib.Path, nbytes: int, act: Callable[[], Any]
) -> dict[str, float]:
    """Return seconds and memory of an act, begun with nothing dirty and the disk primed."""
    os.sync()
    block = memoryview(bytearray(8 << 20))
    with (folder / "priming").open("wb", buffering=0) as file:
        for _ in range(math.ceil(1.1 * nbytes / len(block))):
            file.write(block)
    (folder / "priming").unlink()
    ended = threading.Event()
    before = measuring.resident()["private"]  # mapped files are the page cache's
    peak = [before]

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], measuring.resident()["private"])

    watching = threading.Thread(target=watch)
    watching.start()
    begin = time.perf_counter()
    act()
    seconds = time.perf_counter() - begin
    peak[0] = max(peak[0], measuring.resident()["private"])
    ended.set()
    watching.join()
    return {measure: seconds, f"{measure} memory": peak[0] - before}


def _nbytes(model: Any) -> int:
    return sum(math.prod(v.shape) * 4 for v in [*model.weights, *model.optimizer.variables])


def _saved(
    measure: str, folder: pathlib.Path, layers: int, width: int, way: str
) -> dict[str, float]:
    """Save in one of the ways, a small one first; others once more with what makes it last."""
    import keras

    import ckptfmt
    import ckptfmt_keras

    def save(model: Any, place: pathlib.Path) -> Callable[[], Any]:
        place.mkdir()
        if way == OURS:
            store = ckptfmt.open(place / "store")
            return lambda: ckptfmt_keras.save_model(model, store)
        if way == ".keras":
            return lambda: model.save(place / "run.keras")
        if way == ".weights.h5":
            return lambda: model.save_weights(place / "run.weights.h5")
        kind: Any = getattr(keras.callbacks, way)
        callback = kind(place / "backup" if way == "BackupAndRestore" else str(place / "orbax"))
        callback.set_model(model)
        if way == "BackupAndRestore":
            callback._current_epoch = 0
        return lambda: callback.on_epoch_end(0, {})

    save(_network(1, 8), folder / "first")()
    model = _network(layers, width)
    act = save(model, folder / "run")
    found = _timed(measure, folder, _nbytes(model), act)
    if way == OURS:
        return {f"{kind}: {way}": value for kind, value in found.items()}
    begin = time.perf_counter()
    for file in sorted((folder / "run").rglob("*")):
        if file.is_file():
            sync(file)
    lasting = found[measure] + time.perf_counter() - begin
    rows = {f"{kind}: {way}": value for kind, value in found.items()}
    return {**rows, f"{measure}: {way} + fsync": lasting}


def _loaded(folder: pathlib.Path, layers: int, width: int, way: str) -> dict[str, float]:
    import ckptfmt
    import ckptfmt_keras

    model = _network(layers, width)
    if way == OURS:
        store = ckptfmt.open(folder / "store")
        saved: Any = ckptfmt_keras.save_model(model, store)
        act: Callable[[], Any] = lambda: ckptfmt_keras.restore(saved, model)  # noqa: E731
    else:
        model.save_weights(folder / "run.weights.h5")
        act = lambda: model.load_weights(folder / "run.weights.h5")  # noqa: E731
    found = _timed("load", folder, 0, act)
    return {f"{kind}: {way}": value for kind, value in found.items()}


def _batch(folder: pathlib.Path, *, virtual: bool) -> dict[str, float]:
    """Return the CPU time of our hooks per batch; those of a whole run without a save."""
    import numpy as np

    from ckptfmt.training import Progress
    from ckptfmt_keras import Checkpoint, fit_virtual

    spent: list[float] = []

    class Timed(Checkpoint):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            begin = time.thread_time()
            super().on_train_batch_begin(batch, logs)
            spent.append(time.thread_time() - begin)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            begin = time.thread_time()
            super().on_train_batch_end(batch, logs)
            spent[-1] += time.thread_time() - begin

    model = _network(14, 32)  # 84 variables with the moments
    x = np.zeros((8 * STEPS, 32), np.float32)
    if virtual:
        fit_virtual(
            model, (x, x), Progress(total=len(x), virtual_epochs=1),
            checkpoint=Timed(folder / "run"), batch_size=8,
        )  # fmt: skip
    else:
        model.fit(
            x, x, batch_size=8, verbose=0, callbacks=[Timed(folder / "run", save_freq=10**9)]
        )
    # The first one begins to count, the last one may save.
    name = "batch of fit_virtual" if virtual else "batch of fit"
    return {f"{name}: {OURS}": statistics.median(spent[1:-1])}


Act = Callable[[pathlib.Path, int, int, int], dict[str, float]]


def _saving(way: str) -> Act:
    return lambda folder, layers, width, _: _saved("save", folder, layers, width, way)


def _tiny(way: str) -> Act:
    def act(folder: pathlib.Path, layers: int, width: int, many: int) -> dict[str, float]:
        found = _saved("tiny", folder, many, 4, way)
        return {kind: value for kind, value in found.items() if "memory" not in kind}

    return act


def _loading(way: str) -> Act:
    return lambda folder, layers, width, _: _loaded(folder, layers, width, way)


KERAS: Final = (".keras", ".weights.h5", "BackupAndRestore", "OrbaxCheckpoint")
ACTS: Final[dict[str, dict[str, Act]]] = {
    "save": {way: _saving(way) for way in (OURS, *KERAS)},
    "load": {way: _loading(way) for way in (OURS, ".weights.h5")},
    "tiny": {way: _tiny(way) for way in (OURS, ".weights.h5")},
    "batch": {
        OURS: lambda folder, *_: _batch(folder, virtual=False),
        "fit_virtual": lambda folder, *_: _batch(folder, virtual=True),
    },
}


if __name__ == "__main__":
    main()
