"""Which examples come next: shuffled anew in each pass, resumable at any example, in O(1).

    sampler = Sampler(len(dataset), seed=7)
    batch = dataset[sampler.take(64, rank=rank, world=world)]
    store.save({"model": ..., "data": sampler.state()}, counters=progress.state())

There is one global order, given by size and seed. Batch size and number of workers only say how
it is cut; the position is a number of examples, the same on every worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError, MismatchError, UnsupportedError, UsageError
from ckptfmt.training.exact import reason, whole
from ckptfmt.training.permutation import ALGORITHM, Indices, Permutation

_FIELDS: Final = ("size", "seed", "position", "begun_at", "first_pass")


class Sampler:
    """An endless, shuffled order of the examples 0 to size - 1.

    Each pass is a permutation of its own. Skipping ahead, to resume or on purpose, costs the
    same for any distance. Not safe to be used from several threads at once.

    Args:
        size: Examples in the data set.
        seed: Any integer >= 0; the same size and seed give the same order everywhere.
        position: Examples that were taken already.

    Raises:
        UsageError: one of them is no integer or out of range.
    """

    def __init__(self, size: int, *, seed: int = 0, position: int = 0) -> None:
        self._size = whole("size", size, least=1)
        self._seed = whole("seed", seed)
        self._position = whole("position", position)
        self._begun_at = 0  # position at which the data got this size
        self._first_pass = 0  # number of the pass that began there
        self._known: tuple[int, Permutation] | None = None

    @classmethod
    def restore(cls, state: Mapping[str, Any], *, size: int | None = None) -> Sampler:
        """Return the sampler that `state` described.

        Args:
            size: Examples in the data set now; None is not checked.

        Raises:
            MismatchError: the data set has another size: restore without it, then `resize`.
            UnsupportedError: made by a release with another order.
            FormatError: it is no state of a sampler.
        """
        try:
            algorithm = state["algorithm"]
            counts = {name: whole(name, state[name]) for name in _FIELDS}
            found = cls(counts["size"], seed=counts["seed"], position=counts["position"])
        except (KeyError, TypeError, UsageError) as error:
            raise FormatError("this is no state of a sampler", cause=reason(error)) from error
        if algorithm != ALGORITHM:
            raise UnsupportedError(
                "another release made this order of examples",
                expected=ALGORITHM,
                found=algorithm,
            )
        if counts["begun_at"] > counts["position"]:
            raise FormatError("this is no state of a sampler: it begins after its position")
        found._begun_at, found._first_pass = counts["begun_at"], counts["first_pass"]
        if size is not None and size != found.size:
            raise MismatchError(
                "the data set has another size than the sampler: restore without size, then"
                " call resize(), and declare it to the progress of the run",
                expected=found.size,
                found=size,
            )
        return found

    def state(self) -> dict[str, Any]:
        """Return everything as plain values, for the section `data` of a checkpoint."""
        return {
            "algorithm": ALGORITHM,
            "size": self._size,
            "seed": self._seed,
            "position": self._position,
            "begun_at": self._begun_at,
            "first_pass": self._first_pass,
        }

    def __repr__(self) -> str:
        return f"<Sampler at {self._position:,}, pass {self.pass_number} over {self._size:,}>"

    @property
    def size(self) -> int:
        """Examples in the data set."""
        return self._size

    @property
    def seed(self) -> int:
        """What the order is made from."""
        return self._seed

    @property
    def position(self) -> int:
        """Examples taken since the start, over all workers."""
        return self._position

    @property
    def pass_number(self) -> int:
        """Number of the pass that the next example belongs to, from 0."""
        return self._first_pass + (self._position - self._begun_at) // self._size

    @property
    def left_in_pass(self) -> int:
        """Examples left of this pass, 1 to size; take no more to stay within it."""
        return self._size - (self._position - self._begun_at) % self._size

    def take(self, count: int, *, rank: int = 0, world: int = 1) -> Indices:
        """Return this worker's share of the next examples, and move on by all of them.

        Worker r of w gets numbers r, r + w, r + 2w, ... of the `count` examples: together the
        workers get each of them once, in an order that does not depend on w.

        Args:
            count: Examples over all workers, >= 1: the global batch.
            rank, world: Which worker this is, of how many.

        Returns:
            Indices into the data set, [examples of this worker], int64.

        Raises:
            UsageError: a number is no integer or out of range.
        """
        shares = whole("world", world, least=1)
        if whole("rank", rank) >= shares:
            raise UsageError("rank must be below world", rank=rank, world=world)
        end = whole("position", self._position + whole("count", count, least=1))
        places = np.arange(self._position + rank, end, shares, dtype=np.int64)
        self._position = end
        return self._at(places)

    def skip(self, examples: int) -> None:
        """Move on without taking anything.

        Raises:
            UsageError: it is no integer >= 0.
        """
        self._position = whole("position", self._position + whole("examples", examples))

    def resize(self, size: int) -> None:
        """Go on with a data set of another size; a new pass begins here.

        Raises:
            UsageError: the size is no integer >= 1.
        """
        new = whole("size", size, least=1)
        if new != self._size:
            # No number is used for two sizes: a pass that has begun is not gone on with.
            begun = (self._position - self._begun_at) % self._size != 0
            self._first_pass = self.pass_number + begun
            self._size, self._begun_at = new, self._position

    def _at(self, positions: Indices) -> Indices:
        answer = np.empty_like(positions)
        numbers, places = np.divmod(positions - self._begun_at, self._size)
        first, last = (int(numbers[0]), int(numbers[-1])) if len(numbers) else (0, -1)
        for number in range(first, last + 1):
            low, high = np.searchsorted(numbers, [number, number + 1])
            answer[low:high] = self._pass(self._first_pass + number).at(places[low:high])
        return answer

    def _pass(self, number: int) -> Permutation:
        if self._known is None or self._known[0] != number:
            self._known = number, Permutation.of(self._size, self._seed, number)
        return self._known[1]
