"""A probe changes nothing, is replayed when asked, and determinism is set and recorded."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import bits, net
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import MismatchError, NotFoundError, UsageError

X = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


class Counting(nn.Module):
    """Draws from every generator and counts its calls in a buffer, even in `eval()`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.calls = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        torch.rand(3), np.random.rand(), random.random()
        found: torch.Tensor = self.inner(x)
        return found


def test_a_probe_leaves_everything_as_it_was(store: ckptfmt.Store) -> None:
    model = Counting().train()
    model.inner[1].eval()
    modes = [part.training for part in model.modules()]

    def all_of_it() -> list[Any]:
        return [
            bits(model.state_dict()), bits(torch.get_rng_state()), random.getstate(),
            bits(np.random.get_state()[1].tolist()), [p.training for p in model.modules()],
        ]  # fmt: skip

    before = all_of_it()
    probe = ckptfmt_torch.probe(model, X)
    saved = store.save(ckptfmt_torch.capture(model=model), probe=probe)
    ckptfmt_torch.diagnose(saved, model)

    assert all_of_it() == before
    assert [part.training for part in model.modules()] == modes
    assert probe.deterministic
    assert (probe.dtype, probe.about["device"]) == ("float32", "cpu")


def test_a_replay_does_not_disturb_what_is_resumed(store: ckptfmt.Store) -> None:
    model = Counting()
    probe = ckptfmt_torch.probe(model, X)
    saved = store.save(ckptfmt_torch.capture(model=model), probe=probe)
    expected = torch.rand(5)
    ckptfmt_torch.restore(saved, model=Counting())

    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(
    "batch",
    [(torch.ones(2, 3), torch.ones(2, 3)), {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}],
)
def test_batches_of_several_inputs_and_outputs(batch: Any, store: ckptfmt.Store) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 2.0))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
            return {"sum": (a + b) * self.weight, "pair": (a, [b.to(torch.bfloat16)]), "n": 1}

    model = Two()
    saved = store.save(
        ckptfmt_torch.capture(model=model), probe=ckptfmt_torch.probe(model, batch)
    )
    replay = ckptfmt_torch.restore(saved, model=Two()).replay

    assert replay is not None
    assert (replay.verdict, replay.elements) == ("identical", 19)


def test_when_a_probe_is_run(store: ckptfmt.Store) -> None:
    model = net()
    state = ckptfmt_torch.capture(model=model)
    without = store.save(state)
    with_one = store.save(state, probe=ckptfmt_torch.probe(model, X))

    def replay(checkpoint: ckptfmt.Checkpoint, when: Any) -> object:
        return ckptfmt_torch.restore(checkpoint, model=net(), replay=when).replay

    assert replay(without, "auto") is None
    assert replay(with_one, "never") is None
    assert replay(with_one, "always") is not None
    with pytest.raises(NotFoundError, match="no probe can be run"):
        replay(without, "always")
    with pytest.raises(NotFoundError, match="no probe"):
        ckptfmt_torch.diagnose(without, model)
    with pytest.raises(UsageError, match="expected replay"):
        replay(with_one, "often")


def test_a_model_without_outputs_has_no_probe() -> None:
    class Silent(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "nothing"

    with pytest.raises(UsageError, match="no tensor"):
        ckptfmt_torch.probe(Silent(), X)


@pytest.fixture
def _put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("_put_back")
def test_determinism_is_set_and_recorded(store: ckptfmt.Store) -> None:
    model = net()
    plain = ckptfmt_torch.save(store, model=model)
    found = ckptfmt_torch.deterministic(11)
    drawn = [random.random(), np.random.rand(), torch.rand(2).tolist()]
    ckptfmt_torch.deterministic(11)
    saved = ckptfmt_torch.save(store, model=model)
    assert isinstance(plain, ckptfmt.Checkpoint)
    assert isinstance(saved, ckptfmt.Checkpoint)

    assert [random.random(), np.random.rand(), torch.rand(2).tolist()] == drawn
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert found.settings["deterministic_algorithms"] is True
    assert any("threads" in text for text in found.remaining)
    record = saved.environment
    assert record["extra"]["torch"]["deterministic_algorithms"] is True
    assert record["extra"]["torch"]["seed"] == 11
    assert record["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(MismatchError, match="deterministic_algorithms"):
        ckptfmt_torch.restore(plain, model=model, environment="strict")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(UsageError, match="seed"):
        ckptfmt_torch.deterministic(seed)


def test_the_example_does_what_it_says() -> None:
    example = pathlib.Path(__file__).parents[3] / "examples" / "torch_same_predictions.py"

    ran = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "a clean load: identical: 8 outputs, bit for bit" in ran.stdout
