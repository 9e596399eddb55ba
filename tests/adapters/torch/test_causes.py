"""Six reasons why a loaded model predicts otherwise, each made real, found, and taken away.

The outputs are first shown to differ; then the true cause must come first in the diagnosis;
then the cause goes, and the verdict must be "identical".
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from nets import net
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.checks import Replay

X = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


def trained(seed: int = 1) -> nn.Module:
    """Return a network whose parameters and moments are not those of a new one."""
    torch.manual_seed(seed)
    model = net()
    for _ in range(3):
        model(torch.randn(8, 1, 8, 8))
    return model


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = copy.deepcopy(model).eval()(X.to(next(model.parameters()).dtype))
    return found.float()


def first(replay: Replay | None) -> tuple[str, str]:
    assert replay is not None
    assert replay.verdict == "different"
    return replay.causes[0].name, replay.causes[0].strength


def verdict(report: Any) -> str:
    assert report.replay is not None
    return str(report.replay.verdict)


@pytest.fixture
def saved(store: ckptfmt.Store) -> ckptfmt.Checkpoint:
    model = trained()
    found = ckptfmt_torch.save(store, model=model, probe=ckptfmt_torch.probe(model, X))
    assert isinstance(found, ckptfmt.Checkpoint)
    return found


def test_a_clean_reload_is_identical(saved: ckptfmt.Checkpoint) -> None:
    model = net()
    report = ckptfmt_torch.restore(saved, model=model)

    assert verdict(report) == "identical"
    assert report.findings == ()
    assert ckptfmt_torch.diagnose(saved, model.eval()).verdict == "identical"


# ---- 1 random initialisation


class Larger(nn.Module):
    """The saved network with one more layer, which begins at random."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.head = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.inner(x))
        return found


