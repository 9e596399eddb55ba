"""How a model is built, compared with how the one that was saved was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

import ckptfmt
from ckptfmt.checks import Finding
from ckptfmt_torch import modules


def record(model: object, config: object = None) -> Any:
    """Return the tree of classes of a model, or of each of several; None without one."""
    if isinstance(model, Mapping):
        return {name: record(one, config) for name, one in model.items()}
    return modules.architecture(model, config) if isinstance(model, nn.Module) else None


def differences(
    checkpoint: ckptfmt.Checkpoint, model: object, config: object = None
) -> list[Finding]:
    """Return a finding for each class, shape and setting that was another one when saved.

    Reads no array: the architecture and its digest are in the manifest.

    Args:
        config: As given to `save`; None when there is nothing to compare with.
    """
    saved, now = checkpoint.architecture, record(model, config)
    if saved is None or now is None or _digest(saved, config) == _digest(now, config):
        return []
    return [
        Finding(
            severity="warning",
            name=f"architecture/{name}",
            saved=before,
            now=after,
            reason="the model is built otherwise than the one that was saved",
        )
        for name, before, after in parted(saved, now)
        if config is not None or not name.startswith("config")
    ]


def _digest(architecture: Mapping[str, Any], config: object) -> object:
    """Return what tells two architectures apart: digest and config, of each model."""
    if "sha256" in architecture:
        return architecture["sha256"], config and architecture.get("config")
    return {name: one and _digest(one, config) for name, one in architecture.items()}


def parted(
    saved: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Yield (path, value when saved, value now) of each value that differs, by path."""
    before, after = dict(_flat(saved)), dict(_flat(now))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _flat(value: object, path: str = "") -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        return [(path, value)]
    return [
        pair
        for key, child in value.items()
        for pair in _flat(child, f"{path}/{key}" if path else str(key))
    ]
