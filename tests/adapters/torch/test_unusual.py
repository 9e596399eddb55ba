"""Objects that are built in unusual ways come back whole, or are refused before a change."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from nets import bits, everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import MismatchError, StateError, UsageError


class Kept:
    """Keeps one value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Tied(nn.Module):
    """Has one weight under two names, in either order."""

    def __init__(self, first: str) -> None:
        super().__init__()
        embed, out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        out.weight = embed.weight
        for name in (first, "out" if first == "embed" else "embed"):
            self.add_module(name, {"embed": embed, "out": out}[name])


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer with state for each parameter."""
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return optimizer


@pytest.fixture
def one_process(tmp_path: pathlib.Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_names_may_have_any_character(store: ckptfmt.Store) -> None:
    def build() -> dict[str, nn.Module]:
        inner = nn.ModuleDict({"a/b": nn.Linear(2, 3), "c~d": nn.Linear(2, 3)})
        return {"x/y": inner, "x": nn.ModuleDict({"z": nn.Linear(2, 2)})}

    model = build()
    optimizer = {name: stepped(one) for name, one in model.items()}
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer, odd={"/": Kept(5)})
    other = build()
    fresh = {name: torch.optim.Adam(one.parameters()) for name, one in other.items()}
    kept = Kept(0)

    report = ckptfmt_torch.restore(saved, model=other, optimizer=fresh, odd={"/": kept})

    assert report.findings == ()
    for before, after in ((model, other), (optimizer, fresh)):
        for name in before:
            assert bits(after[name].state_dict()) == bits(before[name].state_dict())
    assert kept.value == 5


@pytest.mark.parametrize(
    "run", [{"data": {"loader": Kept(1)}, "loader": Kept(2)}, {"rank_local": {"0": Kept(1)}}]
)
def test_two_objects_in_one_place_are_refused(run: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="taken"):
        ckptfmt_torch.capture(**run)


def test_two_parameters_of_one_name_are_refused() -> None:
    model, other = nn.ModuleDict({"critic": nn.Linear(2, 2)}), nn.Linear(2, 2)
    both = torch.optim.SGD([*model.parameters(), *other.parameters()])

    with pytest.raises(UsageError, match="one name"):
        ckptfmt_torch.capture(model=model, critic=other, optimizer=both)
    ckptfmt_torch.capture(model=model, judge=other, optimizer=both)


def test_a_tied_weight_is_known_by_each_of_its_names(store: ckptfmt.Store) -> None:
    model = Tied("embed")
    optimizer = stepped(model)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    other = Tied("out")
    fresh = torch.optim.Adam(other.parameters())

    report = ckptfmt_torch.restore(saved, model=other, optimizer=fresh)

    assert report.findings == ()
    assert bits(fresh.state_dict()) == bits(optimizer.state_dict())


def test_wrappers_at_any_depth_have_no_part_in_names(store: ckptfmt.Store) -> None:
    bare = nn.ModuleDict({"body": net(), "module": nn.Linear(2, 2)})
    wrapped = nn.ModuleDict({"body": nn.DataParallel(net()), "module": nn.Linear(2, 2)})
    wrapped["body"] = torch.compile(wrapped["body"], backend="eager")
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(bare))
    saved = ckptfmt_torch.save(store, model=bare, ema=average, config=1)
    other = torch.optim.swa_utils.AveragedModel(bare)

    found = ckptfmt_torch.resume(store, model=wrapped, ema=other, config=1)

    assert found is not None
    assert found[1].findings == ()
    assert bits([*wrapped.parameters()]) == bits([*bare.parameters()])
    assert {"model/body.0.weight", "model/module.weight"} <= saved.arrays.keys()


@pytest.mark.filterwarnings("ignore")  # quantisation is deprecated in favour of torchao
@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.ao.nn.quantized.Linear(3, 4),
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4))),
    ],
)
def test_packed_weights_are_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(StateError, match=r"neither|no parameter") as caught:
        ckptfmt_torch.capture(model=build())

    assert any("_packed_params" in name for name in caught.value.where["names"])


def test_hooks_that_only_rename_are_no_reason_to_refuse(store: ckptfmt.Store) -> None:
    def renamed(_: object, state: dict[str, Any], prefix: str, __: object) -> None:
        state["theirs"] = state.pop(f"{prefix}weight")

    def added(_: object, state: dict[str, Any], __: str, ___: object) -> None:
        state["version"] = 3

    model = nn.Linear(2, 2)
    model.register_state_dict_post_hook(renamed)
    saved = ckptfmt_torch.save(store, model=model)
    ckptfmt_torch.restore(saved, model=(other := nn.Linear(2, 2)))
    assert torch.equal(other.weight, model.weight)

    model.register_state_dict_post_hook(added)
    with pytest.raises(StateError, match="version"):
        ckptfmt_torch.save(store, model=model)


@pytest.mark.filterwarnings("ignore")
def test_parts_of_what_processes_share_are_refused(one_process: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    cpu = torch.device("cpu")
    flat = FullyShardedDataParallel(net(), use_orig_params=True, device_id=cpu)
    with pytest.raises(StateError, match="a part of each tensor"):
        ckptfmt_torch.capture(model=flat)
    sharded = net()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(StateError, match="DTensor"):
        ckptfmt_torch.capture(model=sharded)
    model = net()
    zero = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam)
    with pytest.raises(StateError, match="a part of the optimizer"):
        ckptfmt_torch.capture(model=model, optimizer=zero)


def test_an_optimizer_that_saves_more_is_refused() -> None:
    class More(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "more": 1}

    model = net()
    with pytest.raises(StateError, match="more"):
        ckptfmt_torch.capture(model=model, optimizer=More(model.parameters()))


def with_head(out: int, backbone: str = "backbone") -> nn.ModuleDict:
    return nn.ModuleDict({backbone: nn.Linear(3, 4), "head": nn.Linear(4, out)})


def test_what_is_not_selected_keeps_its_optimizer_state(store: ckptfmt.Store) -> None:
    source = with_head(5)
    optimizer = stepped(source)
    saved = ckptfmt_torch.save(store, model=source, optimizer=optimizer)
    model = with_head(7)
    fresh = stepped(model)
    head = bits(fresh.state[model["head"].weight])

    report = ckptfmt_torch.restore(saved, model=model, optimizer=fresh, select="backbone.*")

    assert report.findings == ()
    assert bits(fresh.state[model["head"].weight]) == head
    assert bits(fresh.state[model["backbone"].weight]) == bits(
        optimizer.state[source["backbone"].weight]
    )


@pytest.mark.parametrize("select", [None, "backbone.*"])
def test_optimizer_state_follows_a_renamed_parameter(
    store: ckptfmt.Store, select: str | None
) -> None:
    source = with_head(5)
    optimizer = stepped(source)
    saved = ckptfmt_torch.save(store, model=source, optimizer=optimizer)
    model = with_head(5, "body")
    fresh = torch.optim.Adam(model.parameters())

    report = ckptfmt_torch.restore(
        saved, model=model, optimizer=fresh, select=select, rename={"backbone": "body"}
    )

    assert report.findings == ()
    assert bits(fresh.state[model["body"].weight]) == bits(
        optimizer.state[source["backbone"].weight]
    )
    assert bool(fresh.state[model["head"].weight]) == (select is None)


def test_groups_without_parameters_keep_their_settings(store: ckptfmt.Store) -> None:
    model = net()

    def build() -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": []}, {"params": [*model.parameters()]}], lr=0.1)

    optimizer = build()
    optimizer.param_groups[0]["lr"] = 0.9
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    ckptfmt_torch.restore(saved, model=model, optimizer=(fresh := build()))

    assert [group["lr"] for group in fresh.param_groups] == [0.9, 0.1]


def test_groups_with_tensors_for_settings_can_be_merged(store: ckptfmt.Store) -> None:
    model = net()
    first, rest = [*model[0].parameters()], [*model[1].parameters(), *model[5].parameters()]

    def rate(value: float) -> torch.Tensor:
        return torch.tensor(value)

    apart = torch.optim.Adam(
        [{"params": first, "lr": rate(0.5)}, {"params": rest, "lr": rate(0.5)}]
    )
    saved = ckptfmt_torch.save(store, model=model, optimizer=apart)
    merged = torch.optim.Adam(model.parameters(), lr=rate(0.1))
    ckptfmt_torch.restore(saved, model=model, optimizer=merged)
    assert merged.param_groups[0]["lr"] == 0.5

    apart.param_groups[0]["lr"] = rate(0.7)
    saved = ckptfmt_torch.save(store, model=model, optimizer=apart)
    with pytest.raises(MismatchError, match="different settings"):
        ckptfmt_torch.restore(saved, model=model, optimizer=merged)


class Buffers(nn.Module):
    """Has some buffers."""

    def __init__(self, **found: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in found.items():
            self.register_buffer(name, tensor)


def test_an_expanded_tensor_takes_equal_rows_only(store: ckptfmt.Store) -> None:
    equal = torch.tensor([1.0, float("nan")]).expand(3, 2)
    saved = ckptfmt_torch.save(store, model=Buffers(a=equal))
    model = Buffers(a=torch.zeros(2).expand(3, 2))
    ckptfmt_torch.restore(saved, model=model)
    assert bits(model.a) == bits(equal)
    assert model.a.stride() == (0, 1)

    saved = ckptfmt_torch.save(store, model=Buffers(a=torch.arange(6.0).reshape(3, 2)))
    with pytest.raises(MismatchError, match="clone"):
        ckptfmt_torch.restore(saved, model=model)
    assert bits(model.a) == bits(equal)


def test_tensors_that_overlap_are_refused_untouched(store: ckptfmt.Store) -> None:
    saved = ckptfmt_torch.save(store, model=Buffers(a=torch.ones(4), b=torch.ones(4) * 2))
    base = torch.zeros(6)

    with pytest.raises(MismatchError, match="overlap"):
        ckptfmt_torch.restore(saved, model=Buffers(a=base[:4], b=base[2:]))

    assert not base.any()


def test_tensors_that_overlapped_when_saved_come_back(store: ckptfmt.Store) -> None:
    def build() -> Buffers:
        whole = torch.randn(6, 4)
        return Buffers(whole=whole, q=whole[:2], columns=whole[:, ::2])

    model, other = build(), build()
    saved = ckptfmt_torch.save(store, model=model)
    ckptfmt_torch.restore(saved, model=other)

    assert bits(other.state_dict()) == bits(model.state_dict())


def test_modules_without_tensors_are_restored(store: ckptfmt.Store) -> None:
    saved = ckptfmt_torch.save(store, model=net(), loss=None, criterion=nn.MSELoss())

    assert ckptfmt_torch.restore(saved, model=net(), criterion=nn.MSELoss()).ok


def test_what_is_restored_within_inference_mode_can_be_trained_on(store: ckptfmt.Store) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    train(model, optimizer, 1)
    saved = ckptfmt_torch.save(store, model=model, optimizer=optimizer)
    other = net()
    fresh = torch.optim.Adam(other.parameters(), lr=torch.tensor(0.1))

    with torch.inference_mode():
        ckptfmt_torch.restore(saved, model=other, optimizer=fresh)

    train(other, fresh, 1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)

    with pytest.raises(StateError, match="unbind"):
        ckptfmt_torch.capture(model=Buffers(a=nested))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_targets_without_memory_are_refused(store: ckptfmt.Store) -> None:
    saved = ckptfmt_torch.save(store, model=nn.Linear(3, 4))

    with pytest.raises(StateError, match="run one batch"):
        ckptfmt_torch.restore(saved, model=nn.LazyLinear(4))
    with pytest.raises(StateError, match="materialise"):
        ckptfmt_torch.restore(saved, model=nn.Linear(3, 4, device="meta"))


@pytest.mark.parametrize("was", [False, True])
def test_a_scaler_that_is_switched_is_told_and_left_alone(
    store: ckptfmt.Store, was: bool
) -> None:
    model = net()
    saved = ckptfmt_torch.save(
        store, model=model, scaler=torch.amp.GradScaler("cpu", enabled=was, init_scale=4.0)
    )
    now = torch.amp.GradScaler("cpu", enabled=not was, init_scale=8.0)

    report = ckptfmt_torch.restore(saved, model=model, scaler=now)

    assert [(f.name, f.saved, f.now) for f in report.findings] == [
        ("scaler/enabled", was, not was)
    ]
    assert now.get_scale() == (1.0 if was else 8.0)


@pytest.mark.parametrize(
    "given",
    [
        {"own": np.random.Generator(np.random.MT19937(1))},
        {"other": np.random.default_rng(1)},
        {"own": torch.Generator()},
        {},
    ],
)
def test_generators_that_do_not_fit_are_refused_untouched(
    store: ckptfmt.Store, given: dict[str, Any]
) -> None:
    saved = ckptfmt_torch.save(store, model=net(), generators={"own": np.random.default_rng(2)})
    model = net()
    before = everything(model), np.random.get_state()[1].tolist()

    with pytest.raises(MismatchError, match="generators"):
        ckptfmt_torch.restore(saved, model=model, generators=given)

    assert (everything(model), np.random.get_state()[1].tolist()) == before


def test_an_object_that_cannot_be_put_back_does_not_keep_others_from_it(
    store: ckptfmt.Store,
) -> None:
    class Broken(Kept):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise RuntimeError("never")

    saved = ckptfmt_torch.save(store, a=Kept(5), b=Kept(5), c=Kept(5))
    a, c = Kept(1), Kept(1)

    with pytest.raises(RuntimeError, match="never"):
        ckptfmt_torch.restore(saved, a=a, b=Broken(1), c=c)

    assert (a.value, c.value) == (1, 1)


def test_adapters_added_around_layers_load_the_base_under_new_names(
    store: ckptfmt.Store,
) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down = nn.Parameter(torch.zeros(1, base.in_features))

    source = net()
    optimizer = torch.optim.Adam(source.parameters())
    train(source, optimizer, 1)
    saved = ckptfmt_torch.save(store, model=source, optimizer=optimizer)
    model = net()
    model[5] = Adapted(model[5])  # type: ignore[arg-type]

    report = ckptfmt_torch.restore(saved, model=model, rename={"5": "5.base"}, strict=False)

    assert report.missing_keys == ("model/5.down",)
    assert not report.unexpected_keys
    assert torch.equal(model[5].base.weight, source[5].weight)
