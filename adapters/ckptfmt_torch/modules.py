"""Modules by name: parameters, buffers, extra state, and the tree of classes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from ckptfmt.errors import StateError, UsageError
from ckptfmt_torch import tensors, values

EXTRA: Final = "_extra_state"  # as torch calls what get_extra_state() returned


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module that the user wrote, below torch.compile, DDP and DataParallel."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, wrappers):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def canonical(name: str) -> str:
    """Return a name without the parts that torch.compile puts into it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def named_tensors(module: nn.Module, *, buffers: str = "persistent") -> dict[str, torch.Tensor]:
    """Return parameters and buffers by canonical name; tied ones under each of their names.

    Args:
        buffers: "persistent", or "all" for those too that torch leaves out of `state_dict`.

    Raises:
        UsageError: two tensors have one name.
    """
    if buffers not in ("persistent", "all"):
        raise UsageError("expected buffers='persistent' or 'all'", found=buffers)
    module = unwrap(module)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in _all(module, transient=buffers == "all"):
        key = canonical(name)
        if found.setdefault(key, tensor) is not tensor:
            raise UsageError("two tensors of the module have one name", path=key)
    return found


def _all(module: nn.Module, *, transient: bool) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield dot + name, parameter
        for name, buffer in owner._buffers.items():
            if buffer is not None and (
                transient or name not in owner._non_persistent_buffers_set
            ):
                yield dot + name, buffer


def named_extras(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have extra state of their own, by its canonical name."""
    found = {}
    for prefix, owner in unwrap(module).named_modules():
        if type(owner).get_extra_state is not nn.Module.get_extra_state:
            found[canonical(f"{prefix}.{EXTRA}" if prefix else EXTRA)] = owner
    return found


def capture(module: nn.Module, path: str, *, buffers: str) -> dict[str, Any]:
    """Return names to arrays over the module's own memory, and its extra state.

    Raises:
        StateError: a tensor or an extra state cannot be stored.
    """
    state: dict[str, Any] = {
        name: tensors.view(tensor, f"{path}/{name}")
        for name, tensor in named_tensors(module, buffers=buffers).items()
    }
    for name, owner in named_extras(module).items():
        if name in state:
            raise StateError("extra state has the name of a tensor", path=f"{path}/{name}")
        state[name] = values.to_tree(owner.get_extra_state(), f"{path}/{name}")
    return state


def architecture(module: nn.Module, config: object = None) -> dict[str, Any]:
    """Return the tree of classes with the shape and dtype of each tensor, and its SHA-256.

    Args:
        config: Plain values from which the module can be built again.
    """
    module = unwrap(module)
    classes = {
        canonical(name) or ".": f"{type(part).__module__}.{type(part).__qualname__}"
        for name, part in module.named_modules()
        if not hasattr(part, "_orig_mod")
    }
    shapes = {
        name: f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        for name, tensor in named_tensors(module).items()
    }
    content = {"classes": classes, "tensors": shapes}
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"framework": "torch", **content, "config": config, "sha256": digest}
