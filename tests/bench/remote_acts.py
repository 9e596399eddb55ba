"""One contender moves the state one way, a few times, in a process of its own.

python -m tests.bench.remote_acts HOW      HOW: JSON, see `main`; prints samples as JSON
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from tests.bench import machine, workloads

MIB: Final = 2**20
# Of the client library alone, (bytes of a part, requests at once): the best one counts.
SETTINGS: Final = {
    "s3fs 8 × 16 MiB": (16 * MIB, 8),
    "s3fs 16 × 16 MiB": (16 * MIB, 16),
    "s3fs 8 × 8 MiB": (8 * MIB, 8),
    "s3fs as it comes": (50 * MIB, 10),
}
OURS: Final = "ckptfmt"
INTO: Final = "ckptfmt, into arrays that exist"
TORCH: Final = "torch over fsspec.open"
DCP: Final = "DCP over fsspec"

Act: TypeAlias = Callable[[], Any]
Check: TypeAlias = Callable[[Any], bool]
# seconds; client, server: their processor time; others: that of everybody else
Sample: TypeAlias = dict[str, float]


def main() -> None:
    how = json.loads(sys.argv[1])
    arrays = workloads.arrays(workloads.workload("W1", quick=how["quick"]))
    samples = []
    for number in range(how["repeats"]):
        url = f"{how['url']}-{number if how['way'] == 'up' else 0}"
        act, check = _prepared(how["name"], how["way"], url, how["options"], arrays)
        sample, found = _timed(act, how["server"])
        samples.append(sample)
        if not check(found):
            raise SystemExit(f"{how['name']} returned other bytes than were stored")
        del found, act, check
    print(json.dumps(samples))


def _timed(act: Act, server: int) -> tuple[Sample, Any]:
    begin = np.array([time.perf_counter(), *_busy(server)])
    found = act()
    end = np.array([time.perf_counter(), *_busy(server)])
    seconds, own, its, everybody = map(float, end - begin)
    others = max(0.0, everybody - own - its)
    return {"seconds": seconds, "client": own, "server": its, "others": others}, found


def _busy(server: int) -> tuple[float, float, float]:
    """Return the processor time so far: this process, the server, the machine."""
    fields = pathlib.Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    its = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.process_time(), its, machine.busy_seconds()


def _prepared(name: str, way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Check]:
    if name in SETTINGS:
        return _s3fs(way, url, options, arrays, *SETTINGS[name])
    act, same = {OURS: _ours, INTO: _into, TORCH: _torch, DCP: _dcp}[name](
        way, url, options, arrays
    )
    return act, (lambda found: True) if way == "up" else (lambda found: same(found, arrays))


def _ours(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Any]:
    import ckptfmt

    store = ckptfmt.open(url, storage_options=options)
    if way == "down":
        return lambda: store.latest().load()["w"], _same
    store.save({"w": np.ones(3)})
    return lambda: store.save({"w": arrays}), _same


def _into(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Any]:
    if way == "up":
        return _ours(way, url, options, arrays)
    import ckptfmt

    store = ckptfmt.open(url, storage_options=options)
    held = {path: np.full_like(array, -1) for path, array in arrays.items()}
    return lambda: store.latest().load(into={"w": held})["w"], _same


def _s3fs(
    way: str, url: str, options: Any, arrays: Any, part: int, count: int
) -> tuple[Act, Check]:
    import fsspec

    fs = fsspec.filesystem("s3", **options)
    path = url.removeprefix("s3://")
    data = b"".join(a.tobytes() for a in arrays.values())
    fs.pipe_file(f"{path}-warm", b"1")
    if way == "up":
        return (
            lambda: fs.pipe_file(path, data, chunksize=part, max_concurrency=count),
            lambda found: True,
        )
    starts = list(range(0, len(data), part))
    ends = [min(start + part, len(data)) for start in starts]
    return (
        lambda: fs.cat_ranges(
            [path] * len(starts), starts, ends, batch_size=count, on_error="raise"
        ),
        lambda found: b"".join(found) == data,
    )


def _torch(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Any]:
    import fsspec
    import torch

    def up() -> None:
        with fsspec.open(url, "wb", **options) as file:
            torch.save({path: torch.from_numpy(a) for path, a in arrays.items()}, file)

    def down() -> Any:
        with fsspec.open(url, "rb", **options) as file:
            return torch.load(file, weights_only=True)

    return (up if way == "up" else down), _same


def _dcp(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Any]:
    import torch
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import _fsspec_filesystem as remote

    state = {path: torch.from_numpy(a) for path, a in arrays.items()}
    if way == "up":
        writer = remote.FsspecWriter(url, overwrite=True, **options)
        return lambda: checkpoint.save(state, storage_writer=writer), _same
    empty = {path: torch.full_like(t, -1) for path, t in state.items()}

    def down() -> Any:
        checkpoint.load(empty, storage_reader=remote.FsspecReader(url, **options))
        return empty

    return down, _same


def _same(found: Any, arrays: Any) -> bool:
    return found.keys() == arrays.keys() and all(
        np.asarray(found[path]).tobytes() == array.tobytes() for path, array in arrays.items()
    )


if __name__ == "__main__":
    main()
