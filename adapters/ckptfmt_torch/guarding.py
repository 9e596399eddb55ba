"""Run a model, then put back what running it changed: it is training, or just restored.

What a forward may change: modes, what attributes, buffers and parameters are bound to, the
values of buffers, of plain tensors and containers among the attributes, generators. Values of
parameters are not copied, which would take as much memory again as the model; a change of
them is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ckptfmt.checks import undo
from ckptfmt.errors import UsageError
from ckptfmt_torch import generators, ranks

_TABLES: Final = ("_buffers", "_parameters", "_modules")  # put back on their own
_GENERATORS: Final = (torch.Generator, *undo.GENERATORS)


@contextlib.contextmanager
def undone(module: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Let a model run, then put back modes, attributes, buffers and generators.

    Attributes are put back as they were bound, and so is what a forward writes into lists,
    dicts, sets, arrays and tensors among them; not into other objects. Where several processes
    hold a model together, wrappers exchange its parameters while it runs: there what they are
    bound to stays.

    Args:
        evaluate: Whether to run in `eval()`.

    Raises:
        UsageError: parameters are not made yet; or running changed values of some.
    """
    lazy = [name for name, tensor in _named(module) if is_lazy(tensor)]
    if lazy:
        raise UsageError(
            "the model has tensors that its first call makes: call it once before",
            tensor=lazy[0],
        )
    alone = ranks.rank_and_world()[1] == 1
    modes = [(part, part.training) for part in module.modules()]
    bound = [_bindings(part, alone=alone) for part in module.modules()]
    tensors: list[torch.Tensor] = [*module.parameters()] if alone else []
    storages = [(t, t.detach()) for t in (*tensors, *module.buffers())]
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    versions = [(name, t, _version(t)) for name, t in module.named_parameters()]
    with drawn(module, alone=alone):
        try:
            # Casts that autocast keeps are of weights as they were, and without gradients.
            torch.clear_autocast_cache()
            if evaluate:
                module.eval()
            yield
        finally:
            for bindings in bound:
                for names, before in bindings:
                    _rebind(names, before)
            for part, training in modes:
                part.training = training
            _put_back(storages, buffers)
            torch.clear_autocast_cache()
    changed = [name for name, t, version in versions if alone and _version(t) != version]
    if changed:
        raise UsageError(
            "calling the model changes the values of its parameters, which is not undone: it"
            " cannot have a probe",
            parameter=changed[0],
        )


@contextlib.contextmanager
def drawn(module: nn.Module | None = None, *, alone: bool = True) -> Iterator[None]:
    """Let random numbers be drawn, then put back the generators and what attributes hold.

    Args:
        alone: Whether no other process holds the model, too: else only generators are.
    """
    before = generators.capture()
    own = [] if module is None else _attributes(module, alone=alone)
    try:
        yield
    finally:
        for put_back in own:
            put_back()
        generators.plan(before, None, "rng")[0]()


def _attributes(module: nn.Module, *, alone: bool) -> list[undo.Undo]:
    """Return what puts back all that attributes of modules hold, but buffers and parameters."""
    seen: dict[int, Any] = {id(tensor): tensor for _, tensor in _named(module)}
    return [
        put_back
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in _TABLES and (alone or isinstance(value, _GENERATORS))
        for put_back in undo.remember(value, _kept, seen)
    ]


def _kept(value: Any) -> undo.Undo | None:
    """Return what puts back a generator, or a tensor that is neither buffer nor parameter."""
    if isinstance(value, torch.Generator):
        return functools.partial(value.set_state, value.get_state())
    # Of other classes, layouts and places there is no comparing, or no writing to them.
    plain = type(value) is torch.Tensor and value.layout == torch.strided
    if not plain or value.is_meta or value.is_inference():
        return None
    memory = value.detach()
    return functools.partial(_put_back, [(value, memory)], [(value, memory.clone())])


def _bindings(part: nn.Module, *, alone: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the dicts in which a module binds names, each with a copy of it."""
    if isinstance(part, torch.jit.ScriptModule):  # they are in C++
        return []
    own = vars(part)
    names = _TABLES if alone else ("_buffers",)
    dicts = [own[name] for name in names]
    return [(one, dict(one)) for one in ([*dicts, own] if alone else dicts)]


def _rebind(names: dict[str, Any], before: dict[str, Any]) -> None:
    for name in names.keys() - before.keys():
        del names[name]
    for name, value in before.items():
        if name not in names or names[name] is not value:
            names[name] = value


def _put_back(
    storages: list[tuple[torch.Tensor, torch.Tensor]],
    buffers: list[tuple[torch.Tensor, torch.Tensor]],
) -> None:
    with torch.no_grad():
        for tensor, memory in storages:
            # `.data` was exchanged, or the tensor was resized.
            if _address(tensor) != _address(memory) or tensor.shape != memory.shape:
                tensor.data = memory
        for buffer, values in buffers:
            if not torch.equal(buffer, values):  # NaN: written once more, harmless
                buffer.copy_(values)


def _named(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _address(tensor: torch.Tensor) -> int:
    """Return where the memory begins; 0 for tensors that are made of others."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; inference tensors do not count."""
    return 0 if tensor.is_inference() else int(tensor._version)
