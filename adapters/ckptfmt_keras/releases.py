"""Settings that came with a later release of Keras, where nobody has set them.

A newer Keras writes down settings of its layers that an older one does not know and refuses. So
a checkpoint says what the defaults were. A setting that has its default turns nothing on that
the older release lacks: there the layer is built without it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras


def defaults(config: Any) -> dict[str, dict[str, Any]]:
    """Return the settings of each class of Keras in a config, with their defaults here.

    Returns:
        By public name of the class. Defaults that are no plain values are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in classes(config):
        cls = _class(one)
        if cls is not None:
            found[_name(one)] = {
                name: parameter.default
                for name, parameter in _parameters(cls).items()
                if parameter.default is None
                or type(parameter.default) in (bool, int, float, str)
            }
    return found


def without_later(config: Any, then: Mapping[str, Mapping[str, Any]]) -> Any:
    """Return a config without settings that are unknown here and had their default then.

    Args:
        then: What `defaults` was where the model was saved.
    """
    if isinstance(config, list):
        return [without_later(value, then) for value in config]
    if not isinstance(config, Mapping):
        return config
    found = {key: without_later(value, then) for key, value in config.items()}
    cls = _class(config)
    if cls is not None:
        here, unset = _parameters(cls), then.get(_name(config), {})
        found["config"] = {
            key: value
            for key, value in found["config"].items()
            if key in here or key not in unset or value != unset[key]
        }
    return found


def classes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield what a config says of each object to build, outer ones first."""
    if isinstance(config, Mapping):
        if isinstance(config.get("class_name"), str) and "config" in config:
            yield config
        for value in config.values():
            yield from classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from classes(value)


def _name(config: Mapping[str, Any]) -> str:
    return f"{config['module']}.{config['class_name']}"


def _class(config: Mapping[str, Any]) -> type | None:
    """Return the class of Keras that a config is of; None for others."""
    names = str(config.get("module") or "").split(".")
    if names[0] != "keras" or not isinstance(config.get("config"), Mapping):
        return None
    owner: Any = keras
    for name in (*names[1:], str(config.get("class_name"))):
        owner = getattr(owner, name, None)
    return owner if isinstance(owner, type) else None


@functools.cache
def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what the constructors of a class and of those above it take by name."""
    found: dict[str, inspect.Parameter] = {}
    for one in reversed(cls.__mro__):
        if one.__module__.split(".")[0] == "keras" and "__init__" in vars(one):
            found |= inspect.signature(vars(one)["__init__"]).parameters
    return found
