"""Optimizer state by parameter name, where the file proves which is whose. Pure.

A `state_dict()` of torch numbers the parameters. Names are given back when the file carries
them (`param_names`), or when there is one group, which follows the model's parameters in order,
and each moment has the shape of the parameter it would go to. Otherwise the numbers stay.

Named state is `{"groups": [{"params": [names], …}], "state": {name: …}}`, which is how the
PyTorch adapter writes it.
"""

from __future__ import annotations

from typing import Any, Final

from ckptfmt.migrate.source import Lazy

_BUFFERS: Final = ("running_mean", "running_var", "num_batches_tracked")


def rekey(state: dict[str, Any]) -> list[str]:
    """Replace numbers by names in section `optimizer`; return what the report should say."""
    found: Any = state.get("optimizer")
    model: Any = state.get("model")
    if not isinstance(model, dict):
        return []
    notes: list[str] = []
    if _is_numbered(found):
        state["optimizer"] = _named(found, model, "optimizer", notes)
    elif isinstance(found, list):
        state["optimizer"] = [
            _named(one, model, f"optimizer/{n}", notes) if _is_numbered(one) else one
            for n, one in enumerate(found)
        ]
    return notes


def _is_numbered(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("state"), dict)
        and isinstance(node.get("param_groups"), list)
        and all(isinstance(group, dict) for group in node["param_groups"])
    )


def _named(
    optimizer: dict[str, Any], model: dict[str, Any], path: str, notes: list[str]
) -> dict[str, Any]:
    names = _names(optimizer, model)
    if names is None:
        notes.append(
            f"{path}: parameters keep their numbers, the file does not prove their names"
        )
        return optimizer
    notes.append(f"{path}: parameters go by name instead of number")
    groups = [
        {**group, "params": [names[n] for n in group["params"]]}
        for group in optimizer["param_groups"]
    ]
    rest = {k: v for k, v in optimizer.items() if k not in ("state", "param_groups")}
    by_name = {names[n]: value for n, value in optimizer["state"].items()}
    return {"groups": groups, "state": by_name, **rest}


def _names(optimizer: dict[str, Any], model: dict[str, Any]) -> dict[int, str] | None:
    """Return number → name when the file leaves no doubt."""
    groups = optimizer["param_groups"]
    numbers = [n for group in groups for n in group.get("params") or ()]
    told = [name for group in groups for name in group.get("param_names") or ()]
    if numbers and len(told) == len(numbers) and all(type(name) is str for name in told):
        return dict(zip(numbers, told, strict=True))  # since torch 2.6, when it was given names
    if len(groups) != 1:
        return None  # numbers follow the groups, and nothing says how these were chosen
    names: list[str] = []
    seen: set[int] = set()
    for name, value in model.items():
        is_buffer = isinstance(name, str) and name.rpartition(".")[2] in _BUFFERS
        if isinstance(value, Lazy) and not is_buffer and id(value) not in seen:
            seen.add(id(value))
            names.append(str(name))
    plain = all(type(n) is int for n in numbers) and len(set(numbers)) == len(numbers)
    if not plain or len(names) != len(numbers):
        return None
    named = dict(zip(numbers, names, strict=True))  # until 1.2 the numbers were addresses
    proven = 0
    for number, slots in optimizer["state"].items():
        if number not in named:
            return None
        shape = model[named[number]].shape
        moments = [
            v.shape
            for v in (slots.values() if isinstance(slots, dict) else ())
            if isinstance(v, Lazy) and v.shape not in ((), (1,))
        ]
        if any(found != shape for found in moments):
            return None
        proven += bool(moments)
    return named if proven else None
