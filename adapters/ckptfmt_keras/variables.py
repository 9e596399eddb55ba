"""The variables of a model under keys that no reload changes: ordinal and name.

`Variable.path` is another one after a model was loaded, or built twice in a process; the order
of `model.weights` is not. So `0003.kernel` is the key, and a path such as `dense_1/kernel` a
label for people, kept beside it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import keras
import ml_dtypes
import numpy as np
import numpy.typing as npt

from ckptfmt.errors import StateError, UsageError

Array: TypeAlias = npt.NDArray[Any]

_AUTOMATIC: Final = re.compile(r"(variable|seed_generator_state)(_\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One variable of a model."""

    key: str  # ordinal and name, such as 0003.kernel
    label: str  # layers and name, such as dense_1/kernel; not unique, may change
    variable: Any


def weights(model: Any) -> list[Entry]:
    """Return the variables of a model in their order: all but seeds and metrics.

    Raises:
        UsageError: the model is not built, so its variables do not exist yet.
    """
    check_built(model)
    labels = _labels(model)
    return [
        Entry(
            key=f"{number:04d}.{local_name(variable)}",
            label=labels.get(id(variable), local_name(variable)),
            variable=variable,
        )
        for number, variable in enumerate(model.weights)
    ]


def seeds(model: Any) -> list[Any]:
    """Return the states of the seed generators of a model's layers, in order."""
    known = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in known]


def check_built(model: Any) -> None:
    """Raise unless every layer has its variables.

    Raises:
        UsageError: it has not; the message says how to get them.
    """
    layers = getattr(model, "layers", [])
    unbuilt = [layer.name for layer in layers if not layer.built]
    if unbuilt or not (model.built or layers):
        raise UsageError(
            "this model is not built, it has no variables yet: give it an input shape, call"
            " model.build(...), or pass one batch through it",
            model=model.name,
            layers=unbuilt,
        )


def local_name(variable: Any) -> str:
    """Return a variable's name; names that Keras numbers by itself lose the number."""
    name = str(variable.name).replace("~", "_")  # which paths use to escape
    found = _AUTOMATIC.fullmatch(name)
    return name if found is None else found[1]


def array_of(variable: Any) -> Array:
    """Return the value on the host: over the memory of the backend where it has it there.

    Raises:
        StateError: it has no value: JAX holds it elsewhere within `fit`.
    """
    value = variable.value
    if value is None:
        raise StateError(
            "this variable has no value now: on JAX, training holds it; save from a callback",
            path=str(variable.path),
        )
    if keras.backend.backend() != "torch":
        return np.asarray(value)
    tensor = value.detach().cpu()
    bits: Array
    if str(tensor.dtype) == "torch.bfloat16":  # which torch does not hand to NumPy
        bits = keras.ops.convert_to_numpy(tensor).astype(ml_dtypes.bfloat16, copy=False)
    else:
        bits = tensor.numpy()
    return bits


def memory_of(variable: Any) -> Array | None:
    """Return a variable's memory, to be written to; None where only `assign` changes it.

    On torch, on the CPU, it is a tensor like any other.
    """
    if keras.backend.backend() != "torch":
        return None
    tensor = variable.value.detach()
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    if str(tensor.dtype) == "torch.bfloat16":
        import torch

        bits: Array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return bits
    found: Array = tensor.numpy()
    return found


def described(variable: Any) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape; its data is not touched."""
    return str(variable.dtype), tuple(int(size) for size in variable.shape)


def integers(variable: Any) -> list[int] | int:
    """Return a variable of integers as plain ones: their width differs between backends."""
    found: list[int] | int = array_of(variable).tolist()
    return found


def assign_integers(variable: Any, values: Sequence[int] | int) -> None:
    """Assign plain integers, with the bits that fit the variable's width.

    A seed is a number of 32 bits, which some backends call signed.
    """
    bits = np.array(values, np.int64)
    dtype = np.dtype(str(variable.dtype))
    variable.assign(bits.astype(np.uint32).astype(dtype) if dtype.itemsize == 4 else bits)


def _labels(model: Any) -> dict[int, str]:
    labels: dict[int, str] = {}
    for layer in getattr(model, "layers", []):
        for variable in layer.weights:
            _, _, below = f"/{variable.path}".rpartition(f"/{layer.name}/")
            labels.setdefault(id(variable), f"{layer.name}/{below or local_name(variable)}")
    return labels
