"""Optimizers come back by name, and go on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import bits, everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import MismatchError, UsageError
from ckptfmt_torch import groups

Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "SGD without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "Adam for-each": lambda p: torch.optim.Adam(p, foreach=True),
    "Adam fused": lambda p: torch.optim.Adam(p, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, weight_decay=0.1, maximize=True),
    "Adam with a tensor as rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "ASGD": torch.optim.ASGD,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Rprop": torch.optim.Rprop,
    "LBFGS": lambda p: torch.optim.LBFGS(p, max_iter=2, history_size=3),
}
if hasattr(torch.optim, "Adafactor"):
    OPTIMIZERS["Adafactor"] = torch.optim.Adafactor


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_takes_the_same_steps(name: str, store: ckptfmt.Store) -> None:
    make = OPTIMIZERS[name]
    torch.manual_seed(1)
    model = net()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    expected = train(model, optimizer, 3), everything(model, optimizer)

    torch.manual_seed(2)
    other = net()
    fresh = make(other.parameters())
    report = ckptfmt_torch.restore(saved, model=other, optimizer=fresh)

    assert (train(other, fresh, 3), everything(other, fresh)) == expected
    assert report.ok
    assert report.findings == ()


def test_every_optimizer_of_torch_is_tested() -> None:
    """Muon and SparseAdam take other parameters than this network has; see below."""
    kinds = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }

    assert kinds - {name.split()[0] for name in OPTIMIZERS} <= {
        "Optimizer", "Muon", "SparseAdam",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["Muon", "SparseAdam"])
def test_optimizers_of_special_parameters(kind: str, store: ckptfmt.Store) -> None:
    make = getattr(torch.optim, kind, None)
    if make is None:
        pytest.skip(f"torch {torch.__version__} has no {kind}")

    def build() -> tuple[nn.Embedding, torch.optim.Optimizer]:
        model = nn.Embedding(5, 3, sparse=kind == "SparseAdam")
        return model, make(model.parameters())

    def steps(model: nn.Embedding, optimizer: torch.optim.Optimizer) -> list[Any]:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randint(0, 5, (4,))).square().sum().backward()
            optimizer.step()
        return everything(model, optimizer)

    model, optimizer = build()
    steps(model, optimizer)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    expected = steps(model, optimizer)
    other, fresh = build()
    ckptfmt_torch.restore(saved, model=other, optimizer=fresh)

    assert steps(other, fresh) == expected


def test_the_order_of_parameters_decides_nothing(store: ckptfmt.Store) -> None:
    """torch's own way swaps the momenta of equal shapes here (pytorch/pytorch#1489)."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.Adam(list(model.parameters()))
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    expected = {n: bits(optimizer.state[p]) for n, p in model.named_parameters()}

    reordered = torch.optim.Adam(list(model.parameters())[::-1])
    ckptfmt_torch.restore(saved, model=model, optimizer=reordered)

    assert {n: bits(reordered.state[p]) for n, p in model.named_parameters()} == expected


def test_groups_are_found_by_their_members(store: ckptfmt.Store) -> None:
    model = net()
    fast, slow = [*model[0].parameters()], [*model[5].parameters()]
    optimizer = torch.optim.SGD([{"params": fast, "lr": 0.5}, {"params": slow, "lr": 0.1}])
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)

    swapped = torch.optim.SGD([{"params": slow}, {"params": fast}], lr=9.0)
    ckptfmt_torch.restore(saved, model=model, optimizer=swapped)

    assert [group["lr"] for group in swapped.param_groups] == [0.1, 0.5]


def test_a_group_mixed_from_different_groups_is_refused(store: ckptfmt.Store) -> None:
    model = net()
    fast, slow = [*model[0].parameters()], [*model[5].parameters()]
    optimizer = torch.optim.SGD([{"params": fast, "lr": 0.5}, {"params": slow, "lr": 0.1}])
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    mixed = torch.optim.SGD([*fast, *slow], lr=9.0)

    with pytest.raises(MismatchError, match="different settings"):
        ckptfmt_torch.restore(saved, model=model, optimizer=mixed)

    assert mixed.param_groups[0]["lr"] == 9.0


