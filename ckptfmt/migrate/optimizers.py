"""Optimizer state by parameter name, where the file proves which is whose. Pure.

A `state_dict()` of torch numbers the parameters. Names are given back when the file carries
them (`param_names`), or when there is one group of as many parameters as the model has, no two
of these have one shape, and the moments of each number have the shape of its parameter (one
without moments is then the one that is left). Otherwise the numbers stay: torch itself only
goes by order, and a file does not tell in which order an optimizer was given its parameters.

Named state is `{"groups": [{"params": [names], …}], "state": {name: …}}`, which is how the
PyTorch adapter writes it.
"""

from __future__ import annotations

from typing import Any, Final

from ckptfmt.migrate.source import Lazy, walk

_NEW: Final = {"param_groups": "groups", "state": "state"}
_BUFFERS: Final = ("running_mean", "running_var", "num_batches_tracked")


def rekey(state: dict[str, Any]) -> list[str]:
    """Replace numbers by names in section `optimizer`; return what the report should say."""
    found: Any = state.get("optimizer")
    model: Any = state.get("model")
    if not isinstance(model, dict):
        return []
    notes: list[str] = []
    new: Any = found
    if _is_numbered(found):
        new = _named(found, model, "optimizer", notes)
    elif isinstance(found, list):
        new = [
            _named(one, model, f"optimizer/{n}", notes) if _is_numbered(one) else one
            for n, one in enumerate(found)
        ]
    # Leaves stand in the source's order and are matched one by one: a state that holds itself
    # would have others.
    if sum(1 for _ in walk(new)) != sum(1 for _ in walk(found)):
        return ["optimizer: parameters keep their numbers, it holds itself"]
    if notes:
        state["optimizer"] = new
    return notes


def _is_numbered(node: Any) -> bool:
    match node:
        case {"state": dict(state), "param_groups": [*groups]} if "groups" not in node:
            pass
        case _:
            return False
    if not all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups):
        return False
    numbers = _numbers(node)
    whole = all(type(n) is int for n in (*numbers, *state))
    return whole and len(set(numbers)) == len(numbers) and state.keys() <= set(numbers)


def _numbers(optimizer: dict[str, Any]) -> list[Any]:
    return [n for group in optimizer["param_groups"] for n in group["params"]]


def _named(
    optimizer: dict[str, Any], model: dict[str, Any], path: str, notes: list[str]
) -> dict[str, Any]:
    names = _told(optimizer) or _by_shape(optimizer, model)
    if names is not None:
        new = {
            "groups": [
                {k: [names[n] for n in v] if k == "params" else v for k, v in group.items()}
                for group in optimizer["param_groups"]
            ],
            "state": {names[n]: value for n, value in optimizer["state"].items()},
        }
        notes.append(f"{path}: parameters go by name instead of number")
        return {
            "groups" if k == "param_groups" else k: new.get(_NEW.get(k, ""), v)
            for k, v in optimizer.items()
        }
    notes.append(f"{path}: parameters keep their numbers, the file does not prove their names")
    return optimizer


def _told(optimizer: dict[str, Any]) -> dict[int, str] | None:
    """Return number → name where each group carries names: torch since 2.6, if it had any."""
    numbers = _numbers(optimizer)
    names: list[Any] = []
    for group in optimizer["param_groups"]:
        told = group.get("param_names")
        if not isinstance(told, list) or len(told) != len(group["params"]):
            return None
        names += told
    if not all(type(name) is str for name in names) or len(set(names)) != len(names):
        return None
    return dict(zip(numbers, names, strict=True)) or None


def _by_shape(optimizer: dict[str, Any], model: dict[str, Any]) -> dict[int, str] | None:
    """Return number → name where the shapes leave one way only."""
    if len(optimizer["param_groups"]) != 1:
        return None  # numbers follow the groups, and nothing says how these were chosen
    names: list[str] = []
    seen: set[int] = set()
    for name, value in model.items():
        is_buffer = isinstance(name, str) and name.rpartition(".")[2] in _BUFFERS
        if isinstance(value, Lazy) and not is_buffer and id(value) not in seen:
            seen.add(id(value))
            names.append(name)
    numbers = _numbers(optimizer)
    shapes = {model[name].shape for name in names}
    texts = all(type(name) is str for name in names)
    if not texts or not len(shapes) == len(names) == len(numbers):
        return None
    named = dict(zip(numbers, names, strict=True))  # until 1.2 the numbers were addresses
    proven = 0
    for number, slots in optimizer["state"].items():
        moments = [
            v.shape
            for v in (slots.values() if isinstance(slots, dict) else ())
            if isinstance(v, Lazy) and v.shape not in ((), (1,))
        ]
        if any(found != model[named[number]].shape for found in moments):
            return None
        proven += bool(moments)
    return named if proven and proven >= len(names) - 1 else None
