"""What is measured, on which workload, and how good ours has to be. Tables only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.bench.contract import CORE, OURS, PEER

SECONDS: Final = "s"
BYTES: Final = "B"
FEW: Final = (OURS, PEER, "limit_page_cache")  # where the others would take minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One thing that a process does, and how it gets ready for it."""

    key: str
    workload: str
    title: str
    action: str  # function in `worker.py`
    needs: str  # function that a contender must have; of `a|b` one is enough
    durable: bool = False
    idle: bool = False  # a pause beforehand instead of priming the page cache
    cold: bool = False  # the contender's files are not in the page cache when it begins
    among: tuple[str, ...] = ()  # contenders that take part; none named: all that can
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
        among=CORE,
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
        key="into-cold",
        workload="W1",
        title="load into existing arrays, cold",
        action="load_into",
        needs="load_into",
        cold=True,
        among=CORE,
    ),
    Measure(
        key="read-cold",
        workload="W1",
        title="load and read every byte, cold",
        action="load_and_read",
        needs="load_mmap|load",
        cold=True,
    ),
    Measure(
        key="one-cold",
        workload="W1",
        title="open, load one array of all, cold",
        action="one",
        needs="one",
        cold=True,
        among=CORE,
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
        key="read",
        workload="W2",
        title="load and read every byte",
        action="load_and_read",
        needs="load_mmap|load",
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
        among=CORE,
    ),
    Measure(
        key="second-durable",
        workload="W3",
        title="durable second save, primed",
        action="second_save",
        needs="saver",
        durable=True,
        among=CORE,
    ),
    Measure(
        key="save-cached", workload="W4", title="cached save", action="save", needs="saver"
    ),
    Measure(
        key="save-durable",
        workload="W4",
        title="durable save, primed",
        action="save",
        needs="saver",
        durable=True,
    ),
    Measure(
        key="read",
        workload="W4",
        title="load and read every byte",
        action="load_and_read",
        needs="load_mmap|load",
    ),
    Measure(
        key="read-cold",
        workload="W4",
        title="load and read every byte, cold",
        action="load_and_read",
        needs="load_mmap|load",
        cold=True,
    ),
    Measure(
        key="save-cached",
        workload="W5",
        title="cached save",
        action="save",
        needs="saver",
        among=CORE,
    ),
    Measure(
        key="save-durable",
        workload="W5",
        title="durable save, primed",
        action="save",
        needs="saver",
        durable=True,
        among=CORE,
    ),
    Measure(
        key="one", workload="W5", title="open, load the large array", action="one", needs="one"
    ),
    Measure(
        key="one-cold",
        workload="W5",
        title="open, load the large array, cold",
        action="one",
        needs="one",
        cold=True,
    ),
    Measure(
        key="many-cached",
        workload="W6",
        title="cached saves, all of them",
        action="many_saves",
        needs="saver",
    ),
    Measure(
        key="many-durable",
        workload="W6",
        title="durable saves, all of them",
        action="many_saves",
        needs="saver",
        durable=True,
        among=CORE,
    ),
    Measure(
        key="list-run",
        workload="W6",
        title="list all checkpoints with a metric",
        action="list_run",
        needs="list_run",
    ),
    Measure(
        key="list-run-cold",
        workload="W6",
        title="list all checkpoints with a metric, cold",
        action="list_run",
        needs="list_run",
        cold=True,
    ),
    Measure(
        key="list-run",
        workload="W7",
        title="list all checkpoints with a metric",
        action="list_run",
        needs="list_run",
        among=FEW,
    ),
)


MIB: Final = 1 << 20
TO_PEER: Final = "peer"  # times the median of safetensors.numpy
TO_LIMIT: Final = "limit"  # times the median of the fastest limit of the same run
FLAT: Final = ""  # bytes or seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How good ours has to be: at most `limit` times what `to` names, or `limit` itself."""

    workload: str
    key: str
    limit: float
    to: str = TO_PEER
    contender: str = OURS


def _targets(to: str, *rows: tuple[str, str, str, float]) -> tuple[Target, ...]:
    return tuple(
        Target(workload=w, key=key, limit=limit, to=to, contender=contender)
        for w, key, contender, limit in rows
    )


UNVERIFIED: Final = "ckptfmt_unverified"
MAPPED: Final = "ckptfmt_mapped"
FROZEN: Final = "ckptfmt_frozen"

TARGETS: Final = (
    *_targets(
        TO_PEER,
        ("W1", "save-cached", OURS, 1.3),
        ("W1", "save-durable", OURS, 1.2),
        ("W1", "save-idle", OURS, 1.2),
        ("W1", "load", OURS, 1.0),
        ("W1", "list", OURS, 1.5),
        ("W1", "one", OURS, 1.5),
        ("W2", "save-cached", OURS, 2.0),
        ("W2", "save-durable", OURS, 2.0),
        ("W2", "load", OURS, 2.0),
        ("W2", "list", OURS, 2.0),
        ("W3", "second-cached", OURS, 0.5),
        ("W3", "second-durable", OURS, 0.35),
    ),
    # What the hardware allows, the digest, the verification, the sync and the commit included.
    *_targets(
        TO_LIMIT,
        ("W1", "save-cached", OURS, 1.15),
        ("W1", "save-durable", OURS, 1.15),
        ("W1", "save-idle", OURS, 1.2),
        ("W1", "into", OURS, 1.4),
        ("W1", "into", UNVERIFIED, 1.1),
        ("W1", "mmap", OURS, 2.0),
        ("W1", "mmap", UNVERIFIED, 1.1),
        ("W1", "into-cold", OURS, 1.2),
        ("W1", "read-cold", OURS, 1.2),
        ("W2", "save-durable", OURS, 1.6),
        ("W2", "read", OURS, 2.5),
        ("W2", "list", OURS, 2.5),
        ("W3", "second-cached", OURS, 1.4),
        ("W3", "second-durable", OURS, 1.4),
        ("W3", "second-cached", FROZEN, 0.5),
        ("W3", "second-durable", FROZEN, 0.5),
        ("W5", "one", MAPPED, 1.3),
        ("W5", "one-cold", MAPPED, 1.3),
        ("W6", "many-cached", OURS, 3.0),
        ("W6", "list-run", OURS, 1.5),
        ("W6", "list-run-cold", OURS, 2.0),
    ),
    *_targets(
        FLAT,
        ("W1", "memory-save", OURS, 64 * MIB),
        ("W1", "memory-into", OURS, 64 * MIB),
        ("W7", "list-run", OURS, 0.1),  # a second for 10,000, which would take an hour to save
    ),
)
WORKLOADS: Final = tuple(dict.fromkeys(measure.workload for measure in MEASURES))

SECOND_BYTES: Final = 1.01  # ours may write this much of what changed, the manifest included
DISK_BYTES: Final = 1.01  # a contender's files may be this much of the arrays' bytes,
DISK_BYTES_PER_EARLIER: Final = 24  # this for each checkpoint before it, which ours names,
DISK_BYTES_PER_ARRAY: Final = 1024  # and this for what it says of each array
