"""Groups of an optimizer's parameters: in which one they were, and what to set in theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError
from ckptfmt_torch import values

OWN = ("params", "param_names")  # what a group says of its parameters, not of their update
# Settings of the update rule that releases of torch have added, and what the rule was before.
# Others of theirs (foreach, fused, capturable, differentiable) only choose how it is computed.
BEFORE: Final[Mapping[str, object]] = {
    "amsgrad": False,
    "centered": False,
    "decoupled_weight_decay": False,  # 2.7; AdamW always had it
    "maximize": False,
    "momentum": 0,
    "nesterov": False,
}
# What schedulers write into the groups; those of torch 2.13.
_SCHEDULED: Final = frozenset(
    {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
)
_KEY_SCHEDULED = "schedulers add this setting, and one side has no such scheduler: not touched"
_KEY_NEW = "this release of torch has a setting that the checkpoint lacks: it stays as it is"
_KEY_FILLED = "the checkpoint lacks this setting: set to what releases of torch without it did"
_KEY_GONE = "the checkpoint has a setting that this release of torch lacks: it is not used"


@dataclass(kw_only=True)
class Notes:
    """What there is to say of a plan; nothing has been read or changed yet."""

    problems: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    # What only data tells, called once all else fits; they raise MismatchError.
    reads: list[Callable[[], None]] = field(default_factory=list)


def finding(severity: Any, name: str, saved: object, now: object, reason: str) -> Finding:
    return Finding(severity=severity, name=name, saved=saved, now=now, reason=reason)


def stored(
    members: Sequence[str | None],
    group_of: Mapping[str, int],
    groups: Sequence[Mapping[str, Any]],
    where: str,
    notes: Notes,
) -> Mapping[str, Any] | None:
    """Return the stored group these parameters were in; None when all of them are new."""
    homes = sorted(
        {group_of[name] for name in members if name is not None and name in group_of}
    )
    own = [groups[home] for home in homes]
    if len(homes) > 1:
        problem = f"{where}: its parameters were in groups {homes} with different settings"
        if _differ(own, read=False):
            notes.problems.append(problem)
        else:
            notes.reads.append(functools.partial(_check_equal, own, problem))
    return own[0] if own else None


def _check_equal(groups: Sequence[Mapping[str, Any]], problem: str) -> None:
    if _differ(groups, read=True):
        raise MismatchError(problem)


def _differ(groups: Sequence[Mapping[str, Any]], *, read: bool) -> bool:
    """Return whether settings differ; of arrays only dtype and shape where none is read."""
    first, *others = (_comparable(_plain(group), read=read) for group in groups)
    return any(other != first for other in others)


def _comparable(value: Any, *, read: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(child, read=read) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(child, read=read) for child in value]
    if values.is_array(value):
        return str(value.dtype), value.shape, read and np.asarray(value).tobytes()
    return value


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in OWN}


def settings(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    where: str,
    notes: Notes,
) -> dict[str, Any]:
    """Return what to put into a live group, in the types it has; arrays once they are read."""
    if saved is None:
        return {}
    found = _added(optimizer, group, saved, where, notes)
    for key, value in _plain(saved).items():
        at = f"{where}/{key}"
        if key not in group:
            severity, reason = _foreign(key, _KEY_GONE)
            notes.findings.append(finding(severity, at, value, None, reason))
            continue
        settle = functools.partial(_settle, found, key, value, group[key], at)
        if values.has_arrays(value):
            notes.reads.append(settle)
        else:
            settle()
    return found


def _settle(found: dict[str, Any], key: str, value: Any, live: Any, path: str) -> None:
    found[key] = values.like(values.loaded(value), live, path)


def _foreign(key: str, reason: str) -> tuple[str, str]:
    """Return severity and reason for a key that one side only has."""
    return ("info", _KEY_SCHEDULED) if key in _SCHEDULED else ("warning", reason)


def _added(
    optimizer: torch.optim.Optimizer,
    group: Mapping[str, Any],
    saved: Mapping[str, Any],
    where: str,
    notes: Notes,
) -> dict[str, Any]:
    """Return what to set that the release of the save did not have; a finding for each."""
    found: dict[str, Any] = {}
    for key in sorted(group.keys() - saved.keys() - set(OWN)):
        if key in BEFORE:
            is_adamw = isinstance(optimizer, torch.optim.AdamW)
            found[key] = is_adamw if key == "decoupled_weight_decay" else BEFORE[key]
        now = found.get(key, group[key])
        severity = "info" if now == group[key] else "warning"
        reason = _KEY_FILLED if key in found else _foreign(key, _KEY_NEW)[1]
        notes.findings.append(finding(severity, f"{where}/{key}", None, now, reason))
    return found
