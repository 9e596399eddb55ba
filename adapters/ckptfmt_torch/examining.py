"""What the PyTorch adapter looks at, and tries, when a loaded model predicts otherwise."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

import ckptfmt
from ckptfmt.checks import Cause, Probe, diagnosis
from ckptfmt.checks.settings import grade
from ckptfmt.checks.subject import Experiment
from ckptfmt.tree import unescape
from ckptfmt_torch import modules, probing, tensors, values

MODEL: Final = "model"
_WRAPPED: Final = ("", "module.")  # an average keeps the names below its own


class Subject:
    """A loaded PyTorch model under examination; see `ckptfmt.checks.subject`.

    Args:
        checkpoint: What it was loaded from.
        model: As it is to be used: in its mode, on its device, under the caller's autocast.
        prepare: Preprocessing as it is to be used, for probes that include it.
        places: Stored path → tensor of the model; by default the names of the model.
        evaluate: Whether to run in `eval()` whatever mode the model is in.
    """

    def __init__(
        self,
        checkpoint: ckptfmt.Checkpoint,
        model: nn.Module,
        *,
        prepare: probing.Prepare | None = None,
        places: Mapping[str, torch.Tensor] | None = None,
        evaluate: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._prepare = prepare
        self._live = modules.named_tensors(model)
        self._evaluate = evaluate
        self._runs = itertools.count()
        self._stored = _arrays(checkpoint.tree().get(MODEL, {}))
        self._places = (
            {name: t for name, t in self._live.items() if name in self._stored}
            if places is None
            else {
                unescape(path.removeprefix(f"{MODEL}/")): tensor
                for path, tensor in places.items()
                if path.startswith(f"{MODEL}/")
            }
        )

    def run(self, stored: Probe) -> Any:
        """Return what the model makes of the probe's inputs."""
        inputs = stored.inputs if stored.prepared is None else stored.prepared
        if self._prepare is not None:
            inputs = self.prepare(stored)
        nth = next(self._runs)
        return probing.run(self._model, inputs, stored, evaluate=self._evaluate, nth=nth)

    def prepare(self, stored: Probe) -> Any:
        """Return what preprocessing makes of the probe's inputs; None without one."""
        if self._prepare is None:
            return None
        return probing.made(self._prepare, stored.inputs, stored.about.get("batch"))

    def observe(self, stored: Probe) -> Iterator[Cause]:
        """Say what is not as it was when the probe was stored."""
        yield from self._weights()
        yield from self._settings(stored)
        if not self._evaluate:
            active = [
                name or type(part).__name__
                for name, part in modules.walk(self._model)
                if part.training and not list(part.children())
            ]
            if active:
                text = f"{len(active)} modules are in training mode, such as {active[0]}"
                yield Cause(name="train mode", strength="observed", evidence=text)
        yield from _computed(stored.about, probing.state(self._model))

    def experiments(self, stored: Probe) -> Iterator[Experiment]:
        """Offer what can be taken away for a while."""
        if not self._evaluate and any(p.training for p in self._model.modules()):
            yield Experiment("train mode", "in eval()", _evaluated(self._model))
        now = probing.state(self._model)
        saved = stored.about.get("autocast")
        if saved != now["autocast"]:
            text = "without autocast" if saved is None else f"under autocast to {saved}"
            yield Experiment("precision", text, _autocast(now["device"], saved))
        for section, arrays in self._averages():
            text = f"with the arrays of {section!r} in place of those of 'model'"
            yield Experiment("averaged weights", text, _exchanged(self._live, arrays))

    def _weights(self) -> Iterator[Cause]:
        """Compare the model's tensors with the stored arrays, bit for bit."""
        filled = {id(tensor) for tensor in self._places.values()}
        missing = [name for name, tensor in self._live.items() if id(tensor) not in filled]
        changed, cast = [], []
        for name, tensor in self._places.items():
            lazy = self._stored[name]
            if tensors.numpy_dtype(tensor) != lazy.dtype:
                cast.append(f"{name} ({lazy.dtype} to {tensors.numpy_dtype(tensor)})")
            elif not _same(tensors.view(tensor, name), np.asarray(lazy)):
                changed.append(name)
        yield from diagnosis.arrays(missing, changed)
        if cast:
            more = f" and {len(cast) - 3} more" if len(cast) > 3 else ""
            text = f"arrays have another dtype than in the checkpoint: {', '.join(cast[:3])}"
            yield Cause(name="precision", strength="observed", evidence=text + more)

    def _settings(self, stored: Probe) -> Iterator[Cause]:
        saved = stored.about.get("modules")
        if not isinstance(saved, Mapping):
            return
        now = probing.settings(self._model)
        for name in sorted(saved.keys() | now.keys()):
            before, after = str(saved.get(name)), str(now.get(name))
            if before != after:
                quantized = "quantized" in after.split("(")[0]
                text = f"{name} {_changed(before, after)}"
                kind: diagnosis.Name = "quantization" if quantized else "settings"
                yield Cause(name=kind, strength="observed", evidence=text)

    def _averages(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield other sections of the checkpoint that hold the same arrays, such as `ema`."""
        wanted = {name: tuple(tensor.shape) for name, tensor in self._live.items()}
        for section, content in self._checkpoint.tree().items():
            found = _arrays(content) if section != MODEL else {}
            for prefix in _WRAPPED:
                own = {n: found[prefix + n] for n in wanted if prefix + n in found}
                if own.keys() == wanted.keys() and all(
                    tuple(own[n].shape) == shape for n, shape in wanted.items()
                ):
                    yield section, own
                    break


def _computed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Cause]:
    """Compare how the model computed with how it computes now."""
    if before.get("autocast") != now["autocast"]:
        text = f"autocast was {before.get('autocast')} when saved and is {now['autocast']} here"
        yield Cause(name="precision", strength="observed", evidence=text)
    if before.get("device") not in (None, now["device"]):
        text = f"it was computed on {before['device']} when saved, on {now['device']} here"
        yield Cause(name="backend", strength="observed", evidence=text)
    saved = before.get("numerics")
    for key, value in saved.items() if isinstance(saved, Mapping) else ():
        graded = grade("torch", key)
        if graded is None or graded[0] == "info" or value == now["numerics"].get(key):
            continue
        text = f"torch's {key} was {value} when saved and is {now['numerics'].get(key)} here"
        precise = "precision" in key or "tf32" in key
        yield Cause(
            name="precision" if precise else "backend", strength="possible", evidence=text
        )


def _changed(before: str, after: str) -> str:
    """Say how two descriptions `Class(a=1, b=2)` of one layer differ: only what does."""
    (kind, *old), (other, *new) = (
        re.split(r"[(,] ?(?=\w+=)", text.removesuffix(")")) for text in (before, after)
    )
    if kind != other or not old or not new:
        return f"was {before} when saved and is {after} here"
    lost = ", ".join(part for part in old if part not in new) or "without more"
    more = ", ".join(part for part in new if part not in old) or "without that"
    return f"({kind.rpartition('.')[2]}) was built with {lost} when saved, and {more} here"


def _arrays(content: Any) -> dict[str, Any]:
    """Return the arrays of a section by name; of nested dicts with dots between."""
    found: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if values.is_array(value):
            found[str(name)] = value
        else:
            found |= {f"{name}.{below}": array for below, array in _arrays(value).items()}
    return found


def _same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def _autocast(device: str, dtype: str | None) -> contextlib.AbstractContextManager[object]:
    if dtype is None:
        return torch.autocast(device, enabled=False)
    return torch.autocast(device, dtype=getattr(torch, dtype))


@contextlib.contextmanager
def _exchanged(live: Mapping[str, torch.Tensor], arrays: Mapping[str, Any]) -> Iterator[None]:
    """Give the tensors other values for a while; as much memory again as the model takes."""
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    try:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(tensors.tensor_of(np.array(arrays[name])))
        yield
    finally:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(before[name])
