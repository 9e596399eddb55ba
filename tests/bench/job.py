"""What one process has to do, and the tiny state it rehearses with."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Final, TypeAlias

from tests.bench import workloads
from tests.bench.workloads import Workload

Result: TypeAlias = dict[str, Any]

LOSS: Final = 0.25
# Why there is no result.
FAILED: Final = "failed"
WRONG: Final = "other bits than were saved"
OUT_OF_MEMORY: Final = "out of memory"
TOO_SLOW: Final = "too slow"
NO_TIME: Final = "no time"
TINY: Final = Workload(
    name="tiny", title="", shapes={"model/a": (8, 8), "model/b": (8,), "optimizer/c": ()}
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process has to do."""

    action: str
    contender: str = ""
    workload: str = ""
    quick: bool = False
    fixture: str = ""  # folder with the contender's files, to load from
    scratch: str = ""  # empty folder, removed after the job
    durable: bool = False
    idle_seconds: float = 0.0  # 0: prime the page cache instead
    watch: bool = False  # report memory, do not prime
    memory_nbytes: int = 0  # what the process may have at most; 0: as much as there is
    cold: bool = False  # put the contender's files out of the page cache before the act

    @property
    def state(self) -> Workload:
        return workloads.workload(self.workload, quick=self.quick)

    def new_folder(self, name: str) -> pathlib.Path:
        """Return an empty folder that is removed after the job."""
        folder = pathlib.Path(self.scratch) / name
        folder.mkdir()
        return folder
