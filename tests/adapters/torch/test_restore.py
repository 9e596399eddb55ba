"""All of it, in place, by name; or an error that names all that is wrong, and no change."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from nets import bits, everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError, StateError, UsageError

SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5]),
    "ConstantLR": torch.optim.lr_scheduler.ConstantLR,
    "LinearLR": torch.optim.lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": torch.optim.lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": (
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 3)
    ),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o),
            torch.optim.lr_scheduler.MultiStepLR(o, [3, 3]),
        ],
        [3],
    ),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> list[float]:
    """Step a scheduler and return the learning rates."""
    found = []
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


@pytest.mark.filterwarnings("ignore:.*epoch parameter.*:UserWarning")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_schedule_gives_the_same_rates(name: str, store: ckptfmt.Store) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        return model, optimizer, SCHEDULERS[name](optimizer)

    model, optimizer, scheduler = build()
    rates(optimizer, scheduler)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer, scheduler=scheduler)
    expected = rates(optimizer, scheduler)

    other, fresh, schedule = build()
    ckptfmt_torch.restore(saved, model=other, optimizer=fresh, scheduler=schedule)

    assert rates(fresh, schedule) == expected
    assert type(schedule.state_dict()) is type(scheduler.state_dict())


def test_plateau_and_scaler_and_average(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    average = torch.optim.swa_utils.AveragedModel(model)
    run: dict[str, Any] = {"scheduler": plateau, "scaler": scaler, "ema": average}
    for loss in (1.0, 1.0):
        plateau.step(loss)
        average.update_parameters(model)
    scaler.scale(torch.ones(()))
    scaler.update(16.0)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer, **run)
    expected = [bits(one.state_dict()) for one in run.values()]

    other = net()
    fresh = torch.optim.SGD(other.parameters(), lr=0.9)
    others: dict[str, Any] = {
        "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(fresh, patience=1),
        "scaler": torch.amp.GradScaler("cpu"),
        "ema": torch.optim.swa_utils.AveragedModel(other),
    }
    ckptfmt_torch.restore(saved, model=other, optimizer=fresh, **others)

    assert [bits(one.state_dict()) for one in others.values()] == expected
    assert fresh.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_tensors_keep_their_identity(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    before = [id(t) for t in model.state_dict(keep_vars=True).values()]
    momenta = [id(s["exp_avg"]) for s in optimizer.state.values()]

    ckptfmt_torch.restore(saved, model=model, optimizer=optimizer)

    assert [id(t) for t in model.state_dict(keep_vars=True).values()] == before
    assert [id(s["exp_avg"]) for s in optimizer.state.values()] == momenta


def test_wrappers_do_not_change_names(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(wrapped.parameters())
    train(model, optimizer, 1)
    saved = ckptfmt_torch.save(store, model=wrapped, optimizer=optimizer)

    inner = nn.Sequential(net()[0], *net()[1:])
    inner[0] = torch.compile(inner[0], backend="eager")
    fresh = torch.optim.Adam(inner.parameters())
    ckptfmt_torch.restore(saved, model=inner, optimizer=fresh)

    assert "model/0.weight" in saved.arrays
    assert bits(list(inner.parameters())) == bits(list(model.parameters()))


def test_parametrised_modules(store: ckptfmt.Store) -> None:
    def build() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

    model = build()
    saved = ckptfmt_torch.save(store, model=model)
    other = build()
    ckptfmt_torch.restore(saved, model=other)

    assert torch.equal(other.weight, model.weight)


def test_buffers_that_torch_leaves_out(store: ckptfmt.Store) -> None:
    def build(value: float) -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("kept", torch.full((2,), value), persistent=False)
        return module

    without = ckptfmt_torch.save(store, model=build(1.0))
    assert "model/kept" not in without.arrays

    saved = ckptfmt_torch.save(store, model=build(1.0), buffers="all")
    other = build(2.0)
    ckptfmt_torch.restore(saved, model=other, buffers="all")
    assert torch.equal(other.kept, torch.ones(2))


class Counting(nn.Module):
    """Has state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.calls: dict[str, Any] = {"n": 0, "when": (1, 2.5)}

    def get_extra_state(self) -> dict[str, Any]:
        return self.calls

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state


