"""One contender moves the state to and fro, a few times, in a process of its own.

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
TORCH: Final = "torch over fsspec.open"
DCP: Final = "DCP over fsspec"

UP: Final = "up"
DOWN: Final = "down"  # into new memory
INTO: Final = "into"  # into arrays that exist
WAYS: Final = (UP, DOWN, INTO)
LIST: Final = "list"  # many checkpoints with their metrics; only ours

Act: TypeAlias = Callable[[], Any]
Check: TypeAlias = Callable[[Any], bool]
Made: TypeAlias = tuple[Act, Check] | None  # None: it has no such way
# seconds; client, server: their processor time; others: that of everybody else
Sample: TypeAlias = dict[str, float]


def main() -> None:
    how = json.loads(sys.argv[1])
    if how["name"] == LIST:
        print(json.dumps({LIST: _listings(how)}))
        return
    arrays = workloads.arrays(workloads.workload("W1", quick=how["quick"]))
    prepare = {OURS: _ours, TORCH: _torch, DCP: _dcp}.get(how["name"], _s3fs)
    samples: dict[str, list[Sample]] = {}
    for way in WAYS:
        for number in range(how["repeats"]):
            url = f"{how['url']}-{number if way == UP else 0}"
            made = prepare(how["name"], way, url, how["options"], arrays)
            if made is None:
                break
            act, check = made
            sample, found = _timed(act, how["server"])
            samples.setdefault(way, []).append(sample)
            if way != UP and not check(found):
                raise SystemExit(f"{how['name']} returned other bytes than were stored")
            del found, act, check, made
    print(json.dumps(samples))


def _listings(how: dict[str, Any]) -> list[Sample]:
    """List a store with metrics, with a new `Store` each time, so that nothing is known."""
    import ckptfmt

    def act() -> Any:
        return [
            one.metrics["loss"] for one in ckptfmt.open(how["url"], storage_options=options)
        ]

    options = how["options"]
    act()  # the client loads what it knows of its service once a process
    samples = []
    for _ in range(how["repeats"]):
        sample, found = _timed(act, how["server"])
        if found != [1 / number for number in range(1, how["count"] + 1)]:
            raise SystemExit("the listing has other metrics than were stored")
        samples.append(sample)
    return samples


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


def _ours(name: str, way: str, url: str, options: Any, arrays: Any) -> Made:
    import ckptfmt

    store = ckptfmt.open(url, storage_options=options)
    same = _same(arrays)
    if way == UP:
        store.save({"w": np.ones(3)})
        return lambda: store.save({"w": arrays}), same
    if way == DOWN:
        return lambda: store.latest().load()["w"], same
    held = {path: np.full_like(array, -1) for path, array in arrays.items()}
    return lambda: store.latest().load(into={"w": held})["w"], same


def _s3fs(name: str, way: str, url: str, options: Any, arrays: Any) -> Made:
    """One object of all bytes; it comes back as bytes, each range for itself."""
    import fsspec

    if way == INTO:
        return None
    part, count = SETTINGS[name]
    fs = fsspec.filesystem("s3", **options)
    path = url.removeprefix("s3://")
    data = b"".join(a.tobytes() for a in arrays.values())
    fs.pipe_file(f"{path}-warm", b"1")

    def up() -> None:
        fs.pipe_file(path, data, chunksize=part, max_concurrency=count)

    starts = list(range(0, len(data), part))
    ends = [min(start + part, len(data)) for start in starts]

    def down() -> Any:
        return fs.cat_ranges(
            [path] * len(starts), starts, ends, batch_size=count, on_error="raise"
        )

    return (up if way == UP else down), lambda found: b"".join(found) == data


def _torch(name: str, way: str, url: str, options: Any, arrays: Any) -> Made:
    import fsspec
    import torch

    if way == INTO:
        return None

    def up() -> None:
        with fsspec.open(url, "wb", **options) as file:
            torch.save({path: torch.from_numpy(a) for path, a in arrays.items()}, file)

    def down() -> Any:
        with fsspec.open(url, "rb", **options) as file:
            return torch.load(file, weights_only=True)

    return (up if way == UP else down), _same(arrays)


def _dcp(name: str, way: str, url: str, options: Any, arrays: Any) -> Made:
    import torch
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import _fsspec_filesystem as remote

    if way == DOWN:  # it only loads into tensors that exist
        return None
    state = {path: torch.from_numpy(a) for path, a in arrays.items()}
    if way == UP:
        writer = remote.FsspecWriter(url, overwrite=True, **options)
        return lambda: checkpoint.save(state, storage_writer=writer), _same(arrays)
    empty = {path: torch.full_like(t, -1) for path, t in state.items()}

    def down() -> Any:
        checkpoint.load(empty, storage_reader=remote.FsspecReader(url, **options))
        return empty

    return down, _same(arrays)


def _same(arrays: Any) -> Check:
    return lambda found: (
        found.keys() == arrays.keys()
        and all(np.asarray(found[path]).tobytes() == a.tobytes() for path, a in arrays.items())
    )


if __name__ == "__main__":
    main()
