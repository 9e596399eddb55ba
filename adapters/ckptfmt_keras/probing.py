"""Run a model on a small batch, as in inference, and leave everything as it was.

probe(model, batch) ─► stored at the save ─► replayed by `restore`, `load_model`, `diagnose`
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import keras
import ml_dtypes
import numpy as np

from ckptfmt.checks import Probe
from ckptfmt.checks.probe import allowed, noise, spread
from ckptfmt.checks.proof import Prepare as Prepare
from ckptfmt.errors import UsageError
from ckptfmt_keras import architecture, generators, guarding, numerics

FRAMEWORK: Final = "keras"


def probe(
    model: Any,
    batch: Any,
    *,
    prepare: Prepare | None = None,
    absolute: float | None = None,
    relative: float | None = None,
) -> Probe:
    """Return a batch with what the model makes of it, to be stored with the model.

    The model is called twice with `training=False`. Its variables, attributes and all random
    generators are afterwards as they were.

    Args:
        batch: What the model is called with: an array, or a list or dict of arrays; a few
            examples are enough. The model's outputs are stored with it.
        prepare: Preprocessing: makes what the model is called with out of `batch`. Inputs
            before and after it are stored.
        absolute, relative: What counts as noise: absolute + relative * |output|, one of them
            0 if only the other is given; by default the bound of `ckptfmt.checks.probe.noise`.

    Raises:
        UsageError: the model is not built, returns nothing to compare, or changes its trainable
            variables when it is called; or preprocessing draws random numbers.
    """
    inputs = arrays(batch)
    prepared = None if prepare is None else made(prepare, inputs)
    if prepare is not None and spread(prepared, made(prepare, inputs, nth=1)) > 0:
        raise UsageError(
            "preprocessing makes other inputs of the same batch each time, so no probe can tell"
            " whether it changed: turn augmentation off, as with layer(x, training=False)"
        )
    ready = inputs if prepared is None else prepared
    outputs = run(model, ready)
    if not any(array.size for array in keras.tree.flatten(outputs)):
        raise UsageError("the model returns no elements that could be compared")
    dtype = _narrowest(model, outputs)
    layers = len(architecture.layers_of(model))
    bound = noise(dtype, terms=_terms(model, ready), layers=layers)
    given = absolute is not None or relative is not None
    again = spread(outputs, run(model, ready, nth=1))
    return Probe(
        inputs=inputs,
        prepared=prepared,
        outputs=outputs,
        dtype=dtype,
        absolute=absolute or 0.0 if given else allowed(bound, outputs),
        relative=relative or 0.0,
        deterministic=again == 0,
        about={
            "framework": FRAMEWORK,
            "backend": keras.backend.backend(),
            "policies": architecture.policies(model),
            "autocast": numerics.autocast(),
            "numerics": numerics.record(),
            "spread": again,
            **({} if given else {"noise": bound}),
        },
    )


def run(model: Any, inputs: Any, *, training: bool = False, nth: int = 0) -> Any:
    """Return what a model makes of inputs, as arrays of their own memory.

    Args:
        training: As the model is called with.
        nth: Runs before this one: each draws other random numbers, if it draws any.
    """
    with guarding.undone(model):
        if nth:
            generators.reseed(nth, model)
        return arrays(model(inputs, training=training))


def made(prepare: Prepare, inputs: Any, *, nth: int = 0) -> Any:
    """Return what preprocessing makes of stored inputs; generators stay as they were."""
    with generators.drawn():
        if nth:
            generators.reseed(nth)
        return arrays(prepare(arrays(inputs)))


def arrays(value: Any) -> Any:
    """Return tensors and arrays as arrays of their own memory."""
    if isinstance(value, Mapping):
        return {key: arrays(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(arrays(child) for child in value)
    return np.array(keras.ops.convert_to_numpy(value))


def _narrowest(model: Any, outputs: Any) -> str:
    """Return the coarsest floating dtype among variables, layers, autocast and outputs."""
    names = {str(variable.dtype) for variable in model.weights}
    names |= {str(layer.compute_dtype) for layer in architecture.layers_of(model)}
    names |= {str(array.dtype) for array in keras.tree.flatten(outputs)}
    names |= {numerics.autocast() or "float32"}
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
