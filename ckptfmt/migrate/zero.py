"""What sets of DeepSpeed have in common: parts laid behind one another, values that agree.

Stages 1 and 2 (`readers/deepspeed.py`) cut a group of parameters as one stretch; stage 3
(`zero3.py`) cuts each parameter. Either way an array is some stretches of all parts.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.source import Array, Lazy, Record

MAX_SHARED: Final = 16  # elements of what all parameters of a group share: a step
Stretch = tuple[int, int]  # first element, the one behind the last


class Whole:
    """The parts of all ranks behind one another; only those that are asked for are read."""

    def __init__(self, parts: list[Lazy]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(part.shape[0] for part in parts))
        self.size = self._ends[-1]

    def cut(
        self,
        name: str,
        stretches: Iterable[Stretch],
        shape: tuple[int, ...],
        weight: Lazy | None = None,
    ) -> Lazy:
        """Return stretches behind one another as one array.

        Args:
            weight: What it must round to.
        """
        dtype = self._parts[0].dtype
        wanted = list(stretches)

        def load() -> Array:
            found = [np.empty(0, dtype)]
            for begin, end in wanted:
                found += self._read(begin, end)
            whole = np.concatenate(found).reshape(shape)
            if weight is not None:
                _prove(name, whole, weight.load())
            return whole

        return Lazy(dtype, shape, load)

    def _read(self, begin: int, end: int) -> list[Array]:
        found = []
        while begin < end:
            n = bisect.bisect_right(self._ends, begin)
            start = self._ends[n] - self._parts[n].shape[0]
            found.append(self._parts[n].load()[begin - start : end - start])
            begin = self._ends[n]
        return found


def _prove(name: str, master: Array, weight: Array) -> None:
    with np.errstate(all="ignore"):
        rounded = master.astype(weight.dtype)
        same_bits = (rounded == weight) | ((rounded != rounded) & (weight != weight))
    if not same_bits.all():
        raise FormatError(
            "a master weight does not round to the weight: these files are not of one save; "
            "a file in a folder of its own is read alone",
            path=name, differing=int(np.size(same_bits) - np.count_nonzero(same_bits)),
        )  # fmt: skip


def stage(state: dict[Any, Any]) -> Any:
    """Return the stage that the state of an optimizer names."""
    found = state.get("zero_stage")
    if isinstance(found, Record) and len(found.args) == 1:  # a member of an enumeration
        return found.args[0]
    return found


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return a shape, or None when it is none."""
    if isinstance(value, Record) and value.cls == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, list | tuple) and all(type(n) is int and n >= 0 for n in value):
        return tuple(value)
    return None


def shapes_of(groups: Any) -> list[dict[str, tuple[int, ...]]] | None:
    """Return name → shape for each group, or None when a parameter's place is not clear."""
    rows = groups if isinstance(groups, list) else [groups]
    if not all(isinstance(group, dict) for group in rows):
        return None
    found = [{name: shape_of(value) for name, value in group.items()} for group in rows]
    flat = [(name, shape) for group in found for name, shape in group.items()]
    plain = all(type(name) is str and shape is not None for name, shape in flat)
    return found if plain and len({name for name, _ in flat}) == len(flat) else None  # type: ignore[return-value]


def stepped(groups: Any, names: list[list[str]]) -> list[dict[str, Any]] | None:
    """Return an optimizer's groups with the names of their parameters.

    Args:
        groups: As DeepSpeed's optimizer saved them: `params` counts stretches.
        names: Of the parameters in each stretch.
    """
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        return None
    rows = [group.get("params") for group in groups]
    if not all(isinstance(row, list) for row in rows):
        return None
    if [n for row in rows for n in row] != list(range(len(names))):
        return None
    return [
        {**group, "params": [name for n in row for name in names[n]]}
        for group, row in zip(groups, rows, strict=True)
    ]


def again(value: Any) -> Any:
    """Return an array once more, so that two places do not share one object."""
    return Lazy(value.dtype, value.shape, value.load) if isinstance(value, Lazy) else value


def same(one: Any, other: Any) -> bool:
    """Tell whether two values of ranks are equal; what is not plain never is."""
    if isinstance(one, Lazy) and isinstance(other, Lazy):
        small = one.shape == other.shape and math.prod(one.shape) <= MAX_SHARED
        return small and one.dtype == other.dtype and bool((one.load() == other.load()).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one is None or (isinstance(one, bool | int | float | str) and one == other)
