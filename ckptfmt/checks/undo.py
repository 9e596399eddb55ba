"""Remember a value before code that is not ours may write into it, to put it back after.

What containers, arrays and random generators hold is remembered, not the object itself: all
who hold it see it as it was. What a framework's own values hold is the adapter's to say.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

Undo: TypeAlias = Callable[[], object]

GENERATORS: Final = (np.random.Generator, np.random.RandomState, random.Random)


def remember(
    value: Any, own: Callable[[Any], Undo | None], seen: dict[int, Any] | None = None
) -> list[Undo]:
    """Return what puts back all that a value holds, itself and what lies below it.

    Arrays are copied, but not those mapped from files. Looks into list, dict, set and deque,
    and into no other objects.

    Args:
        own: Says the same of one value of a framework; None: it is not one.
        seen: What was looked at before, by id; it grows. Values that hold themselves end.
    """
    known = {} if seen is None else seen
    if id(value) in known or value is None or isinstance(value, bool | int | float | str):
        return []
    known[id(value)] = value  # kept, so that its id stays its own
    found = own(value) or _leaf(value)
    if found is not None:
        return [found]
    if isinstance(value, dict):
        below = [undo for child in value.values() for undo in remember(child, own, known)]
        return [*below, functools.partial(_refill, value, dict(value))]
    if isinstance(value, list | tuple | set | deque):
        below = [undo for child in value for undo in remember(child, own, known)]
        kept = () if isinstance(value, tuple) else (list(value),)
        return [*below, *(functools.partial(_refill, value, one) for one in kept)]
    return []


def _leaf(value: Any) -> Undo | None:
    if isinstance(value, np.ndarray):
        # Data mapped from a file may be larger than memory, and is nobody's to write to.
        owned = value.flags.writeable and not isinstance(value, np.memmap)
        return functools.partial(np.copyto, value, value.copy()) if owned else None
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return functools.partial(setattr, bits, "state", bits.state)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    return None


def _refill(value: Any, before: Any) -> None:
    """Give a container its members back, if it has others now."""
    now = dict(value) if isinstance(value, dict) else list(value)
    if len(now) == len(before) and _same(now, before):
        return
    if isinstance(value, list):
        value[:] = before
        return
    value.clear()
    if isinstance(value, dict | set):
        value.update(before)
    else:
        value.extend(before)


def _same(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return list(now) == list(before) and all(now[key] is before[key] for key in now)
    return all(a is b for a, b in zip(now, before, strict=True))
