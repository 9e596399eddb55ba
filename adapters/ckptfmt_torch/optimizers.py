"""Optimizers by parameter name: no position in a list ever decides which momentum is whose.

    {"class": "torch.optim.adamw.AdamW",
     "groups": [{"params": ["fc1.weight", ...], "lr": 0.001, "betas": (0.9, 0.999), ...}],
     "state": {"fc1.weight": {"step": array, "exp_avg": array, ...}}}

torch's own `state_dict` numbers the parameters in the order of construction, and swaps
momenta silently when that order changes (pytorch/pytorch#1489).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ckptfmt.errors import MismatchError, StateError, UsageError
from ckptfmt.tree import join
from ckptfmt_torch import groups, numbered, tensors, values
from ckptfmt_torch.objects import Names


def class_of(optimizer: torch.optim.Optimizer) -> str:
    """Return the full name of an optimizer's class."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def capture(
    optimizer: torch.optim.Optimizer, names: Names, path: str, view: tensors.View
) -> dict[str, Any]:
    """Return the optimizer's state as a state tree.

    Args:
        view: Makes arrays of its tensors.
        names: `id(parameter)` → its names; it is stored under the first.

    Raises:
        UsageError: the optimizer updates a parameter without a name, or two of one name.
        StateError: part of its state cannot be stored, or is not here.
    """
    check(optimizer, path)
    stored = []
    state: dict[str, Any] = {}
    seen: set[str] = set()
    for number, group in enumerate(optimizer.param_groups):
        where = f"{path}/groups/{number}"
        members = [names_of(p, names, where)[0] for p in group["params"]]
        for name in members:
            if name in seen:
                raise UsageError(
                    "parameters of two objects have one name: give these objects other names",
                    path=join(where, name),
                )
            seen.add(name)
        rest = {key: value for key, value in group.items() if key not in groups.OWN}
        stored.append({"params": members, **values.to_tree(rest, where, view)})
        for name, parameter in zip(members, group["params"], strict=True):
            kept = optimizer.state.get(parameter)
            if kept:
                state[name] = values.to_tree(dict(kept), join(f"{path}/state", name), view)
    return {"class": class_of(optimizer), "groups": stored, "state": state}


def check(optimizer: torch.optim.Optimizer, path: str) -> None:
    """Raise unless groups and state by parameter are all that the optimizer is made of.

    Raises:
        StateError: it holds a part of what several processes share, or more of its own.
    """
    kinds = type(optimizer).__mro__
    if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in kinds):
        raise StateError(
            "this process holds a part of the optimizer's state only, which cannot be stored"
            " yet: store what consolidate_state_dict() and state_dict() return, as another"
            " object",
            path=path,
        )
    hooks = optimizer._optimizer_state_dict_post_hooks
    if type(optimizer).state_dict is torch.optim.Optimizer.state_dict and not hooks:
        return
    if beside := optimizer.state_dict().keys() - {"state", "param_groups"}:
        raise StateError(
            "the optimizer saves more than groups and state by parameter, which would be lost:"
            " give what keeps it as another object",
            path=path,
            names=sorted(map(str, beside)),
        )


def names_of(parameter: torch.Tensor, names: Names, path: str) -> Sequence[str]:
    """Return the names of a parameter; several of a tied one.

    Raises:
        UsageError: no module that was given has it.
    """
    found = names.get(id(parameter))
    if not found:
        raise UsageError(
            f"the optimizer updates a parameter of shape {tuple(parameter.shape)} that no given"
            " module has: pass the module it belongs to as `model=`",
            path=path,
        )
    return found


@dataclass(kw_only=True)
class Plan(groups.Notes):
    """What restoring one optimizer will do; nothing has been changed yet."""

    optimizer: torch.optim.Optimizer
    settings: list[dict[str, Any]]  # per live group: what to set
    state: dict[torch.Tensor, dict[str, Any]]  # what to put behind each parameter
    places: dict[str, torch.Tensor] = field(default_factory=dict)  # array path → tensor to fill

    def apply(self) -> None:
        """Set groups and state; the tensors in `places` have been filled by now."""
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        for parameter, kept in self.state.items():
            if kept:
                self.optimizer.state[parameter] = kept
            else:
                self.optimizer.state.pop(parameter, None)


def _is_migrated(stored: Any) -> bool:
    """Tell whether it came from a file of torch, which names no class of an optimizer."""
    return isinstance(stored, Mapping) and (
        set(stored) == {"groups", "state"} or set(stored) == {"param_groups", "state"}
    )


def _check_class(optimizer: torch.optim.Optimizer, stored: Any, path: str) -> None:
    found = stored.get("class") if isinstance(stored, Mapping) else None
    if found != class_of(optimizer) and not _is_migrated(stored):
        raise MismatchError(
            "the checkpoint has the state of another optimizer: build that one, or restore"
            " without `optimizer=`",
            path=path,
            expected=class_of(optimizer),
            found=found,
        )


