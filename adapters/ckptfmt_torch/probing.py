"""Run a model on a small batch, as in inference, and leave everything as it was.

probe(model, batch) ─► stored at the save ─► replayed by `restore` and by `subject`
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from ckptfmt.checks import Probe
from ckptfmt.checks.probe import allowed, noise, spread
from ckptfmt.checks.proof import Prepare as Prepare
from ckptfmt.checks.redact import text
from ckptfmt.errors import UsageError
from ckptfmt_torch import guarding, modules, numerics, tensors, values

FRAMEWORK: Final = "torch"

_CPU: Final = torch.device("cpu")
MAX_SETTING_LENGTH: Final = 40  # characters of a text among the settings of a layer


def probe(
    model: nn.Module,
    batch: Any,
    *,
    prepare: Prepare | None = None,
    absolute: float | None = None,
    relative: float | None = None,
) -> Probe:
    """Return a batch with what the model makes of it, to be stored with the model.

    The model runs twice, in `eval()` and without gradients, under the autocast of the caller.
    Its mode, attributes, buffers and all random generators are afterwards as they were.

    Args:
        batch: What the model is called with: a tuple as `model(*batch)`, a dict with str keys
            as `model(**batch)`, anything else as `model(batch)`. Tensors, arrays and plain
            values; a few examples are enough. The model's outputs are stored with it.
        prepare: Preprocessing: makes what the model is called with out of `batch`, which may
            then be as raw as one likes. Inputs before and after it are stored.
        absolute, relative: What counts as noise: absolute + relative * |output|, one of them
            0 if only the other is given; by default the bound of `ckptfmt.checks.probe.noise`
            for the model's dtype, its layers and the lengths of its sums.

    Raises:
        UsageError: the model is no module, returns no array to compare, has tensors that only a
            first call makes, or changes its parameters when it is called; or preprocessing
            draws random numbers.
        StateError: the batch or the outputs hold something that cannot be stored.
    """
    if not isinstance(model, nn.Module):
        raise UsageError("expected a torch.nn.Module to probe", found=type(model).__name__)
    kind = "torch" if _has_tensor(batch) else "numpy"
    inputs = owned(values.to_tree(batch, "inputs"))
    prepared = None if prepare is None else _prepared(prepare, inputs, kind)
    ready = inputs if prepared is None else prepared
    outputs = run(model, ready, None, evaluate=True)
    dtype = _narrowest(model, outputs)
    bound = noise(dtype, terms=_terms(model, ready), layers=_layers(model))
    given = absolute is not None or relative is not None
    again = spread(outputs, run(model, ready, None, evaluate=True, nth=1))
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
            "mode": "eval",
            "batch": kind,
            "spread": again,
            **({} if given else {"noise": bound}),
            "modules": settings(model),
            **state(model),
        },
    )


def run(
    model: nn.Module, inputs: Any, stored: Probe | None, *, evaluate: bool, nth: int = 0
) -> Any:
    """Return what a model makes of stored inputs, as a state tree of its own arrays.

    Args:
        stored: Where the inputs are from: those in the dtype of the parameters of then are
            given in the dtype of the parameters of now.
        evaluate: Whether to run in `eval()`, else in the mode the model is in.
        nth: Runs before this one: each draws other random numbers, if it draws any.
    """
    module = modules.unwrap(model)
    before = None if stored is None else stored.about.get("parameters")
    device, now = _device(module), _dtype(module)
    cast = now if before is not None and now is not None and _name(now) != before else None
    given = _tensors(inputs, device, before, cast)
    with guarding.undone(module, evaluate=evaluate), torch.no_grad():
        if nth:
            _reseed(nth)
        if isinstance(given, tuple):
            outputs = module(*given)
        elif isinstance(given, dict) and all(isinstance(key, str) for key in given):
            outputs = module(**given)
        else:
            outputs = module(given)
    tree = owned(values.to_tree(outputs, "outputs"))
    if not _has_array(tree):
        raise UsageError(
            "the model returns no tensor with elements that could be compared: probe a part of"
            " it that does, on a batch that is not empty",
            found=type(outputs).__name__,
        )
    return tree


def state(model: nn.Module) -> dict[str, Any]:
    """Return how a model computes at this moment: device, dtypes, autocast, settings."""
    module = modules.unwrap(model)
    device, dtype = _device(module), _dtype(module)
    kind = device.type
    casts = torch.is_autocast_enabled(kind) if kind in ("cpu", "cuda") else False
    return {
        "device": kind,
        "parameters": None if dtype is None else _name(dtype),
        "autocast": _name(torch.get_autocast_dtype(kind)) if casts else None,
        "numerics": numerics.record(),
    }


def made(prepare: Prepare, inputs: Any, kind: object, *, nth: int = 0) -> Any:
    """Return what preprocessing makes of stored inputs; generators stay as they were.

    Args:
        kind: What it takes: arrays if "numpy", else tensors on the CPU.
        nth: Runs before this one: each draws other random numbers, if it draws any.
    """
    batch = owned(inputs) if kind == "numpy" else _tensors(inputs, _CPU, None, None)
    with guarding.drawn(prepare if isinstance(prepare, nn.Module) else None):
        if nth:
            _reseed(nth)
        return owned(values.to_tree(prepare(batch), "inputs"))


def _prepared(prepare: Prepare, inputs: Any, kind: str) -> Any:
    found = made(prepare, inputs, kind)
    if spread(found, made(prepare, inputs, kind, nth=1)) > 0:
        raise UsageError(
            "preprocessing makes other inputs of the same batch each time, so no probe can tell"
            " whether it changed: turn augmentation off, as with transform.eval()"
        )
    return found


def settings(model: nn.Module) -> dict[str, str]:
    """Return class and settings of each module: numbers and flags that it was built with.

    Text only of torch's own modules, where it is a word such as a padding mode: what other
    classes keep may be anything.
    """
    return {name or ".": _described(part) for name, part in modules.walk(model)}


def _described(part: nn.Module) -> str:
    kind = type(part)
    own = kind.__module__.split(".")[0] == "torch"
    found = []
    for name, value in sorted(vars(part).items()):
        if name.startswith("_") or name == "training":
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if all(isinstance(one, bool | int | float | None) for one in numbers):
            found.append(f"{name}={value!r}")
        elif own and isinstance(value, str) and len(value) <= MAX_SETTING_LENGTH:
            found.append(f"{name}={text(value)!r}")
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(found)})"


def _reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _tensors(value: Any, device: torch.device, before: str | None, cast: Any) -> Any:
    """Return a state tree as a model takes it: arrays as tensors of their own memory."""
    if isinstance(value, np.ndarray):
        tensor = tensors.tensor_of(np.array(value)).to(device)
        follows = cast is not None and _name(tensor.dtype) == before
        return tensor.to(cast) if follows else tensor
    if isinstance(value, Mapping):
        return {key: _tensors(child, device, before, cast) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_tensors(child, device, before, cast) for child in value)
    return value


def owned(value: Any) -> Any:
    """Return a copy: a state tree whose arrays nobody else writes to."""
    if isinstance(value, np.ndarray):
        return np.array(value)
    if isinstance(value, Mapping):
        return {key: owned(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(owned(child) for child in value)
    return value


def _has_array(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_array, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_array, value))
    return isinstance(value, np.ndarray) and value.size > 0


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, torch.Tensor)


def _device(module: nn.Module) -> torch.device:
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating parameter: inputs follow it."""
    for tensor in module.parameters():
        if tensor.is_floating_point():
            return tensor.dtype
    return None