def test_frozen_and_added_parameters_are_reported(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    head, body = [*model[5].parameters()], [*model[0].parameters()]
    optimizer = torch.optim.Adam(head)
    train(model, optimizer, 1)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)

    other = torch.optim.Adam([head[0], *body])
    report = ckptfmt_torch.restore(saved, model=model, optimizer=other)

    assert {finding.name for finding in report.findings} == {
        "optimizer/state/5.bias",
        "optimizer/state/0.weight",
        "optimizer/state/0.bias",
    }
    assert bits(other.state[head[0]]) == bits(optimizer.state[head[0]])
    assert not other.state[body[0]]
    assert "5.bias" in str(report)


def test_state_that_was_not_there_when_saved_goes(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    train(model, optimizer, 1)

    ckptfmt_torch.restore(saved, model=model, optimizer=optimizer)

    assert not any(optimizer.state.values())


def test_settings_of_another_release_are_reported(store: ckptfmt.Store) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = ckptfmt_torch.capture(model=model, optimizer=optimizer)
    group = state["optimizer"]["groups"][0]
    del group["maximize"]
    group["of_the_future"] = 1
    saved = store.save(state)

    fresh = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    report = ckptfmt_torch.restore(saved, model=model, optimizer=fresh)

    found = {finding.name: finding.severity for finding in report.findings}
    assert found == {
        "optimizer/groups/0/of_the_future": "warning",
        "optimizer/groups/0/maximize": "warning",  # it is not what was asked for here
    }
    assert fresh.param_groups[0]["maximize"] is False


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_that_came_later_are_filled_as_torch_fills_them(
    name: str, store: ckptfmt.Store
) -> None:
    model = net()
    make = OPTIMIZERS[name]
    optimizer = make(model.parameters())
    later = groups.BEFORE.keys() & optimizer.param_groups[0].keys()
    state = ckptfmt_torch.capture(model=model, optimizer=optimizer)
    theirs = optimizer.state_dict()
    for key in later:
        del state["optimizer"]["groups"][0][key], theirs["param_groups"][0][key]
    fresh, oracle = make(model.parameters()), make(model.parameters())
    for key in later:  # what is set here has no part in it
        for one in (fresh, oracle):
            one.param_groups[0][key] = not one.param_groups[0][key]

    report = ckptfmt_torch.restore(store.save(state), model=model, optimizer=fresh)
    type(oracle).__setstate__(oracle, {"param_groups": theirs["param_groups"], "state": {}})

    assert {finding.name for finding in report.findings} == {
        f"optimizer/groups/0/{key}" for key in later
    }
    filled = {key: oracle.param_groups[0][key] for key in later & oracle.param_groups[0].keys()}
    assert {key: fresh.param_groups[0][key] for key in filled} == filled


def test_another_class_is_refused(store: ckptfmt.Store) -> None:
    model = net()
    saved = ckptfmt_torch.save(
        store, model=model, optimizer=torch.optim.SGD(model.parameters())
    )
    adam = torch.optim.Adam(model.parameters())
    before = everything(model, adam)

    with pytest.raises(MismatchError, match="another optimizer") as caught:
        ckptfmt_torch.restore(saved, model=model, optimizer=adam)

    assert caught.value.where["expected"] == "torch.optim.adam.Adam"
    assert caught.value.where["found"] == "torch.optim.sgd.SGD"
    assert everything(model, adam) == before


def test_a_parameter_of_no_module_is_refused() -> None:
    stray = nn.Parameter(torch.zeros(2, 7))

    with pytest.raises(UsageError, match=r"shape \(2, 7\)"):
        ckptfmt_torch.capture(model=net(), optimizer=torch.optim.SGD([stray]))


def test_several_models_and_optimizers(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    models = {"one": net(), "two": net()}
    optimizers = {n: torch.optim.Adam(m.parameters()) for n, m in models.items()}
    for name, model in models.items():
        train(model, optimizers[name], 2)
    saved = ckptfmt_torch.save(store, model=models, optimizer=optimizers)
    expected = [bits(m.state_dict()) for m in (*models.values(), *optimizers.values())]

    others = {"two": net(), "one": net()}
    fresh = {n: torch.optim.Adam(m.parameters()) for n, m in others.items()}
    ckptfmt_torch.restore(saved, model=others, optimizer=fresh)

    found = [others["one"], others["two"], fresh["one"], fresh["two"]]
    assert [bits(m.state_dict()) for m in found] == expected
    assert "one.0.weight" in saved["optimizer/one/state"]