def plan(
    optimizer: torch.optim.Optimizer,
    stored: Mapping[str, Any],
    names: Names,
    path: str,
    *,
    origins: Mapping[str, str],
    partly: bool,
) -> Plan:
    """Work out what goes where; lists everything that does not fit in `problems`.

    Args:
        stored: What `capture` returned, with lazy arrays in place of arrays.
        origins: Names of parameters → names they are stored under.
        partly: Whether parameters that have no origin stay as they are.

    Raises:
        MismatchError: what is stored is no optimizer of this adapter, or of another class.
    """
    _check_class(optimizer, stored, path)
    result = Plan(optimizer=optimizer, settings=[], state={})
    keys: dict[str, int] = {}  # name → number it is stored under
    if "param_groups" in stored:

        def home(p: torch.Tensor) -> str | None:
            return _home(names_of(p, names, path), {}, origins, partly=partly)

        stored, keys = numbered.by_name(optimizer, stored, home, path)
        result.findings.append(
            groups.finding("warning", path, None, "in order", numbered.REASON)
        )
    group_of = {
        name: number
        for number, group in enumerate(stored["groups"])
        for name in group["params"]
    }
    unnamed = iter([group for group in stored["groups"] if not group["params"]])
    live: set[str | None] = set()
    for number, group in enumerate(optimizer.param_groups):
        where = f"{path}/groups/{number}"
        members = [
            _home(names_of(p, names, where), group_of, origins, partly=partly)
            for p in group["params"]
        ]
        live.update(members)
        saved = groups.stored(members, group_of, stored["groups"], where, result)
        if not members and not partly:  # known by nothing but its place among such
            saved = next(unnamed, None)
        result.settings.append(groups.settings(optimizer, group, saved, where, result))
        for name, parameter in zip(members, group["params"], strict=True):
            if name is not None:
                at = join(f"{path}/state", keys.get(name, name))
                kept = stored["state"].get(name, {})
                _plan_state(result, parameter, kept, group, at, new=name not in group_of)
    for name in sorted(group_of.keys() - live if not partly else ()):
        result.findings.append(
            groups.finding("warning", join(f"{path}/state", name), "optimised", None, _GONE)
        )
    return result


def _plan_state(
    result: Plan,
    parameter: torch.Tensor,
    kept: Mapping[str, Any],
    group: Mapping[str, Any],
    path: str,
    *,
    new: bool,
) -> None:
    result.state[parameter] = {
        key: _entry(value, join(path, key), key, parameter, group, result)
        for key, value in kept.items()
    }
    if new:
        result.findings.append(groups.finding("info", path, None, "new parameter", _NEW))


def _home(
    names: Sequence[str],
    group_of: Mapping[str, int],
    origins: Mapping[str, str],
    *,
    partly: bool,
) -> str | None:
    """Return the name a parameter is stored under; None for one that stays as it is."""
    known = [origins.get(n, n) for n in names if n in origins or not partly]
    return next((name for name in known if name in group_of), known[0] if known else None)


_NEW = "was not optimised when saved: it starts without state, as at its first step"
_GONE = "was optimised when saved and is not now (frozen or removed): its state is not used"


def _entry(
    value: Any,
    path: str,
    key: str,
    parameter: torch.Tensor,
    group: Mapping[str, Any],
    result: Plan,
) -> Any:
    """Return a piece of state with a tensor, to be filled, in place of each stored array."""
    if isinstance(value, Mapping):
        return {
            k: _entry(v, join(path, k), k, parameter, group, result) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(
            _entry(v, f"{path}/{n}", key, parameter, group, result) for n, v in enumerate(value)
        )
    if not values.is_array(value):
        return value
    on_host = key == "step" and not (group.get("capturable") or group.get("fused"))
    device = torch.device("cpu") if on_host else parameter.device
    dtype = tensors.torch_dtype(value.dtype)
    place = _existing(result.optimizer, parameter, path, key)
    fits = place is not None and place.shape == value.shape and place.dtype == dtype
    if place is None or not fits or place.device != device:
        place = _empty(value.shape, dtype, device, parameter)
    result.places[path] = place
    return place


def _existing(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor, path: str, key: str
) -> torch.Tensor | None:
    kept = optimizer.state.get(parameter, {}).get(key)
    top = path.rsplit("/", 1)[-1] == key
    usable = isinstance(kept, torch.Tensor) and not tensors.is_expanded(kept)
    return kept if top and usable else None


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, parameter: torch.Tensor
) -> torch.Tensor:
    with torch.inference_mode(False):  # what is made within it cannot be trained on
        if tuple(shape) == tuple(parameter.shape):  # its strides, too: fused kernels care
            return torch.empty_like(parameter, dtype=dtype, device=device, requires_grad=False)
        return torch.empty(shape, dtype=dtype, device=device)
