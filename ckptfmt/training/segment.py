"""How a run was fed from some example on (spec §6.8.7). Declaring it moves no edge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

from ckptfmt.errors import FormatError, UsageError
from ckptfmt.training.exact import whole

RECORDED: Final = (
    "from_seen", "global_batch", "dataset_size", "dataset", "world", "accumulation",
)  # fmt: skip
SYNC: Final = "sync"
ASYNC: Final = "async"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One stretch of a run; it ends where the next one begins."""

    from_seen: int = 0  # examples seen when it began
    global_batch: int | None = None  # examples a step, over all workers; None: not declared
    dataset_size: int | None = None  # examples in one pass; None: not declared
    dataset: str | None = None  # what identifies the data, such as a digest or a version
    world: int = 1  # workers
    accumulation: int = 1  # batches to an optimizer update
    consistency: str = SYNC  # ASYNC: workers push on their own, there is no order of steps
    data_replay: bool = False  # the data's position was lost: examples may have come twice

    def __post_init__(self) -> None:
        whole("from_seen", self.from_seen)
        for name in ("global_batch", "dataset_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=1)
        whole("world", self.world, least=1)
        whole("accumulation", self.accumulation, least=1)
        if self.dataset is not None and not isinstance(self.dataset, str):
            raise UsageError(f"dataset must be a str, got {self.dataset!r}")
        if self.consistency not in (SYNC, ASYNC):
            raise UsageError(f"consistency must be 'sync' or 'async', got {self.consistency!r}")
        if not isinstance(self.data_replay, bool):
            raise UsageError(f"data_replay must be a bool, got {self.data_replay!r}")

    def plain(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)


def parse(row: Any, at: str) -> Segment:
    """Return the segment that `plain` gave; fields of a later release are left out.

    Raises:
        FormatError: it is none.
    """
    if not isinstance(row, Mapping):
        raise FormatError(f"expected a segment, got {row!r}", at=at)
    known = {field.name for field in dataclasses.fields(Segment)}
    try:
        return Segment(**{name: value for name, value in row.items() if name in known})
    except UsageError as error:
        raise FormatError(error.message, at=at) from error


def passes(segments: tuple[Segment, ...], seen: int) -> Fraction | None:
    """Return how often the data was passed over: the sum of examples / dataset_size.

    None while a segment with examples does not say how large its data set is.
    """
    ends = [*(s.from_seen for s in segments[1:]), seen]
    total = Fraction(0)
    for segment, end in zip(segments, ends, strict=True):
        if end > segment.from_seen:
            if segment.dataset_size is None:
                return None
            total += Fraction(end - segment.from_seen, segment.dataset_size)
    return total
