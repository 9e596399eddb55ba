"""A batch stored with a model, to prove a load by; and what to look at when it differs.

saved = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, batch))
replay = ckptfmt_keras.diagnose(saved, ckptfmt_keras.load_model(saved))
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import keras
import ml_dtypes
import numpy as np

import ckptfmt
from ckptfmt.checks import Cause, Probe, Replay, diagnosis, examine
from ckptfmt.checks.probe import allowed, noise, spread
from ckptfmt.checks.subject import Experiment
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt_keras import architecture, restoring, variables

Prepare: TypeAlias = Callable[[Any], Any]

FRAMEWORK: Final = "keras"


def probe(model: Any, batch: Any, *, prepare: Prepare | None = None) -> Probe:
    """Return a batch with what the model makes of it, to be stored with the model.

    The model is called twice with `training=False`; states that it carries are put back.

    Args:
        batch: What the model is called with: an array, or a list or dict of arrays.
        prepare: Preprocessing: makes what the model is called with out of `batch`. Inputs
            before and after it are stored.

    Raises:
        UsageError: the model is not built, or returns nothing to compare.
    """
    inputs = _arrays(batch)
    prepared = None if prepare is None else _arrays(prepare(inputs))
    ready = inputs if prepared is None else prepared
    outputs = run(model, ready)
    dtype = _narrowest(model, outputs)
    if not any(array.size for array in keras.tree.flatten(outputs)):
        raise UsageError("the model returns no elements that could be compared")
    layers = len(architecture.layers_of(model))
    bound = noise(dtype, terms=_terms(model, ready), layers=layers)
    again = spread(outputs, run(model, ready))
    return Probe(
        inputs=inputs,
        prepared=prepared,
        outputs=outputs,
        dtype=dtype,
        absolute=allowed(bound, outputs),
        relative=0.0,
        deterministic=again == 0,
        about={
            "framework": FRAMEWORK,
            "backend": keras.backend.backend(),
            "policies": architecture.policies(model),
            "spread": again,
            "noise": bound,
        },
    )


def run(model: Any, inputs: Any) -> Any:
    """Return what a model makes of inputs in inference, as arrays of their own memory."""
    carried = architecture.carried(model)
    before = {key: np.array(variables.array_of(one)) for key, one in carried.items()}
    try:
        return _arrays(model(inputs, training=False))
    finally:
        for key, one in carried.items():
            one.assign(before[key])


class Subject:
    """A loaded Keras model under examination; see `ckptfmt.checks.subject`."""

    def __init__(
        self, checkpoint: ckptfmt.Checkpoint, model: Any, *, prepare: Prepare | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._prepare = prepare

    def run(self, stored: Probe) -> Any:
        """Return what the model makes of the probe's inputs."""
        made = self.prepare(stored)
        if made is not None:
            return run(self._model, made)
        return run(self._model, stored.inputs if stored.prepared is None else stored.prepared)

    def prepare(self, stored: Probe) -> Any:
        """Return what preprocessing makes of the probe's inputs; None without one."""
        return None if self._prepare is None else _arrays(self._prepare(stored.inputs))

    def observe(self, stored: Probe) -> Iterator[Cause]:
        """Say what is not as it was when the probe was stored."""
        yield from self._weights()
        saved = restoring.recorded(self._checkpoint)
        now = architecture.describe(self._model)
        rows = restoring.parted(
            architecture.essence(saved["config"]), architecture.essence(now["config"])
        )
        for path, before, after in rows:
            text = f"{path} was {before!r} when saved and is {after!r} here"
            yield Cause(name="settings", strength="observed", evidence=text)
        about = stored.about
        if about.get("policies") != architecture.policies(self._model):
            text = f"dtype policies were {about.get('policies')}, are {now['policies']} here"
            yield Cause(name="precision", strength="observed", evidence=text)
        if about.get("backend") != keras.backend.backend():
            text = f"it ran on {about.get('backend')}, runs on {keras.backend.backend()} here"
            yield Cause(name="backend", strength="observed", evidence=text)

    def experiments(self, stored: Probe) -> Iterator[Experiment]:
        """Nothing of a built model can be taken away for a while."""
        yield from ()

    def _weights(self) -> Iterator[Cause]:
        """Compare variables with stored arrays, bit for bit."""
        content = self._checkpoint.tree().get("model", {})
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


def diagnose(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    prepare: Prepare | None = None,
    preprocessing: Any = None,
    artifacts: Mapping[str, bytes | os.PathLike[str]] | None = None,
) -> Replay:
    """Say whether a model predicts as when the checkpoint was saved, and if not, why.

    Args:
        prepare: Preprocessing here, for a probe that includes it.
        preprocessing, artifacts: Those in use here, to be compared with the stored ones.

    Raises:
        NotFoundError: the checkpoint has no probe.
    """
    stored = checkpoint.probe()
    if stored is None:
        raise NotFoundError(
            "the checkpoint has no probe: save with probe=ckptfmt_keras.probe(model, batch)",
            checkpoint=checkpoint.number,
        )
    return examine(
        Subject(checkpoint, model, prepare=prepare),
        stored,
        environment=checkpoint.check_environment(),
        inputs=checkpoint.check_preprocessing(preprocessing=preprocessing, artifacts=artifacts),
    )


def _arrays(value: Any) -> Any:
    """Return tensors and arrays as arrays of their own memory."""
    if isinstance(value, Mapping):
        return {key: _arrays(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_arrays(child) for child in value)
    return np.array(keras.ops.convert_to_numpy(value))


def _narrowest(model: Any, outputs: Any) -> str:
    """Return the coarsest floating dtype among variables, layers and outputs."""
    names = {str(variable.dtype) for variable in model.weights}
    names |= {str(layer.compute_dtype) for layer in architecture.layers_of(model)}
    names |= {str(array.dtype) for array in keras.tree.flatten(outputs)}
    known = [name for name in names if "float" in name]
    return max(known, key=_epsilon, default="float32")


def _epsilon(name: str) -> float:
    try:
        return float(ml_dtypes.finfo(getattr(ml_dtypes, name, name)).eps)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise UsageError("a dtype without a known precision", found=name) from error


def _terms(model: Any, inputs: Any) -> int:
    """Return about how many terms are added on the longest way from input to output."""
    kernels = (v.shape for v in model.weights if len(v.shape) > 1)
    rows = sum(math.prod(shape[:-1]) for shape in kernels)
    sizes = (math.prod(a.shape[1:]) for a in keras.tree.flatten(inputs))  # of one example
    return int(rows) + max(sizes, default=1)
