"""What the Keras adapter looks at, and tries, when a loaded model predicts otherwise."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

import ckptfmt
from ckptfmt.checks import Cause, Probe, diagnosis
from ckptfmt.checks.settings import grade
from ckptfmt.checks.subject import Experiment
from ckptfmt_keras import architecture, numerics, optimizers, probing, variables

_AVERAGES = (optimizers.SLOTS, "average")  # of an optimizer with use_ema=True


class Subject:
    """A loaded Keras model under examination; see `ckptfmt.checks.subject`.

    Args:
        checkpoint: What it was loaded from.
        model: As it is to be used, under the caller's autocast.
        prepare: Preprocessing as it is to be used, for probes that include it.
        training: What the model is called with.
    """

    def __init__(
        self,
        checkpoint: ckptfmt.Checkpoint,
        model: Any,
        *,
        prepare: probing.Prepare | None = None,
        training: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._prepare = prepare
        self._training = training
        self._runs = itertools.count()
        self._content = checkpoint.tree()

    def run(self, stored: Probe) -> Any:
        """Return what the model makes of the probe's inputs."""
        inputs = stored.inputs if stored.prepared is None else stored.prepared
        if self._prepare is not None:
            inputs = self.prepare(stored)
        nth = next(self._runs)
        return probing.run(self._model, inputs, training=self._training, nth=nth)

    def prepare(self, stored: Probe) -> Any:
        """Return what preprocessing makes of the probe's inputs; None without one."""
        return None if self._prepare is None else probing.made(self._prepare, stored.inputs)

    def observe(self, stored: Probe) -> Iterator[Cause]:
        """Say what is not as it was when the probe was stored."""
        saved = architecture.recorded(self._checkpoint)
        before, now = stored.about.get("policies"), architecture.policies(self._model)
        quantized = [name for name in now if _is_quantized(name)]
        if quantized and before != now:
            text = (
                f"layers are quantised here, such as to {quantized[0]}, and were not when saved"
            )
            yield Cause(name="quantization", strength="observed", evidence=text)
            return  # it replaces variables, and of those that are left the order is another
        yield from self._weights()
        yield from _built(saved, architecture.describe(self._model))
        if before != now:
            text = f"dtype policies were {_some(before)} when saved, are {_some(now)} here"
            yield Cause(name="precision", strength="observed", evidence=text)
        if self._training:
            text = "the model is called with training=True: dropout and batch statistics are on"
            yield Cause(name="train mode", strength="observed", evidence=text)
        yield from _computed(stored.about)

    def experiments(self, stored: Probe) -> Iterator[Experiment]:
        """Offer what can be taken away for a while."""
        if self._training:
            yield Experiment("train mode", "with training=False", self._evaluated())
        saved, now = stored.about.get("policies"), architecture.policies(self._model)
        if isinstance(saved, list) and saved != now and _exchangeable(saved, now):
            text = "with the dtype policies of then"
            yield Experiment("precision", text, _policies(self._model, saved))
        casts = stored.about.get("autocast")
        if keras.backend.backend() == "torch" and casts != numerics.autocast():
            text = "without autocast" if casts is None else f"under autocast to {casts}"
            yield Experiment("precision", text, _autocast(casts))
        if averages := self._averages():
            text = "with the optimizer's averages in place of the weights"
            yield Experiment("averaged weights", text, _exchanged(self._model, averages))

    @contextlib.contextmanager
    def _evaluated(self) -> Iterator[None]:
        self._training = False
        try:
            yield
        finally:
            self._training = True

    def _weights(self) -> Iterator[Cause]:
        """Compare variables with stored arrays, bit for bit."""
        content = self._content.get("model", {})
        missing, changed, cast = [], [], []
        for entry in variables.weights(self._model):
            array = variables.array_of(entry.variable)
            if entry.key not in content:
                missing.append(entry.label)
            elif content[entry.key].dtype != array.dtype:
                cast.append(f"{entry.label} ({content[entry.key].dtype} to {array.dtype})")
            elif np.asarray(content[entry.key]).tobytes() != array.tobytes():
                changed.append(entry.label)
        yield from diagnosis.arrays(missing, changed)
        if cast:
            text = f"variables have another dtype than in the checkpoint: {', '.join(cast[:3])}"
            yield Cause(name="precision", strength="observed", evidence=text)

    def _averages(self) -> dict[str, Any]:
        """Return key of a variable → its average, if the checkpoint has them."""
        place: Any = self._content.get("optimizer")
        while isinstance(place, Mapping) and optimizers.INNER in place:
            place = place[optimizers.INNER]
        for name in _AVERAGES:
            place = place.get(name) if isinstance(place, Mapping) else None
        return dict(place) if isinstance(place, Mapping) else {}