def _narrowest(module: nn.Module, outputs: Any) -> str:
    """Return the coarsest floating dtype among parameters, outputs and autocast."""
    found = {p.dtype for p in module.parameters() if p.is_floating_point()}
    names = {_name(dtype) for dtype in found} | set(_floating(outputs))
    casts = state(module)["autocast"]
    names |= {casts} if casts else set()
    known = [name for name in names if isinstance(getattr(torch, name, None), torch.dtype)]
    return max(known, key=lambda n: torch.finfo(getattr(torch, n)).eps, default="float32")


def _floating(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for child in value:
            yield from _floating(child)
    elif isinstance(value, np.ndarray) and tensors.torch_dtype(value.dtype).is_floating_point:
        yield _name(tensors.torch_dtype(value.dtype))


def _terms(module: nn.Module, inputs: Any) -> int:
    """Return about how many terms are added on the longest way from input to output.

    Each weight of several axes adds what one of its rows holds; sums over positions, as in
    attention and pooling, are about as long as one example of the inputs has elements.
    """
    rows = sum(p.numel() // max(1, p.shape[0]) for p in module.parameters() if p.ndim > 1)
    return rows + _longest(inputs)


def _longest(value: Any) -> int:
    """Return how many elements an example has; the first axis is that of the batch."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max(map(_longest, value), default=1)
    return math.prod(value.shape[1:]) if isinstance(value, np.ndarray) else 1


def _layers(module: nn.Module) -> int:
    return sum(not list(part.children()) for part in module.modules())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
