"""Optimizers: each slot by its name and the variable it belongs to.

    {"iteration": 12, "learning_rate": f32[], "slots": {"momentum": {"0003.kernel": f32[8, 4]}},
     "inner": {...}}                      inner: below a LossScaleOptimizer, of the same form

Keras names a slot after the path its variable had when the optimizer was built; which variable
that is, is found out here once, so that neither renaming nor freezing mixes up slots. Integers
are stored as plain ones: they have 32 bits on JAX and torch, 64 on TensorFlow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final

import keras

from ckptfmt.errors import StateError, UsageError
from ckptfmt_keras.variables import Entry

SLOTS: Final = "slots"
INNER: Final = "inner"
_NUMBERED: Final = re.compile(r"^variable_\d+$")


def build(model: Any) -> None:
    """Create the optimizer's variables, which Keras does at the first step only.

    Raises:
        UsageError: the model was not compiled.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise UsageError("this model has no optimizer: compile it first", model=model.name)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)


def located(optimizer: Any, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return path → variable for all variables of an optimizer.

    Raises:
        StateError: two of them would have one path.
    """
    found: dict[str, Any] = {}
    for path, variable in _walk(optimizer, entries):
        if path in found:
            raise StateError("two variables of the optimizer have one name", path=path)
        found[path] = variable
    return found


def _walk(optimizer: Any, entries: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    inner = getattr(optimizer, "inner_optimizer", None)
    below = [] if inner is None else inner.variables
    beneath = {id(variable) for variable in below}
    own = [variable for variable in optimizer.variables if id(variable) not in beneath]
    yield from _named(own, entries)
    if inner is not None:
        for path, variable in _walk(inner, entries):
            yield f"{INNER}/{path}", variable


def _named(own: Iterable[Any], entries: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Yield path and variable; of equal names the order tells which is whose."""
    by_prefix: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_prefix[str(entry.variable.path).replace("/", "_")].append(entry)
    uses: dict[str, int] = defaultdict(int)
    plain: dict[str, int] = defaultdict(int)
    for variable in own:
        name = str(variable.name)
        prefix = _prefix(name, by_prefix)
        if prefix is None:
            name = "variable" if _NUMBERED.match(name) else name
            plain[name] += 1
            yield name if plain[name] == 1 else f"{name}.{plain[name] - 1}", variable
            continue
        entry = by_prefix[prefix][min(uses[name], len(by_prefix[prefix]) - 1)]
        uses[name] += 1
        yield f"{SLOTS}/{name[len(prefix) + 1 :]}/{entry.key}", variable


def _prefix(name: str, known: Container[str]) -> str | None:
    """Return the longest of the known names that another one begins with, and an underscore."""
    at = name.rfind("_")
    while at >= 0:
        if name[:at] in known:
            return name[:at]
        at = name.rfind("_", 0, at)
    return None


def is_integer(variable: Any) -> bool:
    """Return whether a variable counts something."""
    return "int" in str(variable.dtype)


def class_of(optimizer: Any) -> str:
    """Return the name of an optimizer's class, the same on every backend."""
    return type(optimizer).__name__


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Return class and settings of an optimizer as plain values."""
    config = keras.saving.serialize_keras_object(optimizer).get("config", {})
    own = {
        name: value
        for name, value in config.items()
        if name not in ("name", "learning_rate", "inner_optimizer", "dynamic")
    }
    rate = config.get("learning_rate")
    inner = getattr(optimizer, "inner_optimizer", None)
    return {
        "class": class_of(optimizer),
        "settings": own,
        "schedule": rate if isinstance(rate, dict) else None,
        **({} if inner is None else {"inner": settings_of(inner)}),
    }
