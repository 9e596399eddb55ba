"""Whole modules that were pickled: the names their `state_dict()` would give. Pure.

`torch.save(model)` stores the object graph: `_parameters`, `_buffers`, `_modules` in each
module's state. No class is built; the arrays are found where every module keeps them.
"""

from __future__ import annotations

from typing import Any, Final

from ckptfmt.migrate.source import MAX_DEPTH, Lazy, Record

_PARTS: Final = "_parameters", "_buffers"


def unpack(state: dict[str, Any]) -> None:
    """Give a pickled module in section `model` its flat names; the object stays beside it."""
    root: Any = state.get("model")
    if not is_module(root):
        return
    state["model"] = state_dict(root)
    state["module"] = root  # what else the object held; its arrays are tied to those above


def is_module(node: Any) -> bool:
    """Tell whether a record is a module of PyTorch."""
    state = node.state if isinstance(node, Record) else None
    return isinstance(state, dict) and "_parameters" in state and "_modules" in state


def state_dict(module: Record) -> dict[str, Lazy]:
    """Return parameters and buffers by dotted name, in the order of `state_dict()`."""
    found: dict[str, Lazy] = {}
    todo: list[tuple[str, Any, int]] = [("", module, 0)]
    while todo:
        prefix, node, depth = todo.pop()
        state = node.state
        for part in _PARTS:
            for name, value in _entries(state.get(part)):
                array = value.state if isinstance(value, Record) else value
                if isinstance(array, Lazy):
                    found[f"{prefix}{name}"] = array
        inner = [
            (f"{prefix}{name}.", child, depth + 1)
            for name, child in _entries(state.get("_modules"))
            if is_module(child) and depth < MAX_DEPTH
        ]
        todo += reversed(inner)
    return found


def _entries(part: Any) -> list[tuple[Any, Any]]:
    return list(part.items()) if isinstance(part, dict) else []
