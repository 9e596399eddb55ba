"""Run a model, then put back what running it changed: it is training, or just restored.

What a call may change: variables, what attributes of layers are bound to and what lists,
dicts, arrays and plain tensors among them hold, generators. Values of trainable variables are
not copied, which would take as much memory again as the model; a change of them is refused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ckptfmt.checks import undo
from ckptfmt.errors import UsageError
from ckptfmt_keras import architecture, generators, variables


@contextlib.contextmanager
def undone(model: Any) -> Iterator[None]:
    """Let a model run, then put back variables, attributes and generators.

    Raises:
        UsageError: running it changed the values of trainable variables.
    """
    trainable = {id(one): one for one in model.trainable_variables}
    others = [
        one
        for one in (*model.variables, *architecture.carried(model).values())
        if id(one) not in trainable
    ]
    values = [(one, np.array(variables.array_of(one))) for one in others]
    stamps = [(one, _stamp(one)) for one in trainable.values()]
    layers = [model, *architecture.layers_of(model)]
    bound = [(vars(layer), dict(vars(layer))) for layer in layers]
    seen: dict[int, Any] = {}
    held = [put for _, one in bound for put in undo.remember(one, _kept, seen)]
    with generators.drawn(model):
        try:
            yield
        finally:
            for names, before in bound:
                _rebind(names, before)
            for put_back in held:
                put_back()
            for one, value in values:
                _put_back(one, value)
    changed = [one for one, stamp in stamps if not _equal(_stamp(one), stamp)]
    if changed:
        raise UsageError(
            "calling the model changes its trainable variables, which is not undone: it cannot"
            " have a probe",
            variable=str(changed[0].path),
        )


def _stamp(variable: Any) -> Any:
    """Return what is another one once a value was written: as cheap as a backend allows."""
    backend = keras.backend.backend()
    if backend == "jax":
        return variable.value  # never written to: a new value is a new array
    if backend == "torch":
        tensor = variable.value
        return (tensor.data_ptr(), tensor._version)
    return hashlib.blake2b(variables.array_of(variable).tobytes()).digest()


def _equal(now: Any, before: Any) -> bool:
    return now is before or (isinstance(before, bytes | tuple) and bool(now == before))


def _put_back(variable: Any, before: Any) -> None:
    if variables.array_of(variable).tobytes() != before.tobytes():
        variable.assign(keras.ops.convert_to_tensor(before, dtype=variable.dtype))


def _rebind(names: dict[str, Any], before: dict[str, Any]) -> None:
    for name in names.keys() - before.keys():
        del names[name]
    for name, value in before.items():
        if name not in names or names[name] is not value:
            names[name] = value


def _kept(value: Any) -> undo.Undo | None:
    """Return what puts back a tensor or generator of torch; other backends' are never written
    to, or variables."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    plain = type(value) is torch.Tensor and value.layout == torch.strided
    if not plain or value.is_meta or value.is_inference():
        return None
    return functools.partial(_copy, value.detach(), value.detach().clone())


def _copy(memory: Any, before: Any) -> None:
    if not memory.equal(before):
        memory.copy_(before)
