"""The state of callbacks: what the next epoch's decisions depend on.

Keras' own callbacks forget it at the start of each `fit`; here is what to remember of each.
Other callbacks say it themselves, with `state_dict()` and `load_state_dict(state)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from ckptfmt.checks import Finding
from ckptfmt.errors import UsageError

# Class → attributes that change while it runs; its settings are the caller's to give.
_KNOWN: Final = {
    "EarlyStopping": ("wait", "best", "best_epoch", "stopped_epoch", "best_weights"),
    "ReduceLROnPlateau": ("wait", "best", "cooldown_counter"),
    "ModelCheckpoint": ("best",),
    "History": ("epoch", "history"),
}
_STATELESS: Final = frozenset(
    {"LearningRateScheduler", "CSVLogger", "TensorBoard", "TerminateOnNaN", "ProgbarLogger",
     "LambdaCallback", "RemoteMonitor"}
)  # fmt: skip


def named(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Return callbacks by class name, numbered where there are several of a class."""
    found: dict[str, Any] = {}
    for callback in callbacks:
        name = type(callback).__name__
        count = sum(key.partition("~")[0] == name for key in found)
        found[name if not count else f"{name}~{count}"] = callback
    return found


def capture(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Return the state of each callback that has one."""
    found = {}
    for name, callback in named(callbacks).items():
        if hasattr(callback, "state_dict"):
            found[name] = callback.state_dict()
        elif attributes := _KNOWN.get(_kind(callback)):
            found[name] = {a: _plain(getattr(callback, a, None)) for a in attributes}
        elif _kind(callback) not in _STATELESS:
            found[name] = None  # nobody knows what it remembers
    return found


def check(callbacks: Iterable[Any]) -> None:
    """Raise for what is no callback.

    Raises:
        UsageError: an object has none of their hooks.
    """
    for callback in callbacks:
        if not hasattr(callback, "on_epoch_end"):
            raise UsageError("expected a callback", found=type(callback).__name__)


def differences(stored: Mapping[str, Any], callbacks: Iterable[Any]) -> list[Finding]:
    """Return findings: callbacks that come or go, and those that keep no state."""
    here = named(callbacks)
    stored = {name: state for name, state in stored.items() if name != "History"}  # fit's own
    rows = [
        (name, "saved", "absent", "it was part of the run that was saved, and is not given now")
        for name in stored.keys() - here.keys()
    ]
    rows += [
        (name, "absent", "given", "it begins anew: it was not part of the run that was saved")
        for name in here.keys() - stored.keys()
        if hasattr(here[name], "state_dict") or _kind(here[name]) in _KNOWN
    ]
    rows += [
        (name, "unknown", "unknown", "what it remembers is not known: give it state_dict() and"
         " load_state_dict(state), or it begins anew")
        for name, state in stored.items()
        if state is None and name in here
    ]  # fmt: skip
    return [
        Finding(severity="warning", name=f"callbacks/{name}", saved=a, now=b, reason=reason)
        for name, a, b, reason in sorted(rows)
    ]


def restore(stored: Mapping[str, Any], callbacks: Iterable[Any]) -> None:
    """Give each callback its state back; those without one stay as they are."""
    for name, callback in named(callbacks).items():
        state = stored.get(name)
        if state is None:
            continue
        if hasattr(callback, "load_state_dict"):
            callback.load_state_dict(state)
            continue
        for attribute, value in state.items():
            setattr(callback, attribute, value)


def _kind(callback: Any) -> str:
    """Return the name of the nearest class of Keras."""
    for cls in type(callback).__mro__:
        if cls.__module__.split(".")[0] == "keras":
            return cls.__name__
    return type(callback).__name__


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    if isinstance(value, np.generic) or (hasattr(value, "shape") and value.shape == ()):
        return float(value)
    return value
