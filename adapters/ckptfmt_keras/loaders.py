"""The order of a torch `DataLoader`: for each pass the same in each process.

A loader draws when a pass begins, and while it reads ahead: from torch's own generator that
would change the dropout of a training, and no process could repeat the order of a pass that
another one began. So each pass draws from a generator that a seed and its number make.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

# The seed of the generator that a loader was made with: ours take the place of that one.
_GIVEN: Final[weakref.WeakKeyDictionary[Any, int | None]] = weakref.WeakKeyDictionary()


def is_loader(data: Any) -> bool:
    """Return whether this is a `DataLoader`; torch is not imported to find out."""
    torch: Any = sys.modules.get("torch.utils.data")
    return torch is not None and isinstance(data, torch.DataLoader)


def drawing(loader: Any) -> list[Any]:
    """Return what a loader draws by: itself and its samplers, where they have a generator."""
    batches = loader.batch_sampler
    return [
        one
        for one in (loader, loader.sampler, batches, getattr(batches, "sampler", None))
        if hasattr(one, "generator")
    ]


def passes(loader: Any, seed: int) -> Callable[[], Iterator[Any]]:
    """Return what begins the passes over a loader, one after the other.

    Args:
        seed: Where the loader has no generator; else it is the seed of that one.
    """
    drawn_by = drawing(loader)
    if loader not in _GIVEN:
        seeds = [one.generator.initial_seed() for one in drawn_by if one.generator is not None]
        _GIVEN[loader] = seeds[0] % 2**64 if seeds else None
    given_seed = _GIVEN[loader]
    base = seed if given_seed is None else given_seed
    numbers = itertools.count()

    def begin() -> Iterator[Any]:
        mixed = np.random.SeedSequence([base, next(numbers)]).generate_state(1, np.uint64)
        generator = sys.modules["torch"].Generator().manual_seed(int(mixed[0] >> 1))
        for one in drawn_by:
            one.generator = generator
        return iter(loader)

    return begin
