"""Frozen parameters: a change is never missed, unless the caller has said there is none."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from nets import bits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ckptfmt
import ckptfmt_torch
from ckptfmt.training import Progress

FROZEN = "model/backbone.*"


def by_data(tensor: torch.Tensor) -> None:
    tensor.data.mul_(2)


def by_numpy(tensor: torch.Tensor) -> None:
    tensor.detach().numpy()[...] *= 2


@torch.inference_mode()
def by_inference_mode(tensor: torch.Tensor) -> None:
    tensor.mul_(2)


def by_storage(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data * 2


UNSEEN = [by_data, by_numpy, by_inference_mode, by_storage]  # most leave tensor._version alone
Change = Callable[[torch.Tensor], None]


def build() -> nn.ModuleDict:
    torch.manual_seed(1)
    model = nn.ModuleDict({"backbone": nn.Linear(40, 50), "head": nn.Linear(3, 4)})
    model["backbone"].requires_grad_(False)
    return model


def stored(saved: ckptfmt.Checkpoint | ckptfmt.PendingSave) -> object:
    found = saved.wait() if isinstance(saved, ckptfmt.PendingSave) else saved
    model = build()
    # Through a store of its own: a load into memory ends the trust of the one that saves.
    other = ckptfmt.open(found.url)[found.number]
    ckptfmt_torch.restore(other, model=model, rng=False)
    return bits(model.state_dict())


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("change", UNSEEN)
def test_by_default_a_change_of_a_frozen_parameter_is_never_missed(
    store: ckptfmt.Store, change: Change, background: bool
) -> None:
    model = build()
    ckptfmt_torch.save(store, model=model)
    change(model["backbone"].weight)

    saved = ckptfmt_torch.save(store, model=model, background=background)

    assert stored(saved) == bits(model.state_dict())


@pytest.mark.parametrize("change", UNSEEN)
def test_verify_frozen_stores_and_names_the_change(
    store: ckptfmt.Store, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    model = build()
    ckptfmt_torch.save(store, model=model, frozen=FROZEN)
    change(model["backbone"].weight)

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        saved = ckptfmt_torch.save(store, model=model, frozen=FROZEN, verify_frozen=True)

    assert stored(saved) == bits(model.state_dict())
    assert "'model/backbone.weight'" in caplog.text


def test_the_callers_word_spares_the_look(store: ckptfmt.Store) -> None:
    model = build()
    before = stored(ckptfmt_torch.save(store, model=model, frozen=FROZEN))
    by_data(model["backbone"].weight)  # against the caller's word: shows that nobody looked

    assert stored(ckptfmt_torch.save(store, model=model, frozen=FROZEN)) == before


def test_the_loop_hands_it_on(store: ckptfmt.Store) -> None:
    model = build()
    batches = ckptfmt_torch.BatchSampler(8, 4)
    loader = DataLoader(TensorDataset(torch.zeros(8, 40)), batch_sampler=batches)
    epochs = ckptfmt_torch.VirtualEpochs(
        store, Progress(total=16, virtual_epochs=4), loader=loader, model=model, frozen=FROZEN
    )
    for step, _ in enumerate(epochs):
        if step == 2:
            by_data(model["backbone"].weight)
            changed = bits(model.state_dict())

    assert stored(store.latest()) != changed
    assert stored(store.latest()) == stored(store[1])
