"""What is measured, on which workload, and how good ours has to be. Tables only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SECONDS: Final = "s"
BYTES: Final = "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing that a process does, and how it gets ready for it."""

    key: str
    workload: str
    title: str
    action: str  # function in `worker.py`
    needs: str  # function that a contender must have
    durable: bool = False
    idle: bool = False  # a pause beforehand instead of priming the page cache
    unit: str = SECONDS

    @property
    def is_memory(self) -> bool:
        """Tell whether a process is watched instead of timed."""
        return self.unit == BYTES


MEASURES: Final = (
    Measure(
        key="save-cached", workload="W1", title="cached save", action="save", needs="saver"
    ),
    Measure(
        key="save-durable",
        workload="W1",
        title="durable save, primed",
        action="save",
        needs="saver",
        durable=True,
    ),
    Measure(
        key="save-idle",
        workload="W1",
        title="durable save after idling",
        action="save",
        needs="saver",
        durable=True,
        idle=True,
    ),
    Measure(
        key="load", workload="W1", title="load into new arrays", action="load", needs="load"
    ),
    Measure(
        key="into",
        workload="W1",
        title="load into existing arrays",
        action="load_into",
        needs="load_into",
    ),
    Measure(
        key="mmap",
        workload="W1",
        title="load mapped, read every byte",
        action="load_mmap",
        needs="load_mmap",
    ),
    Measure(
        key="list", workload="W1", title="open and list", action="listing", needs="listing"
    ),
    Measure(
        key="one", workload="W1", title="open, load one array of all", action="one", needs="one"
    ),
    Measure(
        key="memory-save",
        workload="W1",
        title="peak extra memory of a durable save",
        action="save",
        needs="saver",
        durable=True,
        unit=BYTES,
    ),
    Measure(
        key="memory-into",
        workload="W1",
        title="peak extra memory of a load into existing arrays",
        action="load_into",
        needs="load_into",
        unit=BYTES,
    ),
    Measure(
        key="save-cached", workload="W2", title="cached save", action="save", needs="saver"
    ),
    Measure(
        key="save-durable",
        workload="W2",
        title="durable save, primed",
        action="save",
        needs="saver",
        durable=True,
    ),
    Measure(
        key="load", workload="W2", title="load into new arrays", action="load", needs="load"
    ),
    Measure(
        key="list", workload="W2", title="open and list", action="listing", needs="listing"
    ),
    Measure(
        key="second-cached",
        workload="W3",
        title="cached second save",
        action="second_save",
        needs="saver",
    ),
    Measure(
        key="second-durable",
        workload="W3",
        title="durable second save, primed",
        action="second_save",
        needs="saver",
        durable=True,
    ),
    Measure(
        key="list-run",
        workload="W6",
        title="list all checkpoints with a metric",
        action="list_run",
        needs="list_run",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How good ours has to be: at most `limit` times the peer's median, or `limit` bytes."""

    workload: str
    key: str
    limit: float


MIB: Final = 1 << 20

TARGETS: Final = (
    Target(workload="W1", key="save-cached", limit=1.3),
    Target(workload="W1", key="save-durable", limit=1.2),
    Target(workload="W1", key="save-idle", limit=1.2),
    Target(workload="W1", key="load", limit=1.0),
    Target(workload="W1", key="list", limit=1.5),
    Target(workload="W1", key="one", limit=1.5),
    Target(workload="W1", key="memory-save", limit=128 * MIB),
    Target(workload="W1", key="memory-into", limit=128 * MIB),
    Target(workload="W2", key="save-cached", limit=2.0),
    Target(workload="W2", key="save-durable", limit=2.0),
    Target(workload="W2", key="load", limit=2.0),
    Target(workload="W2", key="list", limit=2.0),
    Target(workload="W3", key="second-cached", limit=0.5),
    Target(workload="W3", key="second-durable", limit=0.35),
)
WORKLOADS: Final = tuple(dict.fromkeys(measure.workload for measure in MEASURES))

SECOND_BYTES: Final = 1.01  # ours may write this much of what changed, the manifest included
DISK_BYTES: Final = 1.01  # a contender's files may be this much of the arrays' bytes,
DISK_BYTES_PER_ARRAY: Final = 1024  # and this for what it says of each array
