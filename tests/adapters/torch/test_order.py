"""What a restore looks at before it reads data, and what it says of all that does not fit."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nets import everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError, StateError
from ckptfmt_torch import building, generators, ranks, staging


class Recording(MemoryBackend):
    """Remembers which data files were read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def _note(self, key: str) -> None:
        if key.startswith("data/"):
            self.reads.append(key)

    def read(self, key: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        self._note(key)
        return super().read(key, offset, nbytes)

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self._note(key)
        super().read_into(key, offset, target)

    def map(self, key: str, offset: int, nbytes: int) -> memoryview:
        self._note(key)
        return super().map(key, offset, nbytes)


class Position(nn.Module):
    """Has a tensor in its extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(3)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Counting:
    """Has arrays in its state, as some callbacks do."""

    def __init__(self, *, n: int = 1) -> None:
        self.state: dict[str, Any] = {"counts": np.zeros(100), "n": [n]}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def run(last: nn.Module, act: nn.Module | None = None) -> dict[str, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(*net()[:5], last, act or nn.ReLU(), Position())
    optimizer = torch.optim.Adam(model[:7].parameters())
    train(model[:7], optimizer, 1)
    return {"model": model, "optimizer": optimizer, "callbacks": {"c": Counting()}}


@pytest.fixture
def disk() -> Recording:
    found = Recording()
    ckptfmt_torch.save(ckptfmt.open(found), **run(nn.Linear(144, 10)))
    found.reads.clear()
    return found


def test_shapes_are_compared_before_data_is_read(disk: Recording) -> None:
    other = run(nn.Linear(144, 11))
    with pytest.raises(MismatchError, match=r"5\.weight"):
        ckptfmt_torch.restore(ckptfmt.open(disk).latest(), **other)
    assert disk.reads == []

    ckptfmt_torch.restore(ckptfmt.open(disk).latest(), **run(nn.Linear(144, 10)))
    assert disk.reads != []


def test_settings_that_are_arrays_are_read_once_all_else_fits() -> None:
    def build(*, out: int = 2, rates: Sequence[float]) -> dict[str, Any]:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, out))
        parts = [model.parameters()] if len(rates) == 1 else [p.parameters() for p in model]
        groups = [
            {"params": [*part], "lr": torch.tensor(rate)}
            for part, rate in zip(parts, rates, strict=True)
        ]
        return {"model": model, "optimizer": torch.optim.Adam(groups)}

    for rates, merged in (((0.5, 0.5), (0.1,)), ((0.5, 0.25), (0.1, 0.1))):
        disk = Recording()
        ckptfmt_torch.save(ckptfmt.open(disk), **build(rates=rates))
        disk.reads.clear()
        with pytest.raises(MismatchError, match=r"1\.weight"):
            ckptfmt_torch.restore(ckptfmt.open(disk).latest(), **build(out=3, rates=merged))
        assert disk.reads == []

        right = build(rates=merged)
        ckptfmt_torch.restore(ckptfmt.open(disk).latest(), **right)
        found = [group["lr"] for group in right["optimizer"].param_groups]
        assert found == [torch.tensor(rate) for rate in rates[: len(merged)]]

    apart = build(rates=(0.1,))
    with pytest.raises(MismatchError, match="different settings"):
        ckptfmt_torch.restore(ckptfmt.open(disk).latest(), **apart)
    assert apart["optimizer"].param_groups[0]["lr"] == torch.tensor(0.1)


def test_the_architecture_is_compared_before_data_is_read(
    disk: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[list[Finding], int]] = []
    real = building.differences

    def compared(*arguments: Any) -> list[Finding]:
        told.append((real(*arguments), len(disk.reads)))
        return told[-1][0]

    monkeypatch.setattr(building, "differences", compared)
    for how in (ckptfmt_torch.restore, resumed):
        disk.reads.clear()
        report = how(ckptfmt.open(disk).latest(), **run(nn.Linear(144, 10), nn.GELU()))
        names = [finding.name for finding in report.findings]
        assert names == ["architecture/classes/6", "architecture/sha256"]
    assert [reads for _, reads in told] == [0, 0]


def resumed(checkpoint: ckptfmt.Checkpoint, **objects: Any) -> Any:
    store = ckptfmt.open(checkpoint._origin.backend)
    found = ckptfmt_torch.resume(store, **objects)
    assert found is not None
    return found[1]


def test_all_that_does_not_fit_is_named_at_once(disk: Recording) -> None:
    class Other(Counting):
        def state_dict(self) -> dict[str, Any]:
            return {"counts": np.zeros(100), "n": 5}

    model = nn.Sequential(*net()[:5], nn.Linear(144, 11), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters())
    before = everything(model, optimizer)

    with pytest.raises(MismatchError) as caught:
        ckptfmt_torch.restore(
            ckptfmt.open(disk).latest(),
            model=model,
            optimizer=optimizer,
            callbacks={"c": Counting()},
        )

    text = str(caught.value)
    for part in (
        "another optimizer", "model/5.weight", "model/6.weight", "model/7._extra_state",
    ):  # fmt: skip
        assert part in text
    assert everything(model, optimizer) == before

    right = run(nn.Linear(144, 10))
    right["callbacks"] = {"c": Other()}
    with pytest.raises(MismatchError, match=r"generators.*another kind|another kind.*generat"):
        ckptfmt_torch.restore(
            ckptfmt.open(disk).latest(), generators={"g": torch.Generator()}, **right
        )


def test_what_a_scheduler_added_is_not_put_down_to_a_release(store: ckptfmt.Store) -> None:
    def build(*, scheduled: bool) -> dict[str, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if scheduled:
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
        return {"model": model, "optimizer": optimizer}

    for before in (True, False):
        saved = ckptfmt_torch.save(store, **build(scheduled=before))
        report = ckptfmt_torch.restore(saved, **build(scheduled=not before))
        found = {f.name.rpartition("/")[2]: f for f in report.findings}
        assert found.keys() == {
            "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum",
        }  # fmt: skip
        assert all("schedulers add" in f.reason for f in found.values())
        assert {f.severity for f in found.values()} == {"info"}


def test_zeros_without_memory_are_refused(store: ckptfmt.Store) -> None:
    model = nn.Module()
    model.register_buffer("b", torch._efficientzerotensor(3))
    with pytest.raises(StateError, match=r"clone\(\)") as caught:
        ckptfmt_torch.save(store, model=model)
    assert caught.value.where["path"] == "model/b"

    model.b = model.b.clone()
    saved = ckptfmt_torch.save(store, model=model)
    assert saved.load()["model"]["b"].tolist() == [0, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["torch", "devices", "torch_generators"])
@pytest.mark.parametrize("value", [None, "x", {"a": 1}])
def test_what_is_no_state_of_generators_is_told_so(name: str, value: Any) -> None:
    state = {**generators.capture(), name: value}
    if name == "devices" and isinstance(value, dict):  # a device of another kind
        assert generators.plan(state, None, "rng")[1][0].saved == 1
        return
    with pytest.raises(MismatchError, match="generator"):
        generators.plan(state, None, "rng")
    with pytest.raises(MismatchError, match="generator"):
        ranks.seed_of({}, 1)


def test_a_default_device_decides_nothing(store: ckptfmt.Store, tmp_path: pathlib.Path) -> None:
    """As for `torch.set_default_device("cuda")`: what the adapter makes for itself is ours."""

    def build() -> dict[str, Any]:
        torch.manual_seed(1)
        model = net()
        return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), fused=True)}

    first, other = build(), build()
    train(*first.values(), 1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    try:
        with torch.device("meta"):
            saved = ckptfmt_torch.save(store, **first)
            report = ckptfmt_torch.restore(saved, **other)  # type: ignore[arg-type]
            pinned = staging._pinned(first["model"][0].weight)
            group = ckptfmt_torch.Ranks()
            assert group.share([1, 2]) == [[1, 2]]
            assert (group.gather(b"abc"), group.broadcast(b"de")) == ([b"abc"], b"de")
    finally:
        dist.destroy_process_group()

    assert report.ok
    assert everything(*other.values()) == everything(*first.values())
    assert pinned.device.type == "cpu"
