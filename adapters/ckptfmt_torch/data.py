"""Which examples a `DataLoader` takes next: one order for all workers, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler as TorchSampler

from ckptfmt.errors import UsageError
from ckptfmt.training import Sampler


class BatchSampler(TorchSampler[list[int]]):
    """Endless batches of indices, for `DataLoader(dataset, batch_sampler=...)`.

    Every pass is a shuffled permutation of its own; its last batch is shorter, so that no
    example is shown twice in a pass and none is left out. The position counts the examples
    that were *trained on*, not those that workers have fetched ahead: `VirtualEpochs` moves it
    after each step, other loops call `consumed`. A new iterator begins at the position.

    Args:
        size: Examples in the data set.
        batch_size: Examples of one batch over all ranks.
        seed: The same size and seed give the same order everywhere.
        rank, world: Which process this is, of how many; each gets every world-th example.

    Raises:
        UsageError: a number is out of range.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < world:
            raise UsageError(
                "a batch has at least one example for each rank",
                batch_size=batch_size,
                world=world,
            )
        self.batch_size = batch_size
        self._sampler = Sampler(size, seed=seed)
        self._rank, self._world = rank, world

    @property
    def position(self) -> int:
        """Examples that were trained on since the start, over all ranks."""
        return self._sampler.position

    def __iter__(self) -> Iterator[list[int]]:
        ahead = Sampler.restore(self._sampler.state())
        while True:
            count = min(self.batch_size, ahead.left_in_pass)
            share: list[int] = ahead.take(count, rank=self._rank, world=self._world).tolist()
            if share:
                yield share

    def consumed(self, examples: int) -> None:
        """Move the position on by the real size of a batch, over all ranks."""
        self._sampler.skip(examples)

    def state_dict(self) -> dict[str, Any]:
        """Return the order and the position as plain values."""
        return self._sampler.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from such a state; the batch size may be another one.

        Raises:
            MismatchError: the data set has another size now.
            FormatError, UnsupportedError: it is no such state.
        """
        self._sampler = Sampler.restore(state_dict, size=self._sampler.size)


def examples_in(batch: Any) -> int:
    """Return the number of examples of a batch: the length of the first tensor in it.

    Raises:
        UsageError: there is no tensor.
    """
    if isinstance(batch, torch.Tensor) and batch.ndim:
        return int(batch.shape[0])
    parts = batch.values() if isinstance(batch, dict) else batch
    if isinstance(parts, list | tuple) or isinstance(batch, dict):
        for part in parts:
            try:
                return examples_in(part)
            except UsageError:
                continue
    raise UsageError(
        "the batch holds no tensor to count examples by: pass count=, a function of the batch",
        found=type(batch).__name__,
    )
