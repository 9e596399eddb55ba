"""Every generator goes on where it was; what cannot is said."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from nets import net
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import MismatchError, UsageError
from ckptfmt_torch import generators


def draws() -> list[Any]:
    """Draw from each global generator, the cached half of a normal pair included."""
    return [
        random.random(), random.gauss(0, 1), np.random.standard_normal(),
        torch.rand(3).tolist(), torch.randn(17).tolist(),
    ]  # fmt: skip


def test_global_generators_go_on(store: ckptfmt.Store) -> None:
    draws()
    saved = ckptfmt_torch.save(store, model=net())
    expected = draws(), draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    ckptfmt_torch.restore(saved, model=net())

    assert (draws(), draws()) == expected


def test_generators_are_left_alone_when_asked(store: ckptfmt.Store) -> None:
    saved = ckptfmt_torch.save(store, model=net())
    model = net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    ckptfmt_torch.restore(saved, model=model, rng=False)

    assert torch.equal(torch.rand(3), expected)
    assert "rng" not in ckptfmt_torch.capture(model=model, rng=False)


def test_own_generators_of_both_libraries(store: ckptfmt.Store) -> None:
    def make(seed: int) -> dict[str, Any]:
        return {"a": torch.Generator().manual_seed(seed), "b": np.random.default_rng(seed)}

    def drawn(found: dict[str, Any]) -> list[Any]:
        return [torch.rand(2, generator=found["a"]).tolist(), found["b"].random(3).tolist()]

    own = make(1)
    drawn(own)
    saved = ckptfmt_torch.save(store, model=net(), generators=own)
    expected = drawn(own)
    other = make(2)
    ckptfmt_torch.restore(saved, model=net(), generators=other)

    assert drawn(other) == expected
    with pytest.raises(MismatchError, match="generators"):
        ckptfmt_torch.restore(saved, model=net(), generators={"a": torch.Generator()})
    with pytest.raises(UsageError, match="found='int'"):
        ckptfmt_torch.capture(model=net(), generators={"a": 3})  # type: ignore[dict-item]


def test_a_loader_shuffles_on_in_the_same_order(store: ckptfmt.Store) -> None:
    data = TensorDataset(torch.arange(32))

    def make(seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(data, batch_size=8, sampler=RandomSampler(data, generator=generator))

    loader = make(1)
    list(loader)
    saved = ckptfmt_torch.save(store, model=net(), loader=loader)
    expected = [batch.tolist() for (batch,) in loader]
    other = make(2)
    report = ckptfmt_torch.restore(saved, model=net(), loader=other)

    assert [batch.tolist() for (batch,) in other] == expected
    assert [finding.name for finding in report.findings] == ["data/loader"]
    assert "shown again" in report.findings[0].reason


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_a_loader_with_a_state_goes_on_within_the_pass(store: ckptfmt.Store) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    data = TensorDataset(torch.arange(32))

    def make() -> Any:
        return stateful(data, batch_size=4, shuffle=True)

    torch.manual_seed(1)
    loader = make()
    passing = iter(loader)
    next(passing), next(passing)
    saved = ckptfmt_torch.save(store, model=net(), loader=loader)
    expected = [batch.tolist() for (batch,) in passing]
    other = make()
    report = ckptfmt_torch.restore(saved, model=net(), loader=other)

    assert [batch.tolist() for (batch,) in other] == expected
    assert len(expected) == 6
    assert report.findings == ()


@pytest.mark.parametrize("nbytes", [16, 816])
@pytest.mark.parametrize("here", [16, 816])
def test_both_layouts_of_cuda_are_understood(nbytes: int, here: int) -> None:
    philox = np.arange(16, dtype=np.uint8)
    stored = np.concatenate([np.full(nbytes - 16, 0xFF, np.uint8), philox])

    found = generators.convert(stored, here, "rng/devices/cuda:0")

    assert found.nbytes == here
    assert found[-16:].tolist() == philox.tolist()
    assert (found[:-16] == 0xFF).all()


def test_an_unknown_layout_of_cuda_is_refused() -> None:
    with pytest.raises(MismatchError, match="layout") as caught:
        generators.convert(np.zeros(17, np.uint8), 16, "rng/devices/cuda:0")

    assert caught.value.where["path"] == "rng/devices/cuda:0"


def test_devices_that_are_not_here_are_counted(store: ckptfmt.Store) -> None:
    state = ckptfmt_torch.capture(model=(model := net()))
    state["rng"]["devices"] = {f"cuda:{n}": np.zeros(16, np.uint8) for n in (70, 71)}
    saved = store.save(state)

    report = ckptfmt_torch.restore(saved, model=model)

    assert "0 of 2 generators" in report.findings[0].reason


@pytest.mark.parametrize("stored", [16, 816])
@pytest.mark.parametrize("here", [16, 816])
def test_the_states_of_devices_are_put_back_in_the_layout_of_this_torch(
    store: ckptfmt.Store, monkeypatch: pytest.MonkeyPatch, stored: int, here: int
) -> None:
    """Two devices that stand for CUDA; what is set is what the other layout holds."""
    device = [torch.full((here,), 255, dtype=torch.uint8) for _ in range(2)]
    monkeypatch.setattr(generators, "_devices", lambda: len(device))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda n: device[n])
    model = net()
    state = ckptfmt_torch.capture(model=model)
    for n in range(2):
        full = np.concatenate([np.full(stored - 16, 255), np.arange(16) + 16 * n])
        state["rng"]["devices"][f"cuda:{n}"] = full.astype(np.uint8)
    saved = store.save(state)
    put: dict[int, torch.Tensor] = {}
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, n: put.__setitem__(n, s))

    report = ckptfmt_torch.restore(saved, model=model)

    assert report.findings == ()
    assert [put[n].tolist() for n in range(2)] == [
        [255] * (here - 16) + list(range(16 * n, 16 * n + 16)) for n in range(2)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("nbytes", [16, 816])
def test_both_layouts_go_on_with_the_same_draws(store: ckptfmt.Store, nbytes: int) -> None:
    torch.cuda.init()
    torch.rand(3, device="cuda")
    state = ckptfmt_torch.capture(model=(model := net()))
    philox = state["rng"]["devices"]["cuda:0"][-16:]
    filler = np.full(nbytes - 16, 255, np.uint8)
    state["rng"]["devices"]["cuda:0"] = np.concatenate([filler, philox])
    saved = store.save(state)
    expected = torch.rand(5, device="cuda"), torch.randn(5, device="cuda")
    torch.cuda.manual_seed(9)

    ckptfmt_torch.restore(saved, model=model)

    assert torch.equal(torch.rand(5, device="cuda"), expected[0])
    assert torch.equal(torch.randn(5, device="cuda"), expected[1])


@pytest.mark.gpu
def test_the_generator_of_a_device_goes_on(store: ckptfmt.Store) -> None:
    torch.cuda.init()
    saved = ckptfmt_torch.save(store, model=net())
    expected = torch.rand(5, device="cuda")
    torch.cuda.manual_seed(9)
    ckptfmt_torch.restore(saved, model=net())

    assert torch.equal(torch.rand(5, device="cuda"), expected)
