"""The processes that save one checkpoint together, and `Single`, the group of one.

Only what a save needs (spec §8): exchange a plan and wait for each other. Frameworks bring
their own implementation over whatever they use to talk; the core never starts a process.
"""

from __future__ import annotations

from typing import Protocol, TypeVar, final

T = TypeVar("T")


class Group(Protocol):
    """Ranks 0 to size - 1 that call the same methods in the same order.

    Values are plain: None, bool, int, float, str, bytes, and lists and dicts of those, so
    that no implementation needs pickle. They may arrive as copies or as the same object:
    nobody changes them. Methods are called from the thread that called `save`, never from
    a background thread, where they could interleave with the training's own collectives.
    """

    @property
    def rank(self) -> int:
        """This process, 0 <= rank < size. Rank 0 plans and commits."""
        ...

    @property
    def size(self) -> int:
        """Number of processes, >= 1; fixed for the life of the group."""
        ...

    def gather(self, value: T, timeout_seconds: float | None = None) -> list[T] | None:
        """Bring one value per rank to rank 0.

        Args:
            value: This rank's contribution.
            timeout_seconds: How long to wait for the others; None waits for ever.

        Returns:
            On rank 0 the values in the order of ranks, None on every other rank.

        Raises:
            BackendError: a rank did not answer in time; the message names it.
        """
        ...

    def broadcast(self, value: T, timeout_seconds: float | None = None) -> T:
        """Return rank 0's value on every rank; what the others pass is ignored.

        Raises:
            BackendError: rank 0 did not answer in time.
        """
        ...

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return once every rank has called it.

        Raises:
            BackendError: a rank did not arrive in time; the message names it.
        """
        ...


@final
class Single:
    """The group of one process: every exchange is with itself and returns at once.

    Stateless and thread-safe. It lets single-process code run the many-rank path instead of
    asking whether there is a group.
    """

    __slots__ = ()

    @property
    def rank(self) -> int:
        """Always 0."""
        return 0

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    def gather(self, value: T, timeout_seconds: float | None = None) -> list[T] | None:
        """Return `[value]`."""
        return [value]

    def broadcast(self, value: T, timeout_seconds: float | None = None) -> T:
        """Return `value`."""
        return value

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return."""
