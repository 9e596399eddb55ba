"""What a forward writes into its module's attributes is not seen after a probe."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch
from nets import bits
from torch import nn

import ckptfmt
import ckptfmt_torch
from ckptfmt.errors import UsageError


class Writing(nn.Module):
    """Writes in place into all that may be an attribute, as caches and hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.plain = torch.zeros(4)
        self.array = np.zeros(4)
        self.calls: list[Any] = [0]
        self.deep: dict[str, Any] = {"a": [{"b": torch.zeros(2), "c": np.zeros(2)}]}
        self.ordered = OrderedDict(x=1, y=2)
        self.names, self.last = {"a"}, deque([1, 2], maxlen=2)
        self.drawing = [random.Random(3), np.random.default_rng(3), torch.Generator()]
        self.itself: list[Any] = []
        self.itself.append(self.itself)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.plain += 1
        self.array += 1
        self.calls.append(len(self.calls))
        self.calls[0] += 1
        inner = self.deep["a"][0]
        inner["b"] += 1
        inner["c"][0] = 5
        self.deep["more"] = 1
        self.ordered.move_to_end("x")
        self.names.add("b")
        self.last.append(3)
        self.itself.append(1)
        drawn = self.drawing[0].random() + self.drawing[1].random()
        drawn += torch.rand((), generator=self.drawing[2]).item()
        found: torch.Tensor = self.layer(x) + self.plain + float(self.calls[0]) + drawn
        return found

    def position(self) -> list[Any]:
        inner = self.deep["a"][0]
        return [
            bits(self.plain), self.array.tolist(), list(self.calls), list(self.deep),
            bits(inner["b"]), inner["c"].tolist(), list(self.ordered.items()), set(self.names),
            list(self.last), len(self.itself), self.drawing[0].getstate(),
            repr(self.drawing[1].bit_generator.state), bits(self.drawing[2].get_state()),
        ]  # fmt: skip


def test_writes_into_attributes_are_put_back(store: ckptfmt.Store) -> None:
    model, x = Writing(), torch.ones(2, 4)
    plain, calls, inner = model.plain, model.calls, model.deep["a"][0]["b"]
    before = model.position()
    probe = ckptfmt_torch.probe(model, x)

    assert probe.deterministic
    assert model.position() == before
    assert (model.plain is plain, model.calls is calls) == (True, True)
    assert model.deep["a"][0]["b"] is inner
    saved = ckptfmt_torch.save(store, model=model, probe=probe)
    assert isinstance(saved, ckptfmt.Checkpoint)
    fresh = Writing()
    for _ in range(2):
        report = ckptfmt_torch.restore(saved, model=fresh)
        assert report.replay is not None
        assert report.replay.verdict == "identical"
        assert fresh.position() == before


def test_values_that_cannot_be_put_back_stop_no_probe() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            with torch.inference_mode():
                self.inference = torch.ones(2)
            self.meta = torch.empty(2, device="meta")
            self.sparse = torch.eye(2).to_sparse()
            self.frozen = np.zeros(2)
            self.frozen.flags.writeable = False
            self.layers = [self.layer, self.layer.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(x)
            return found

    assert ckptfmt_torch.probe(Odd(), torch.ones(1, 2)).deterministic


def test_augmentation_in_preprocessing_is_refused() -> None:
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = [0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls[0] += 1
            return x + torch.randn_like(x) if self.training else x

    model, x, noise = nn.Linear(4, 2), torch.ones(2, 4), Noise()
    with pytest.raises(UsageError, match="turn augmentation off"):
        ckptfmt_torch.probe(model, x, prepare=noise)
    off = ckptfmt_torch.probe(model, x, prepare=noise.eval())
    assert off.prepared.tobytes() == off.inputs.tobytes()
    assert noise.calls == [0]


@pytest.mark.parametrize("n", [2, 9])
def test_a_buffer_that_a_forward_resizes_is_put_back(n: int) -> None:
    class Resizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("kept", torch.arange(4.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(x)
            self.get_buffer("kept").resize_(n).zero_()
            return found

    model = Resizing()
    ckptfmt_torch.probe(model, torch.ones(1, 2))
    assert model.get_buffer("kept").tolist() == [0, 1, 2, 3]
