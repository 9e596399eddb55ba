"""Modules by name: parameters, buffers, extra state, and the tree of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ckptfmt.errors import StateError, UsageError
from ckptfmt.tree import join
from ckptfmt_torch import tensors, values

EXTRA: Final = "_extra_state"  # as torch calls what get_extra_state() returned


_WRAPPERS: Final = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_COMPILED: Final = "_orig_mod"  # what torch.compile calls the module it was given


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that the user wrote, below torch.compile, DDP and DataParallel."""
    while True:
        inner = getattr(module, _COMPILED, None)
        if isinstance(module, _WRAPPERS):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def walk(module: nn.Module, *, tied: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of all modules the user wrote; wrappers at any depth have no part.

    Args:
        tied: Whether to yield a module that is there twice under each of its names.
    """
    names = {"": ("", module)}  # as torch says it: our name, and the module
    for path, part in module.named_modules(remove_duplicate=not tied):
        above, _, last = path.rpartition(".")
        name, owner = names[above]
        hidden = last == _COMPILED or (last == "module" and isinstance(owner, _WRAPPERS))
        names[path] = (name if hidden else joined(name, last)), part
        if not isinstance(part, _WRAPPERS) and _COMPILED not in part._modules:
            yield names[path]


def joined(prefix: str, name: str) -> str:
    """Return the name of what is called `name` in the module called `prefix`."""
    return f"{prefix}.{name}" if prefix and name else prefix or name


def named_tensors(module: nn.Module, *, buffers: str = "persistent") -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name; tied ones under each of their names.

    Args:
        buffers: "persistent", or "all" for those too that torch leaves out of `state_dict`.

    Raises:
        UsageError: two tensors have one name.
    """
    if buffers not in ("persistent", "all"):
        raise UsageError("expected buffers='persistent' or 'all'", found=buffers)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _all(module, transient=buffers == "all"):
        if found.setdefault(name, tensor) is not tensor:
            raise UsageError("two tensors of the module have one name", path=name)
    return found


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield parameters by name; tied ones under each of their names."""
    for prefix, owner in walk(module, tied=True):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield joined(prefix, name), parameter


def _all(module: nn.Module, *, transient: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, owner in walk(module, tied=True):
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield joined(prefix, name), parameter
        for name, buffer in owner._buffers.items():
            if buffer is not None and (
                transient or name not in owner._non_persistent_buffers_set
            ):
                yield joined(prefix, name), buffer


def named_extras(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have extra state of their own, by its name."""
    return {
        joined(prefix, EXTRA): owner
        for prefix, owner in walk(module)
        if type(owner).get_extra_state is not nn.Module.get_extra_state
    }


def check(module: nn.Module, path: str) -> None:
    """Raise unless parameters, buffers and extra state are all that the module is made of.

    Raises:
        StateError: it holds a part of what several processes share, or saves things of its
            own: packed weights, as quantised layers do, or what hooks add.
    """
    if any(kind.__name__ == "FullyShardedDataParallel" for kind in _kinds(module)):
        raise StateError(
            "this process holds a part of each tensor of the model only, which cannot be stored"
            " yet: store what its full state_dict returns, as another object",
            path=path,
        )
    if not any(_saves_itself(part) for part in module.modules()):
        return
    held = {_memory(tensor) for _, tensor in _all(module, transient=True)}
    beside = [
        name
        for name, value in module.state_dict(keep_vars=True).items()
        if not name.endswith(EXTRA)
        and not (isinstance(value, torch.Tensor) and _memory(value) in held)
    ]
    if beside:
        raise StateError(
            "the model saves what is no parameter, buffer or extra state, as quantised layers"
            " do: give an object whose state_dict and load_state_dict turn it into plain"
            " values and tensors",
            path=path,
            names=beside,
        )


def _kinds(module: nn.Module) -> Iterator[type]:
    for part in module.modules():
        yield from type(part).__mro__


def _saves_itself(module: nn.Module) -> bool:
    """Return whether a module's `state_dict` may hold more than PyTorch puts there."""
    kind = type(module)
    return (
        kind._save_to_state_dict is not nn.Module._save_to_state_dict
        or kind.state_dict is not nn.Module.state_dict
        or bool(module._state_dict_hooks)
    )


def _memory(tensor: torch.Tensor) -> object:
    """Return what tells the memory of a tensor; itself where that has no address."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse, nested, not made yet
        return id(tensor)


def capture(
    module: nn.Module, path: str, *, buffers: str, view: tensors.View
) -> dict[str, Any]:
    """Return names to arrays, which `view` makes of tensors, and the module's extra state.

    Raises:
        StateError: a tensor or an extra state cannot be stored, or there is more; see `check`.
    """
    check(module, path)
    state: dict[str, Any] = {
        name: view(tensor, join(path, name))
        for name, tensor in named_tensors(module, buffers=buffers).items()
    }
    for name, owner in named_extras(module).items():
        if name in state:
            raise StateError("extra state has the name of a tensor", path=join(path, name))
        state[name] = values.to_tree(owner.get_extra_state(), join(path, name), view)
    return state


def architecture(module: nn.Module, config: object = None) -> dict[str, Any]:
    """Return the tree of classes with the shape and dtype of each tensor, and its SHA-256.

    Args:
        config: Plain values from which the module can be built again.
    """
    classes = {
        name or ".": f"{type(part).__module__}.{type(part).__qualname__}"
        for name, part in walk(module)
    }
    shapes = {
        name: f"{str(tensor.dtype).removeprefix('torch.')}"
        f"{'[?]' if is_lazy(tensor) else list(tensor.shape)}"
        for name, tensor in named_tensors(module).items()
    }
    content = {"classes": classes, "tensors": shapes}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"framework": "torch", **content, "config": config, "sha256": digest}
