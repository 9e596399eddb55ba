"""Every kind of tensor comes back with its bits, or is refused with the way out."""

from __future__ import annotations

import pytest
import torch
from nets import bits
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import MismatchError, StateError
from ckptfmt_torch import tensors

DTYPES = sorted((*tensors._NATIVE, *tensors._FOREIGN), key=str)


class Holder(nn.Module):
    """Holds tensors as buffers, under the names t0, t1, ..."""

    def __init__(self, *found: torch.Tensor) -> None:
        super().__init__()
        for number, tensor in enumerate(found):
            self.register_buffer(f"t{number}", tensor)


def blank(module: Holder) -> Holder:
    """Return a holder of tensors of the same layout, with other bits."""
    return Holder(*(torch.empty_like(b).zero_() for b in module.buffers()))


def noise(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of random bits: NaNs with payloads, infinities, denormals."""
    empty = torch.empty(shape, dtype=dtype)
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    flat = torch.randint(0, 256, (empty.numel() * empty.element_size(),), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_every_bit(dtype: torch.dtype, store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = Holder(*(noise(shape, dtype) for shape in [(3, 5), (1,), (), (0, 4)]))
    saved = ckptfmt_torch.save(store, model=model)

    other = blank(model)
    ckptfmt_torch.restore(saved, model=other)

    assert bits(other.state_dict()) == bits(model.state_dict())


def test_memory_layouts_are_kept(store: ckptfmt.Store) -> None:
    base = torch.randn(2, 3, 4, 5)
    views = [
        base.clone(memory_format=torch.channels_last),
        base.clone().transpose(0, 3),
        base.clone()[:, ::2],
        torch.randn(4, dtype=torch.bfloat16).expand(3, 4).clone()[:, 1:],
    ]
    model = Holder(*views)
    saved = ckptfmt_torch.save(store, model=model)

    other = Holder(*(v.clone().zero_() for v in views))
    strides = [b.stride() for b in other.buffers()]
    ckptfmt_torch.restore(saved, model=other)

    assert bits(other.state_dict()) == bits(model.state_dict())
    assert [b.stride() for b in other.buffers()] == strides


def test_conjugate_and_negative_views(store: ckptfmt.Store) -> None:
    model = Holder(torch.randn(3, dtype=torch.complex64).conj(), torch.randn(3).neg())
    saved = ckptfmt_torch.save(store, model=model)

    other = Holder(torch.zeros(3, dtype=torch.complex64).conj(), torch.zeros(3))
    ckptfmt_torch.restore(saved, model=other)

    assert torch.equal(other.t0, model.t0)
    assert torch.equal(other.t1, model.t1)


def test_tied_tensors_are_stored_once_and_stay_tied(store: ckptfmt.Store) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    model = Tied()
    saved = ckptfmt_torch.save(store, model=model)
    assert saved.arrays["model/embed.weight"].aliases == ("model/out.weight",)

    other = Tied()
    ckptfmt_torch.restore(saved, model=other)
    assert other.out.weight is other.embed.weight
    assert torch.equal(other.out.weight, model.out.weight)

    apart = Tied()
    apart.out.weight = nn.Parameter(torch.zeros(5, 3))
    ckptfmt_torch.restore(saved, model=apart)
    assert torch.equal(apart.out.weight, model.out.weight)
    assert torch.equal(apart.embed.weight, model.embed.weight)


def test_a_tied_target_for_two_arrays_is_refused(store: ckptfmt.Store) -> None:
    shared = torch.zeros(3)
    saved = ckptfmt_torch.save(store, model=Holder(torch.ones(3), torch.ones(3) * 2))

    with pytest.raises(MismatchError, match="untie"):
        ckptfmt_torch.restore(saved, model=Holder(shared, shared))

    assert torch.equal(shared, torch.zeros(3))


REFUSED = {
    "sparse": (torch.eye(2).to_sparse(), "to_dense"),
    "meta": (torch.empty(2, device="meta"), "materialise"),
    "4-bit": (torch.empty(2, dtype=torch.float4_e2m1fn_x2), "convert"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_stored_is_refused_with_the_way_out(
    name: str, store: ckptfmt.Store
) -> None:
    tensor, way_out = REFUSED[name]

    with pytest.raises(StateError, match=way_out) as caught:
        ckptfmt_torch.save(store, model=Holder(tensor))

    assert caught.value.where["path"] == "model/t0"
    assert list(store) == []


@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*deprecated.*")
def test_quantised_tensors_are_refused() -> None:
    tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)

    with pytest.raises(StateError, match="int_repr"):
        ckptfmt_torch.capture(model=Holder(tensor))


def test_subclasses_are_refused() -> None:
    class Meaning(torch.Tensor):
        pass

    with pytest.raises(StateError, match="Meaning"):
        ckptfmt_torch.capture(model=Holder(torch.ones(2).as_subclass(Meaning)))


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_refused() -> None:
    with pytest.raises(StateError, match="run one batch"):
        ckptfmt_torch.capture(model=nn.LazyLinear(3))