def test_an_array_left_at_its_random_beginning(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = Larger()
    probe = ckptfmt_torch.probe(model, X)
    state = ckptfmt_torch.capture(model=model)
    whole = store.save(state, probe=probe)
    del state["model"]["head.weight"]
    part = store.save(state, probe=probe)

    torch.manual_seed(2)
    loaded = Larger()
    report = ckptfmt_torch.restore(part, model=loaded, strict=False, rng=False, replay="always")

    assert not torch.equal(outputs(loaded), outputs(model))
    assert first(report.replay) == ("missing array", "observed")
    assert report.replay is not None
    assert "head.weight" in report.replay.causes[0].evidence
    assert verdict(ckptfmt_torch.restore(whole, model=loaded)) == "identical"


# ---- 2 floating-point precision


def test_another_dtype(saved: ckptfmt.Checkpoint) -> None:
    narrow = net().to(torch.bfloat16)
    report = ckptfmt_torch.restore(
        saved, model=narrow, map_dtype={torch.float32: torch.bfloat16}, replay="always"
    )
    wide = net()
    clean = ckptfmt_torch.restore(saved, model=wide)

    assert not torch.equal(outputs(narrow), outputs(wide))
    assert first(report.replay) == ("precision", "observed")
    assert verdict(clean) == "identical"


def test_autocast(saved: ckptfmt.Checkpoint) -> None:
    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = ckptfmt_torch.restore(saved, model=model)
        narrow = outputs(model)

    assert not torch.equal(narrow, outputs(model))
    assert first(report.replay) == ("precision", "proven")
    assert verdict(ckptfmt_torch.restore(saved, model=model)) == "identical"


# ---- 3 environment

PREDICTING = """
import json, sys, warnings
import numpy as np, torch
from torch import nn
import ckptfmt, ckptfmt_torch

warnings.simplefilter("ignore")  # NumPy 2 warns of the overflow that NumPy 1 avoids

class Brightened(nn.Module):
    # As image code often does: numbers of type uint8, then an offset.
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels):
        bright = [float(np.uint8(p) + 100) for p in pixels.flatten().tolist()]
        return self.scale * torch.tensor(bright)

model, store = Brightened(), ckptfmt.open(sys.argv[2])
if sys.argv[1] == "save":
    x = torch.tensor([10, 200], dtype=torch.uint8)
    ckptfmt_torch.save(store, model=model, probe=ckptfmt_torch.probe(model, x))
print(json.dumps({
    "numpy": np.__version__,
    "outputs": model(torch.tensor([10, 200])).tolist(),
    "replay": ckptfmt_torch.restore(store.latest(), model=model).replay.to_dict(),
}))
"""


def in_environment(folder: pathlib.Path, numpy: str | None, act: str) -> Any:
    """Run in a process of its own, with the NumPy that lies in a folder in front of ours."""
    script = folder / "predicting.py"
    script.write_text(PREDICTING)
    ours = [str(p) for p in (pathlib.Path(ckptfmt.__file__).parents[1], *sys.path) if str(p)]
    path = os.pathsep.join([*([numpy] if numpy else []), *ours])
    ran = subprocess.run(
        [sys.executable, str(script), act, str(folder / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.skipif(
    not os.environ.get("CKPTFMT_OLD_NUMPY"),
    reason="CKPTFMT_OLD_NUMPY names no folder with NumPy 1.26; `make test-torch` makes one",
)
def test_another_version_of_a_library(tmp_path: pathlib.Path) -> None:
    old = os.environ["CKPTFMT_OLD_NUMPY"]
    before = in_environment(tmp_path, old, "save")
    after = in_environment(tmp_path, None, "load")

    assert before["numpy"].startswith("1.26")
    assert int(after["numpy"].split(".")[0]) >= 2
    assert before["outputs"] == [110.0, 300.0]
    assert after["outputs"] == [110.0, 44.0]
    replay = after["replay"]
    assert (replay["verdict"], replay["causes"][0]["name"]) == ("different", "environment")
    assert "NEP 50" in replay["causes"][0]["evidence"]
    again = in_environment(tmp_path, old, "load")
    assert again["replay"]["verdict"] == "identical"


# ---- 4 preprocessing


class Scaler:
    """Standardise, with statistics that were fitted once."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std

    def config(self) -> dict[str, float]:
        return {"mean": self.mean, "std": self.std}


def test_other_statistics_of_a_scaler(store: ckptfmt.Store) -> None:
    model, fitted = trained(), Scaler(0.25, 0.5)
    saved = ckptfmt_torch.save(
        store,
        model=model,
        probe=ckptfmt_torch.probe(model, X, prepare=fitted),
        preprocessing=fitted.config(),
        artifacts={"labels.txt": b"a\nb\n"},
    )
    assert isinstance(saved, ckptfmt.Checkpoint)
    other = Scaler(0.3, 0.5)
    loaded = net()
    report = ckptfmt_torch.restore(
        saved,
        model=loaded,
        inputs=ckptfmt_torch.Inputs(
            prepare=other,
            preprocessing=other.config(),
            artifacts={"labels.txt": b"b\na\n"},
        ),
    )

    assert not torch.equal(loaded.eval()(fitted(X)), loaded(other(X)))
    assert first(report.replay) == ("preprocessing", "observed")
    assert {f.name for f in report.findings} == {"preprocessing/mean", "artifacts/labels.txt"}
    clean = ckptfmt_torch.restore(
        saved,
        model=loaded,
        inputs=ckptfmt_torch.Inputs(
            prepare=Scaler(**saved.preprocessing),
            preprocessing=saved.preprocessing,
            artifacts=saved.artifacts,
        ),
    )
    assert verdict(clean) == "identical"
    assert clean.findings == ()


def test_augmentation_is_off_at_inference(store: ckptfmt.Store) -> None:
    class Augmented(nn.Module):
        def __init__(self, always: bool) -> None:
            super().__init__()
            self.always, self.inner = always, net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training or self.always:
                x = x + 0.1 * torch.randn_like(x)
            found: torch.Tensor = self.inner(x)
            return found

    model = Augmented(always=False)
    saved = store.save(ckptfmt_torch.capture(model=model), probe=ckptfmt_torch.probe(model, X))
    assert verdict(ckptfmt_torch.restore(saved, model=Augmented(always=False))) == "identical"
    noisy = ckptfmt_torch.restore(saved, model=Augmented(always=True))
    assert noisy.replay is not None
    assert {c.name for c in noisy.replay.causes} == {"settings", "non-determinism"}


# ---- 5 non-deterministic operations


class Racing(nn.Module):
    """Adds parts in the order in which threads finish, as atomic additions on a GPU do."""

    def __init__(self, ordered: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(10.0 ** torch.linspace(-4, 4, 24).reshape(24, 1))
        self.how = {"ordered": ordered}  # a dict: no setting that the adapter looks at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total, lock = torch.zeros(64, dtype=torch.float32), threading.Lock()
        begin = threading.Barrier(24)
        signs = torch.cos(torch.arange(64.0))

        def add(n: int) -> None:
            nonlocal total
            with torch.no_grad():
                if not self.how["ordered"]:
                    begin.wait()
                part = self.weight[n] * torch.sin(x.flatten()[:64] * (7 * n + 1)) * signs
                with lock:
                    total = total + part * (-1) ** n * 1e4

        threads = [threading.Thread(target=add, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
            if self.how["ordered"]:
                thread.join()
        for thread in threads:
            thread.join()
        return total - total.mean()


def test_a_sum_in_the_order_in_which_threads_finish(store: ckptfmt.Store) -> None:
    racing, ordered = Racing(ordered=False), Racing(ordered=True)
    with torch.no_grad():
        runs = [racing(X) for _ in range(20)]
        assert any(not torch.equal(run, runs[0]) for run in runs)  # really differs
        assert all(torch.equal(ordered(X), ordered(X)) for _ in range(20))
    tight = {"absolute": 0.0, "relative": 0.0}
    saved = store.save(
        ckptfmt_torch.capture(model=racing), probe=ckptfmt_torch.probe(racing, X, **tight)
    )
    for _ in range(50):  # a run may agree with the stored one by chance
        replay = ckptfmt_torch.diagnose(saved, racing)
        if replay.verdict == "different" and replay.causes[0].name != "unknown":
            break

    assert first(replay) == ("non-determinism", "proven")
    saved = store.save(
        ckptfmt_torch.capture(model=ordered), probe=ckptfmt_torch.probe(ordered, X, **tight)
    )
    assert verdict(ckptfmt_torch.restore(saved, model=Racing(ordered=True))) == "identical"


# ---- 6 format and version


def block(version: int) -> nn.Sequential:
    """Return a model as two releases of its code build it: the default of eps was changed."""
    eps = {1: 1e-3, 2: 1e-5}[version]
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8, eps=eps), nn.GELU())


def test_an_old_file_in_code_with_another_default(
    tmp_path: pathlib.Path, store: ckptfmt.Store
) -> None:
    torch.manual_seed(4)
    old = block(1)
    old(torch.randn(32, 64) * 0.01)  # small variance: eps matters
    # The file of the old release: torch's own format. What it lacks is how it was built.
    torch.save(old.state_dict(), tmp_path / "old.pt")
    probe = ckptfmt_torch.probe(old, X.flatten(1))
    state = torch.load(tmp_path / "old.pt", weights_only=True)
    saved = store.save(
        {"model": {name: tensor.numpy() for name, tensor in state.items()}}, probe=probe
    )
    new, same = block(2), block(1)
    report = ckptfmt_torch.restore(saved, model=new, rng=False)
    clean = ckptfmt_torch.restore(saved, model=same, rng=False)

    assert not torch.equal(new.eval()(X.flatten(1)), same.eval()(X.flatten(1)))
    assert first(report.replay) == ("settings", "observed")
    assert report.replay is not None
    assert report.replay.causes[0].evidence == (
        "1 (BatchNorm1d) was built with eps=0.001 when saved, and eps=1e-05 here"
    )
    assert verdict(clean) == "identical"


# ---- further causes


def test_training_mode(saved: ckptfmt.Checkpoint) -> None:
    model = net()
    ckptfmt_torch.restore(saved, model=model)

    assert first(ckptfmt_torch.diagnose(saved, model.train())) == ("train mode", "proven")
    assert ckptfmt_torch.diagnose(saved, model.eval()).verdict == "identical"


def test_averaged_weights(store: ckptfmt.Store) -> None:
    model = trained()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    saved = ckptfmt_torch.save(
        store, model=model, ema=average, probe=ckptfmt_torch.probe(average.module, X)
    )
    assert isinstance(saved, ckptfmt.Checkpoint)
    loaded = net()
    report = ckptfmt_torch.restore(
        saved, model=loaded, ema=torch.optim.swa_utils.AveragedModel(net())
    )

    assert not torch.equal(outputs(loaded), outputs(average.module))
    assert first(report.replay) == ("averaged weights", "proven")


def test_a_weight_that_was_changed_after_loading(saved: ckptfmt.Checkpoint) -> None:
    model = net().eval()
    ckptfmt_torch.restore(saved, model=model)
    with torch.no_grad():
        model[5].weight[0, 0] += 1.0

    replay = ckptfmt_torch.diagnose(saved, model)

    assert first(replay) == ("changed array", "observed")
    assert "5.weight" in replay.causes[0].evidence