def test_extra_state(store: ckptfmt.Store) -> None:
    model = nn.Sequential(Counting())
    model[0].calls["n"] = 7
    saved = ckptfmt_torch.save(store, model=model)

    other = nn.Sequential(Counting())
    ckptfmt_torch.restore(saved, model=other)

    assert other[0].calls == {"n": 7, "when": (1, 2.5)}


def test_extra_state_on_one_side_only_is_refused(store: ckptfmt.Store) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

    counting = ckptfmt_torch.save(store, model=Counting())
    plain = ckptfmt_torch.save(store, model=Plain())

    with pytest.raises(MismatchError, match="does not take"):
        ckptfmt_torch.restore(counting, model=Plain())
    with pytest.raises(MismatchError, match=r"extra state.*missing"):
        ckptfmt_torch.restore(plain, model=Counting())


def other_shape() -> nn.Module:
    model = net()
    model[5] = nn.Linear(144, 11)
    return model


def other_dtype() -> nn.Module:
    model = net()
    model[5] = nn.Linear(144, 10, dtype=torch.bfloat16)
    return model


WRONG = {
    "missing": (
        lambda: nn.Sequential(*net(), nn.Linear(10, 10)),
        r"model/6\.weight' is expected",
    ),
    "unexpected": (lambda: net()[:5], "'model/5.weight' is in the checkpoint"),
    "shape": (other_shape, r"5\.weight' has shape \(10, 144\) in the checkpoint, \(11, 144\)"),
    "dtype": (other_dtype, "'model/5.weight' has dtype float32 in the checkpoint, bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_model_that_does_not_fit_is_refused_untouched(
    kind: str, store: ckptfmt.Store
) -> None:
    make, message = WRONG[kind]
    saved = ckptfmt_torch.save(store, model=net())
    model = make()
    before = everything(model)

    with pytest.raises(MismatchError, match=message):
        ckptfmt_torch.restore(saved, model=model)

    assert everything(model) == before


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
def test_without_strict_the_rest_is_filled_and_reported(
    kind: str, store: ckptfmt.Store
) -> None:
    saved = ckptfmt_torch.save(store, model=(source := net()))
    model = WRONG[kind][0]()

    report = ckptfmt_torch.restore(saved, model=model, strict=False)

    assert not report.ok
    assert torch.equal(model[0].weight, source[0].weight)
    assert bool(report.missing_keys) == (kind == "missing")


@pytest.mark.parametrize("kind", ["shape", "dtype"])
def test_without_strict_shapes_and_dtypes_are_still_refused(
    kind: str, store: ckptfmt.Store
) -> None:
    saved = ckptfmt_torch.save(store, model=net())

    with pytest.raises(MismatchError, match=r"5\.weight"):
        ckptfmt_torch.restore(saved, model=WRONG[kind][0](), strict=False)


def test_damage_is_found_before_anything_changes(tmp_path: pathlib.Path) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    train(model, optimizer, 2)
    with ckptfmt.open(tmp_path / "run") as store:
        saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer, scheduler=scheduler)
    file = max((tmp_path / "run" / "data").iterdir(), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    train(model, optimizer, 1)
    scheduler.step()
    before = everything(model, optimizer, scheduler)

    with pytest.raises(IntegrityError, match="digest"):
        ckptfmt_torch.restore(saved, model=model, optimizer=optimizer, scheduler=scheduler)

    assert everything(model, optimizer, scheduler) == before


def test_an_object_that_fails_to_load_leaves_all_as_it_was(store: ckptfmt.Store) -> None:
    class Stubborn:
        def __init__(self, *, fails: bool) -> None:
            self.fails, self.state = fails, {"n": 1}

        def state_dict(self) -> dict[str, Any]:
            return dict(self.state)

        def load_state_dict(self, state: dict[str, Any]) -> None:
            if self.fails and state != {"n": 1}:
                raise RuntimeError("no")
            self.state = state

    model, first = net(), Stubborn(fails=False)
    first.state = {"n": 5}
    saved = ckptfmt_torch.save(store, model=model, callbacks={"a": first, "b": first})
    other, a, b = net(), Stubborn(fails=False), Stubborn(fails=True)
    before = everything(other)

    with pytest.raises(RuntimeError, match="no"):
        ckptfmt_torch.restore(saved, model=other, callbacks={"a": a, "b": b})

    assert everything(other) == before
    assert a.state == {"n": 1}


def test_objects_without_state_are_refused() -> None:
    with pytest.raises(UsageError, match="counters"):
        ckptfmt_torch.capture(model=net(), epoch=3)


def test_state_that_is_no_data_is_refused(store: ckptfmt.Store) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"x": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(StateError, match="odd/x"):
        ckptfmt_torch.save(store, odd=Odd())


def test_a_section_that_is_not_there_is_named(store: ckptfmt.Store) -> None:
    saved = store.save({"model": {"w": np.zeros(3)}})

    model = nn.ParameterDict({"w": torch.zeros(3, dtype=torch.float64)})
    optimizer = torch.optim.SGD(model.parameters())

    with pytest.raises(NotFoundError, match="optimizer") as caught:
        ckptfmt_torch.restore(saved, model=model, optimizer=optimizer, rng=False)

    assert caught.value.where["present"] == ["model"]


def test_a_checkpoint_of_another_framework_is_refused(store: ckptfmt.Store) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters())
    state = ckptfmt_torch.capture(model=model)
    saved = store.save({**state, "optimizer": {"variables": [np.zeros(3)]}})

    with pytest.raises(MismatchError, match="another optimizer"):
        ckptfmt_torch.restore(saved, model=model, optimizer=optimizer)


