"""Whole modules that were pickled: the names their `state_dict()` would give. Pure.

`torch.save(model)` stores the object graph: `_parameters`, `_buffers`, `_modules` in each
module's state. No class is built; the arrays are found where every module keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate.source import MAX_DEPTH, Lazy, Record, text_of

MAX_MODULES: Final = 50_000  # modules that share parts can unfold to 2^n
MAX_PREFIX: Final = 20_000  # characters of the names of the modules around one
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
    for prefix, node in inside(module, _modules):
        state = node.state
        for part in _PARTS:
            for name, value in _entries(state.get(part)):
                array = value.state if isinstance(value, Record) else value
                if isinstance(array, Lazy):
                    found[f"{prefix}{text_of(name)}"] = array
    return found


def inside(
    module: Any, parts: Callable[[Any], Iterable[tuple[Any, Any]]]
) -> Iterator[tuple[str, Any]]:
    """Yield (prefix of its names, module) for a module and those inside it, outer ones first.

    One that is inside itself is not entered again.

    Raises:
        FormatError: nested too deep, or they share parts so often that they unfold to 2^n.
    """
    path = {id(module)}
    todo: list[tuple[str, Any, bool]] = [("", module, True)]
    seen = 0
    while todo:
        prefix, node, enters = todo.pop()
        if not enters:
            path.discard(id(node))
            continue
        path.add(id(node))
        seen += 1
        if len(path) > MAX_DEPTH or seen > MAX_MODULES or len(prefix) > MAX_PREFIX:
            raise FormatError("modules are nested too deep or too often", count=seen)
        yield prefix, node
        todo.append((prefix, node, False))
        inner = [
            (f"{prefix}{text_of(name)}.", part, True)
            for name, part in parts(node)
            if id(part) not in path
        ]
        todo += reversed(inner)


def _modules(module: Any) -> list[tuple[Any, Any]]:
    entries = _entries(module.state.get("_modules"))
    return [(name, child) for name, child in entries if is_module(child)]


def _entries(part: Any) -> list[tuple[Any, Any]]:
    return list(part.items()) if isinstance(part, dict) else []