def _built(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Cause]:
    """Compare how the model was built with how it is built here."""
    if saved["config"] is None or now["config"] is None:
        return
    rows = architecture.parted(
        architecture.essence(saved["config"]), architecture.essence(now["config"])
    )
    # Another release of Keras writes settings down that the one of then did not have.
    same = saved["keras"] == now["keras"]
    for path, before, after in rows:
        text = f"{path} was {before!r} when saved and is {after!r} here"
        strength: diagnosis.Strength = "observed" if same or before is not None else "possible"
        yield Cause(name="settings", strength=strength, evidence=text)


def _computed(about: Mapping[str, Any]) -> Iterator[Cause]:
    """Compare how the model computed with how it computes now."""
    backend, autocast = keras.backend.backend(), numerics.autocast()
    if about.get("backend") != backend:
        text = f"it ran on {about.get('backend')}, runs on {backend} here"
        yield Cause(name="backend", strength="observed", evidence=text)
    if about.get("autocast") != autocast:
        text = f"autocast was {about.get('autocast')} when saved and is {autocast} here"
        yield Cause(name="precision", strength="observed", evidence=text)
    saved, now = about.get("numerics"), numerics.record()
    for key, value in saved.items() if isinstance(saved, Mapping) else ():
        graded = grade("keras", key)
        told = key != "backend" and value is not None and now.get(key) is not None
        if not told or graded is None or graded[0] == "info" or value == now[key]:
            continue
        text = f"Keras' {key} was {value} when saved and is {now[key]} here"
        precise = key in ("matmul_precision", "tensorfloat32", "x64", "floatx", "dtype_policy")
        yield Cause(
            name="precision" if precise else "backend", strength="possible", evidence=text
        )


def _is_quantized(policy: str) -> bool:
    """Tell by its name, such as "int8_from_float32"."""
    return "_from_" in policy


def _exchangeable(saved: Sequence[str], now: Sequence[str]) -> bool:
    """Tell whether layers can have the policies of then for a while."""
    return len(saved) == len(now) and not any(map(_is_quantized, [*saved, *now]))


def _some(policies: object) -> str:
    """Return the different ones of a list of policies."""
    return ", ".join(dict.fromkeys(map(str, policies))) if isinstance(policies, list) else "?"


@contextlib.contextmanager
def _policies(model: Any, names: Sequence[str]) -> Iterator[None]:
    layers = architecture.layers_of(model)
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer, name in zip(layers, names, strict=True):
            layer.dtype_policy = name
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


@contextlib.contextmanager
def _autocast(dtype: str | None) -> Iterator[None]:
    import torch

    kind = "cuda" if torch.cuda.is_initialized() else "cpu"  # type: ignore[no-untyped-call]
    cast = None if dtype is None else getattr(torch, dtype)
    with torch.autocast(kind, dtype=cast, enabled=dtype is not None):
        yield


@contextlib.contextmanager
def _exchanged(model: Any, arrays: Mapping[str, Any]) -> Iterator[None]:
    """Give variables other values for a while; as much memory again as those take."""
    places = {e.key: e.variable for e in variables.weights(model) if e.key in arrays}
    before = {key: np.array(variables.array_of(one)) for key, one in places.items()}
    try:
        for key, one in places.items():
            one.assign(keras.ops.convert_to_tensor(np.asarray(arrays[key]), dtype=one.dtype))
        yield
    finally:
        for key, one in places.items():
            one.assign(keras.ops.convert_to_tensor(before[key], dtype=one.dtype))
