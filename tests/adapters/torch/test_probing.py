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
from ckptfmt.checks.environment import compare
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError, UsageError
from ckptfmt.training import Progress
from ckptfmt_torch import numerics

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


class Rebinding(nn.Module):
    """Binds new tensors and values in `forward`, as caches, counters and averages do."""

    steps: torch.Tensor
    mean: torch.Tensor
    cache: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("cache", None)
        self.calls = 0
        self.generator = torch.Generator().manual_seed(1)
        self.numpy = np.random.default_rng(1)
        self.python, self.legacy = random.Random(1), np.random.RandomState(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps = self.steps + 1
        self.mean.data = self.mean.data + 1
        if self.cache is None:
            self.cache = torch.ones(4)
            self.more = nn.Linear(1, 1)
        self.calls += 1
        drawn = torch.rand((), generator=self.generator) + self.numpy.random()
        drawn += self.python.random() + self.legacy.random_sample()
        found: torch.Tensor = self.layer(x) / self.steps + drawn + self.mean
        return found

    def position(self) -> list[Any]:
        return [
            bits(self.generator.get_state()), repr(self.numpy.bit_generator.state),
            self.python.getstate(), bits(self.legacy.get_state()[1].tolist()), self.calls,
            hasattr(self, "more"), self.cache, bits(self.state_dict()),
        ]  # fmt: skip


def test_what_a_forward_binds_anew_is_put_back(store: ckptfmt.Store) -> None:
    model, x = Rebinding(), torch.ones(2, 4)
    steps, mean, before = model.steps, model.mean, model.position()
    probe = ckptfmt_torch.probe(model, x)

    assert model.position() == before
    assert model.steps is steps
    assert model.mean is mean
    assert probe.deterministic
    saved = ckptfmt_torch.save(store, model=model, probe=probe)
    assert isinstance(saved, ckptfmt.Checkpoint)
    fresh = Rebinding()
    for _ in range(2):
        report = ckptfmt_torch.restore(saved, model=fresh)
        assert report.replay is not None
        assert report.replay.verdict == "identical"
        assert fresh.position() == before


def test_a_model_that_changes_its_parameters_has_no_probe() -> None:
    class Clipped(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    class Exchanged(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data = self.weight.data * 2
            return super().forward(x)

    with pytest.raises(UsageError, match="changes the values of its parameters"):
        ckptfmt_torch.probe(Clipped(2, 2), torch.ones(1, 2))
    model = Exchanged(2, 2)
    before = bits(model.state_dict())
    ckptfmt_torch.probe(model, torch.ones(1, 2))
    assert bits(model.state_dict()) == before


def test_preprocessing_draws_without_disturbing(store: ckptfmt.Store) -> None:
    def crop(x: torch.Tensor) -> torch.Tensor:
        torch.rand(3), np.random.rand(), random.random()
        return x / 2

    def position() -> list[Any]:
        legacy = bits(np.random.get_state()[1].tolist())
        return [bits(torch.get_rng_state()), legacy, random.getstate()]

    model = net()
    before = position()
    probe = ckptfmt_torch.probe(model, X, prepare=crop)
    assert position() == before
    saved = store.save(ckptfmt_torch.capture(model=model), probe=probe)
    inputs = ckptfmt_torch.Inputs(prepare=crop)
    assert ckptfmt_torch.diagnose(saved, model.eval(), inputs=inputs).ok
    assert position() == before


@pytest.mark.parametrize("layer", [nn.LazyBatchNorm1d(), nn.LazyLinear(3)])
def test_layers_without_shapes_are_refused(layer: nn.Module) -> None:
    with pytest.raises(UsageError, match="call it once before"):
        ckptfmt_torch.probe(nn.Sequential(layer), torch.ones(2, 4))


def test_a_function_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module"):
        ckptfmt_torch.probe(torch.sin, X)  # type: ignore[arg-type]


def mlp() -> nn.Sequential:
    wide = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*wide)


@pytest.mark.parametrize("other", ["initialised anew", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"])
def test_other_weights_are_no_noise(dtype: Any, other: str, store: ckptfmt.Store) -> None:
    casts = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast")
    torch.manual_seed(2)
    model = mlp().to(torch.float32 if dtype == "autocast" else dtype)
    x = torch.randn(512, 64).to(next(model.parameters()).dtype)
    with casts:
        saved = ckptfmt_torch.save(store, model=model, probe=ckptfmt_torch.probe(model, x))
        assert isinstance(saved, ckptfmt.Checkpoint)
        with torch.no_grad():  # the smallest change of a weight that rounding makes
            model[0].weight[0, 0] = model[0].weight[0, 0].nextafter(torch.tensor(1e9).to(x))
        assert ckptfmt_torch.diagnose(saved, model.eval()).ok
        with torch.no_grad():
            for layer in model:
                if other == "scaled" and isinstance(layer, nn.Linear):
                    layer.weight.mul_(1.05)
                elif isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        assert not ckptfmt_torch.diagnose(saved, model).ok


def test_a_probe_within_autocast_leaves_gradients() -> None:
    model = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        ckptfmt_torch.probe(model, torch.ones(2, 4))
        model(torch.ones(2, 4)).sum().backward()

    assert model.weight.grad is not None


@pytest.mark.parametrize("shape", [(1, 1, 160_000), (5000, 1, 16)])
def test_a_long_axis_hides_no_other_weights(shape: Any, store: ckptfmt.Store) -> None:
    model = nn.Conv1d(1, 4, 9).eval()
    x = torch.sin(torch.arange(float(np.prod(shape)))).reshape(shape)
    saved = ckptfmt_torch.save(store, model=model, probe=ckptfmt_torch.probe(model, x))
    assert isinstance(saved, ckptfmt.Checkpoint)
    with torch.no_grad():
        model.weight.mul_(1.01)

    assert not ckptfmt_torch.diagnose(saved, model).ok


def test_where_noise_cannot_be_told_it_says_so(store: ckptfmt.Store) -> None:
    torch.manual_seed(2)
    deep = nn.Sequential(*[nn.Linear(8, 8) for _ in range(48)]).bfloat16().eval()
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    plain = ckptfmt_torch.probe(deep, x)
    saved = ckptfmt_torch.save(store, model=deep, probe=plain)
    own = ckptfmt_torch.save(store, model=deep, probe=ckptfmt_torch.probe(deep, x, absolute=9))
    assert isinstance(saved, ckptfmt.Checkpoint)
    assert isinstance(own, ckptfmt.Checkpoint)

    assert (plain.absolute, plain.relative) == (0, 0)
    assert ckptfmt_torch.diagnose(saved, deep).verdict == "identical"
    with torch.no_grad():
        deep[47].bias.add_(0.01)
    replay = ckptfmt_torch.diagnose(saved, deep)
    assert replay.verdict == "different"
    assert any("cannot be told" in cause.evidence for cause in replay.causes)
    assert ckptfmt_torch.diagnose(own, deep).verdict == "within noise"


@pytest.mark.parametrize("wrong", [float("nan"), -1.0, float("inf"), "1"])
def test_tolerances_are_checked_when_the_probe_is_made(wrong: Any) -> None:
    with pytest.raises(UsageError, match="absolute must be"):
        ckptfmt_torch.probe(net(), X, absolute=wrong)


def test_a_batch_without_examples_is_refused() -> None:
    with pytest.raises(UsageError, match="not empty"):
        ckptfmt_torch.probe(nn.Linear(4, 4), torch.ones(0, 4))


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
    other = net()
    before = bits(other.state_dict())
    with pytest.raises(NotFoundError, match="no probe can be run"):
        ckptfmt_torch.restore(without, model=other, replay="always")
    assert bits(other.state_dict()) == before
    with pytest.raises(NotFoundError, match="no probe"):
        ckptfmt_torch.diagnose(without, model)
    with pytest.raises(UsageError, match="expected replay"):
        replay(with_one, "often")


@pytest.mark.parametrize(
    "partly",
    [
        {"strict": False}, {"select": "*"}, {"rename": {"0": "0"}},
        {"map_dtype": {torch.float32: torch.bfloat16}},
    ],
)  # fmt: skip
def test_what_is_restored_in_part_is_not_run_unasked(
    partly: dict[str, Any], store: ckptfmt.Store
) -> None:
    saved = store.save(ckptfmt_torch.capture(model=net()), probe=ckptfmt_torch.probe(net(), X))

    assert ckptfmt_torch.restore(saved, model=net(), **partly).replay is None
    assert ckptfmt_torch.restore(saved, model=net(), replay="always", **partly).replay


class Choosy(nn.Module):
    """Takes other inputs than it once did, as a model whose code went on."""

    def __init__(self, choosy: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.how = {"choosy": choosy}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how["choosy"]:
            raise ValueError("other inputs now")
        found: torch.Tensor = self.layer(x)
        return found


@pytest.fixture
def choosy(store: ckptfmt.Store) -> ckptfmt.Checkpoint:
    model = Choosy(False)
    probe = ckptfmt_torch.probe(model, torch.ones(1, 3))
    saved = ckptfmt_torch.save(store, model=model, probe=probe, counters={"seen": 0})
    assert isinstance(saved, ckptfmt.Checkpoint)
    return saved


def test_a_probe_that_nobody_asked_for_stops_no_run(
    choosy: ckptfmt.Checkpoint, store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    model = Choosy(True)
    found = ckptfmt_torch.resume(store, model=model)

    assert found is not None
    report = found[1]
    assert report.replay is None
    assert [f.name for f in report.findings] == ["probe"]
    assert "ValueError: other inputs now" in report.findings[0].reason
    assert "other inputs now" in caplog.text
    assert bits(model.state_dict()) == bits(
        {name: torch.tensor(np.asarray(choosy[f"model/{name}"])) for name in model.state_dict()}
    )
    with pytest.raises(ValueError, match="other inputs now"):
        ckptfmt_torch.resume(store, model=model, replay="always")
    fresh = Choosy(True)
    assert ckptfmt_torch.restore(choosy, model=fresh, replay="never").findings == ()


def test_a_damaged_probe_stops_no_run(
    choosy: ckptfmt.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(own: object) -> None:
        raise IntegrityError("damaged")

    monkeypatch.setattr(ckptfmt.Checkpoint, "probe", broken)
    report = ckptfmt_torch.restore(choosy, model=Choosy(False))
    assert "damaged" in report.findings[0].reason
    model = Choosy(False)
    before = bits(model.state_dict())
    with pytest.raises(IntegrityError, match="damaged"):
        ckptfmt_torch.restore(choosy, model=model, replay="always")
    assert bits(model.state_dict()) == before


@pytest.mark.parametrize("when", ["auto", "never", "always"])
def test_a_loop_says_whether_to_run_it(when: Any, tmp_path: pathlib.Path) -> None:
    data = torch.utils.data.TensorDataset(torch.ones(8, 3))

    def loop() -> ckptfmt_torch.VirtualEpochs:
        return ckptfmt_torch.VirtualEpochs(
            store, Progress(total=8, virtual_epochs=1), model=model, replay=when,
            loader=torch.utils.data.DataLoader(
                data, batch_sampler=ckptfmt_torch.BatchSampler(8, batch_size=4, seed=1)
            ),
        )  # fmt: skip

    model = Choosy(False)
    store = ckptfmt.open(tmp_path / "run")
    first = list(loop())
    assert len(first) == 2
    last = store.latest()
    probe = ckptfmt_torch.probe(model, torch.ones(1, 3))
    store.save(last.load(), probe=probe, counters=last.counters)
    going = loop()
    assert list(going) == []
    assert going.report is not None
    assert (going.report.replay is None) == (when == "never")


@pytest.mark.parametrize("wrong", [{}, {"prepare": None}, 3])
def test_inputs_of_another_kind_are_refused(wrong: Any, choosy: ckptfmt.Checkpoint) -> None:
    with pytest.raises(UsageError, match=r"ckptfmt_torch\.Inputs"):
        ckptfmt_torch.restore(choosy, model=Choosy(False), inputs=wrong)


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


def test_cuda_that_is_not_started_yet_is_no_other_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights are often restored before the first tensor goes to a device."""
    without = numerics.record()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    before = numerics.record()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    after = numerics.record()

    def differ(*records: dict[str, Any]) -> list[str]:
        saved, now = ({"extra": {"torch": record}} for record in records)
        return [found.name for found in compare(saved, now)]

    assert (before["devices"], after["devices"]) == (None, ["NVIDIA H200"])
    assert differ(after, before) == differ(before, after) == []
    if without["cuda"] is None:  # a torch that has no CUDA at all
        assert "torch.devices" in differ(after, without)