def test_fine_tuning_takes_a_part_under_other_names(store: ckptfmt.Store) -> None:
    source = nn.ModuleDict({"backbone": net()[:2], "head": nn.Linear(3, 4)})
    saved = ckptfmt_torch.save(store, model=source)

    class Fine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net()[:2], nn.Linear(3, 7)

    for select in ("backbone.*", "backbone/**", ["backbone.0.*", "backbone.1.*"]):
        model = Fine()
        before = bits(model.head.state_dict())
        report = ckptfmt_torch.restore(
            saved, model=model, select=select, rename={"backbone": "body"}, rng=False
        )
        assert report.ok
        assert bits(model.body.state_dict()) == bits(source["backbone"].state_dict())
        assert bits(model.head.state_dict()) == before

    with pytest.raises(NotFoundError, match="nothing in the model matches"):
        ckptfmt_torch.restore(saved, model=Fine(), select="body.*")
    with pytest.raises(MismatchError, match=r"backbone\.0\.weight"):
        ckptfmt_torch.restore(saved, model=Fine(), select="backbone.*")
    with pytest.raises(UsageError, match="one name"):
        ckptfmt_torch.restore(saved, model=Fine(), rename=lambda name: "same")


def test_a_part_begins_a_new_lineage(store: ckptfmt.Store) -> None:
    saved = ckptfmt_torch.save(store, model=net())
    with ckptfmt.open(store.url) as tuning:
        ckptfmt_torch.restore(tuning.latest(), model=net(), select="0.*", rng=False)
        assert ckptfmt_torch.save(tuning, model=net()).parent is None
    with ckptfmt.open(store.url) as going_on:
        ckptfmt_torch.restore(going_on[saved.number], model=net())
        assert ckptfmt_torch.save(going_on, model=net()).parent == (saved.number, saved.id)


def test_casts_happen_when_asked_for(store: ckptfmt.Store) -> None:
    source = nn.Linear(3, 4)
    saved = ckptfmt_torch.save(store, model=source)
    model = nn.Linear(3, 4, dtype=torch.bfloat16)

    with pytest.raises(MismatchError, match="dtype"):
        ckptfmt_torch.restore(saved, model=model)
    with pytest.raises(MismatchError, match="dtype"):
        ckptfmt_torch.restore(saved, model=model, map_dtype={torch.float64: torch.bfloat16})
    ckptfmt_torch.restore(saved, model=model, map_dtype={torch.float32: torch.bfloat16})

    assert torch.equal(model.weight, source.weight.bfloat16())
