"""Tensors of CUDA devices reach the host whole: with stand-ins for streams, and on a GPU."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nets import bits, everything, net, train
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt_torch import staging, tensors


class Streams:
    """Stands for CUDA where there is none: tensors of the CPU count as a device's."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.unfinished: list[tuple[torch.Tensor, torch.Tensor]] = []  # copies: to, from
        real = torch.Tensor.copy_

        def copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
            if not non_blocking:
                return real(to, source)
            self.said.append("copy")
            self.unfinished.append((to, source))
            return to

        class Stream:
            def __init__(own, _: torch.device) -> None:
                self.said.append("made")

            def wait_stream(own, other: str) -> None:
                self.said.append(f"waits for {other}")

            def synchronize(own) -> None:
                self.said.append("synchronized")
                for to, source in self.unfinished:
                    real(to, source)
                self.unfinished.clear()

        @contextlib.contextmanager
        def within(_: Stream) -> Iterator[None]:
            self.said.append("begins")
            yield
            self.said.append("ends")

        patch.setattr(staging, "_is_on_cuda", lambda tensor: True)
        patch.setattr(
            staging, "_pinned", lambda like: torch.zeros(like.shape, dtype=like.dtype)
        )
        patch.setattr(torch.Tensor, "copy_", copy)
        patch.setattr(torch.Tensor, "record_stream", lambda *_: self.said.append("kept"))
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda _: "training")
        patch.setattr(torch.cuda, "stream", within)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    return Streams(monkeypatch)


def test_copies_follow_the_training_on_one_stream_and_are_awaited_once(
    streams: Streams,
) -> None:
    host = staging.Staging()
    found = [host.view(torch.full((2,), float(n)), "a") for n in (1, 2)]
    assert [array.tolist() for array in found] == [[0, 0], [0, 0]]  # still under way
    host.finish()

    each = ["waits for training", "begins", "copy", "ends", "kept"]
    assert streams.said == ["made", *each, *each, "synchronized"]
    assert [array.tolist() for array in found] == [[1, 1], [2, 2]]


def test_a_capture_is_whole_and_private_when_it_returns(streams: Streams) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    expected = bits([*model.parameters()]), bits(dict(optimizer.state[model[5].bias]))
    streams.said.clear()

    state = ckptfmt_torch.capture(model=model, optimizer=optimizer)

    assert streams.said[-1] == "synchronized"
    assert not streams.unfinished
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
        for kept in optimizer.state.values():
            kept["exp_avg"].zero_()
    own = [torch.from_numpy(state["model"][name]) for name, _ in model.named_parameters()]
    kept = state["optimizer"]["state"]["5.bias"]
    assert bits(own) == expected[0]
    assert bits({key: torch.from_numpy(array) for key, array in kept.items()}) == expected[1]


def test_tied_tensors_stay_tied(streams: Streams, store: ckptfmt.Store) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        return model

    model = tied()
    saved = ckptfmt_torch.save(store, model=model)
    other = tied()
    ckptfmt_torch.restore(saved, model=other)

    assert saved.arrays["model/0.weight"].aliases == ("model/1.weight",)
    assert bits([*other.parameters()]) == bits([*model.parameters()])


def test_memory_that_another_tensor_has_by_now_is_copied_again(streams: Streams) -> None:
    host = staging.Staging()
    memory = torch.ones(2)
    first = host.view(memory[:], "a")
    host.finish()
    memory.zero_()
    second = host.view(memory[:], "b")
    host.finish()

    assert first.tolist() == [1, 1]
    assert second.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 6)])
def test_layouts_and_dtypes(
    streams: Streams, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = torch.ones(shape).to(dtype)
    strided = tensor.T if tensor.ndim == 2 else tensor
    host = staging.Staging()
    found = host.view(strided, "a")
    host.finish()

    assert found.dtype == tensors.numpy_dtype(tensor)
    assert found.tobytes() == tensors.view(strided.contiguous(), "a").tobytes()


def test_conjugate_views_are_resolved_before_the_copy(streams: Streams) -> None:
    host = staging.Staging()
    found = host.view(torch.tensor([1 + 2j]).conj(), "a")
    host.finish()

    assert found.tolist() == [1 - 2j]


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned here")
def test_where_memory_cannot_be_pinned_any_will_do(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        found = staging._pinned(torch.zeros(3, 2, dtype=torch.int8))

    assert (found.shape, found.dtype) == ((3, 2), torch.int8)
    assert "no pinned memory" in caplog.text


def test_tensors_of_the_cpu_are_not_copied() -> None:
    tensor = torch.zeros(3)
    host = staging.Staging()
    found = host.view(tensor, "a")
    host.finish()

    assert np.shares_memory(found, tensor.numpy())


def on_gpu() -> dict[str, Any]:
    torch.manual_seed(1)
    model = net().cuda()
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), fused=True)}


def steps(run: dict[str, Any], count: int) -> None:
    for _ in range(count):
        run["optimizer"].zero_grad()
        run["model"](torch.randn(8, 1, 8, 8, device="cuda")).square().mean().backward()
        run["optimizer"].step()


@pytest.mark.gpu
def test_steps_behind_a_background_save_do_not_leak_into_it(store: ckptfmt.Store) -> None:
    run = on_gpu()
    steps(run, 2)
    expected = everything(*run.values())[:-1]

    pending = ckptfmt_torch.save(store, background=True, **run)
    steps(run, 20)
    other = on_gpu()
    ckptfmt_torch.restore(pending.wait(), **other)  # type: ignore[union-attr]

    assert everything(*other.values())[:-1] == expected
    assert all(p.is_cuda for p in other["model"].parameters())


@pytest.mark.gpu
def test_kernels_that_are_queued_still_count(store: ckptfmt.Store) -> None:
    model = nn.Module()
    model.register_buffer("a", torch.zeros(2**24, device="cuda"))
    for _ in range(200):
        model.a.add_(1)

    saved = ckptfmt_torch.save(store, model=model, background=True)
    model.a.fill_(-1)

    found = saved.wait().load(select="model/a")["model"]["a"]  # type: ignore[union-attr]
    assert (found == 200).all()


@pytest.mark.gpu
def test_pinned_memory_is_used_again(store: ckptfmt.Store) -> None:
    run = on_gpu()
    steps(run, 1)
    made = []
    for _ in range(10):
        ckptfmt_torch.save(store, background=True, **run)
        made.append(torch.cuda.host_memory_stats()["num_host_alloc"])
    store.close()

    assert made[1:] == made[:1] * 9


@pytest.mark.gpu
def test_memory_of_temporaries_is_not_reused_too_early(store: ckptfmt.Store) -> None:
    class Making:
        def state_dict(self) -> dict[str, Any]:
            return {str(n): torch.full((2**22,), float(n), device="cuda") for n in range(16)}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    saved = ckptfmt_torch.save(store, made=Making())
    found = saved.load(select="made/**")["made"]  # type: ignore[union-attr]

    assert all((array == float(n)).all() for n, array in found.items())
