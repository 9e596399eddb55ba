"""Measure what proving a load costs: environment, probe, replay; `python -m tests.bench.same`.

Environment capture has a target: below 2 ms after the first one. The probe is measured on a
small network beside one forward of it, where PyTorch is installed: an `nn.TransformerEncoder`
of 4 layers, 8 examples of 64 tokens. Best of several repeats in one process, and all of them
kept in the JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import ckptfmt
from ckptfmt.checks import environment
from ckptfmt.checks.environment import Recorder
from tests.bench import machine

TARGET_SECONDS: Final = 0.002  # of a capture after the first
CAPTURES: Final = 200
REPEATS: Final = 5

Samples = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.same", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats: does it still run?")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples")
    options = parser.parse_args()
    repeats = 2 if options.quick else REPEATS
    samples = captured(10 if options.quick else CAPTURES)
    if importlib.util.find_spec("torch"):
        samples |= probed(repeats)
    run = {
        "samples": samples,
        "load": [machine.load_average()],
        "machine": machine.describe(pathlib.Path(tempfile.gettempdir())),
        "versions": machine.versions({"ckptfmt", "numpy", "torch"}),
    }
    if options.json:
        options.json.write_text(json.dumps(run, indent=1) + "\n")
    print(report(samples))
    sys.exit(0 if met(samples) else 1)


def captured(repeats: int) -> Samples:
    """Return the seconds of the first capture, of later ones, and of comparing two records."""
    recorder = Recorder()
    first = _times(recorder.capture, 1)
    record = recorder.capture()
    return {
        "environment, first": first,
        "environment, later": _times(recorder.capture, repeats),
        "environment, compared": _times(lambda: environment.compare(record, record), repeats),
    }


def probed(repeats: int) -> Samples:
    """Return the seconds of a forward, a probe, and restores without and with a replay."""
    import torch
    from torch import nn

    import ckptfmt_torch
    from ckptfmt_torch import numerics

    def network() -> nn.Module:
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    torch.manual_seed(1)
    model, batch = network(), torch.randn(8, 64, 256)

    def forward() -> None:
        with torch.no_grad():
            model.eval()(batch)

    forward()
    with tempfile.TemporaryDirectory() as folder, ckptfmt.open(folder) as store:
        probe = ckptfmt_torch.probe(model, batch)
        saved: Any = ckptfmt_torch.save(store, model=model, probe=probe)
        other = network()

        def restore(replay: Any) -> Callable[[], object]:
            return lambda: ckptfmt_torch.restore(saved, model=other, rng=False, replay=replay)

        restore("auto")()
        return {
            "torch's settings": _times(numerics.record, repeats),
            "one forward": _times(forward, repeats),
            "probe, two forwards": _times(lambda: ckptfmt_torch.probe(model, batch), repeats),
            "restore, no replay": _times(restore("never"), repeats),
            "restore with replay": _times(restore("always"), repeats),
        }


def report(samples: Samples) -> str:
    """Return a table: fastest and median, and whether the target is met."""
    rows = [f"{'':<24}{'fastest':>10}{'median':>10}"]
    rows += [
        f"{name:<24}{1e3 * min(values):>7.2f} ms{1e3 * statistics.median(values):>7.2f} ms"
        for name, values in samples.items()
    ]
    verdict = "met" if met(samples) else "MISSED"
    return "\n".join([*rows, f"environment, later: < {1e3 * TARGET_SECONDS:.0f} ms {verdict}"])


def met(samples: Samples) -> bool:
    """Tell whether a capture after the first takes less than the target."""
    return statistics.median(samples["environment, later"]) < TARGET_SECONDS


def _times(act: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main()
