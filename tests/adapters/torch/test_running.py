"""`save` and `resume`: the whole run in one call, and what differs from how it was trained."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from nets import everything, net, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import UsageError


def build() -> dict[str, Any]:
    model = net()
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}


def test_a_first_run_begins_and_a_second_goes_on(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    run = build()
    assert ckptfmt_torch.resume(store, **run) is None
    train(run["model"], run["optimizer"], 2)
    ckptfmt_torch.save(store, counters={"seen": 16}, metrics={"loss": 0.5}, **run)
    expected = train(run["model"], run["optimizer"], 2), everything(*run.values())

    with ckptfmt.open(store.url) as later:
        other = build()
        found = ckptfmt_torch.resume(later, **other)
        assert found is not None
        checkpoint, report = found
        assert (checkpoint.counters["seen"], checkpoint.metrics["loss"]) == (16, 0.5)
        assert report.ok
        assert report.findings == ()
        again = train(other["model"], other["optimizer"], 2), everything(*other.values())
        child = ckptfmt_torch.save(later, counters={"seen": 32}, **other)

    assert again == expected
    assert child.parent == (checkpoint.number, checkpoint.id)


def test_a_background_save_holds_the_moment_of_the_call(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    run = build()
    train(run["model"], run["optimizer"], 1)
    expected = everything(*run.values())[:2]

    pending = ckptfmt_torch.save(store, background=True, **run)
    train(run["model"], run["optimizer"], 3)
    checkpoint = pending.wait()  # type: ignore[union-attr]

    other = build()
    ckptfmt_torch.restore(checkpoint, **other)
    assert everything(*other.values())[:2] == expected


def test_how_it_was_trained_is_recorded_beside_the_callers_own(store: ckptfmt.Store) -> None:
    run = build()
    run["loader"] = DataLoader(TensorDataset(torch.zeros(8)), batch_size=4)
    run["scheduler"] = torch.optim.lr_scheduler.StepLR(run["optimizer"], 3)
    saved = ckptfmt_torch.save(
        store, hyperparameters={"mine": 1}, loss=nn.functional.cross_entropy, **run
    )

    found = saved.hyperparameters
    assert found["mine"] == 1
    assert found["torch"]["optimizer"]["class"] == "torch.optim.adam.Adam"
    assert found["torch"]["optimizer"]["settings"]["lr"] == 0.01
    assert found["torch"]["data/loader"]["batch_size"] == 4
    assert found["torch"]["scheduler"]["class"] == "torch.optim.lr_scheduler.StepLR"
    assert found["torch"]["loss"] == "torch.nn.functional.cross_entropy"
    with pytest.raises(UsageError, match="torch"):
        ckptfmt_torch.save(store, hyperparameters={"torch": 1}, **run)


def test_other_settings_are_findings(store: ckptfmt.Store) -> None:
    def run(batch_size: int, lr: float) -> dict[str, Any]:
        model = net()
        loader: DataLoader[Any] = DataLoader(TensorDataset(torch.zeros(8)), batch_size)
        optimizer = torch.optim.Adam(model.parameters(), lr)
        return {"model": model, "optimizer": optimizer, "loader": loader}

    ckptfmt_torch.save(store, loss=nn.CrossEntropyLoss(), **run(4, 0.1))

    found = ckptfmt_torch.resume(store, loss=nn.MSELoss(), **run(8, 0.2))

    assert found is not None
    differences = {f.name: (f.saved, f.now) for f in found[1].findings}
    assert differences == {
        "hyperparameters/torch/data/loader/batch_size": (4, 8),
        "hyperparameters/torch/optimizer/settings/lr": (0.1, 0.2),
        "hyperparameters/torch/loss": (
            "torch.nn.modules.loss.CrossEntropyLoss",
            "torch.nn.modules.loss.MSELoss",
        ),
        "data/loader": (None, None),
    }


def test_another_architecture_is_a_finding(store: ckptfmt.Store) -> None:
    def model(act: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), act)

    ckptfmt_torch.save(store, model=model(nn.ReLU()), config={"depth": 1})
    same = ckptfmt_torch.resume(store, model=model(nn.ReLU()), config={"depth": 1})
    other = ckptfmt_torch.resume(store, model=model(nn.GELU("none")), config={"depth": 2})

    assert same is not None
    assert same[1].findings == ()
    assert other is not None
    assert {f.name: (f.saved, f.now) for f in other[1].findings} == {
        "architecture/classes/1": (
            "torch.nn.modules.activation.ReLU", "torch.nn.modules.activation.GELU",
        ),
        "architecture/config/depth": (1, 2),
        "architecture/sha256": (
            store.latest().architecture["sha256"], other[1].findings[-1].now,
        ),
    }  # fmt: skip


def test_a_hundred_background_saves_leave_nothing_behind(store: ckptfmt.Store) -> None:
    import threading

    run = build()
    threads = threading.active_count()
    for step in range(100):
        ckptfmt_torch.save(store, background=True, counters={"seen": step}, **run)
    store.close()

    assert threading.active_count() == threads
    assert store.latest().counters["seen"] == 99


@pytest.mark.parametrize("name", ["save", "resume", "restore"])
def test_a_path_in_place_of_a_store_is_told_so(name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match=r"ckptfmt\.open\(path\)|store\.latest\(\)"):
        getattr(ckptfmt_torch, name)(str(tmp_path), model=net())
