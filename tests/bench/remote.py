"""Measure a bucket: ckptfmt beside its client and torch; `python -m tests.bench.remote`.

Everybody moves the W1 state (1 GiB in 444 arrays) to and from the same server on loopback,
through s3fs with the same options, in a process of its own. The server is ours
(`tests/remote/bucket.py`) and takes its share of the cores; read the ratios, not the rates.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.bench import machine, workloads
from tests.remote import bucket

MIB: Final = 2**20
REPEATS: Final = 3  # in each process; the lowest counts, others only ever disturb
DISTRIBUTIONS: Final = frozenset(
    {"ckptfmt", "numpy", "fsspec", "s3fs", "aiobotocore", "aiohttp", "torch"}
)
# Of the client library alone, (bytes of a part, requests at once): the best one counts.
SETTINGS: Final = {
    "s3fs 8 × 16 MiB": (16 * MIB, 8),
    "s3fs 16 × 16 MiB": (16 * MIB, 16),
    "s3fs 8 × 8 MiB": (8 * MIB, 8),
    "s3fs as it comes": (50 * MIB, 10),
}
OURS: Final = "ckptfmt"
TORCH: Final = "torch.save over fsspec.open"
DCP: Final = "DCP FsspecWriter"
CONTENDERS: Final = (OURS, *SETTINGS, TORCH, DCP)
# Without a checksum and a signature of each part, which plain HTTP has twice and TLS not.
TUNED: Final = {
    "config_kwargs": {
        "max_pool_connections": 64,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False},
    }
}

Act = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.remote", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--folder", type=pathlib.Path, help="where the server stores")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples")
    parser.add_argument("--from", type=pathlib.Path, dest="read", help="report a run kept so")
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--act", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        _child(*options.act, quick=options.quick)
        return
    run = json.loads(options.read.read_text()) if options.read else _measured(options)
    print(report(run))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in options.only.split(",") if _installed(name)]
    samples: dict[str, Any] = {n: {"up": [], "down": []} for n in names}
    own = workloads.workload("W1", quick=options.quick)
    run = {
        "nbytes": own.nbytes,
        "quick": options.quick,
        "samples": samples,  # by contender and way: [seconds, processor seconds of the client]
        "machine": machine.describe(pathlib.Path(options.folder or tempfile.gettempdir())),
        "versions": machine.versions(set(DISTRIBUTIONS)),
        "load_before": machine.load_average(),
    }
    for number in range(options.rounds):
        for name in random.Random(number).sample(names, len(names)):
            with (
                tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
                bucket.running(pathlib.Path(folder)) as server,
            ):
                for way in ("up", "down"):
                    how = json.dumps({**server.options, **TUNED})
                    quick = ["--quick"] if options.quick else []
                    line = [sys.executable, "-m", "tests.bench.remote", *quick, "--act"]
                    done = subprocess.run(
                        [*line, name, way, "s3://b/run", how],
                        check=False, capture_output=True, text=True, timeout=600,
                    )  # fmt: skip
                    if done.returncode:
                        raise SystemExit(f"{name}, {way}: {done.stderr[-3000:]}")
                    samples[name][way].extend(json.loads(done.stdout))
            print(number, name, {w: min(s) for w, s in samples[name].items()}, file=sys.stderr)
            if options.json:  # what was measured is kept, whatever becomes of the rest
                options.json.write_text(json.dumps(run, indent=1) + "\n")
    return run


def _installed(name: str) -> bool:
    if name not in (TORCH, DCP):
        return True
    try:
        import torch  # noqa: F401
    except ImportError:
        print(f"{name} is left out: torch is not installed", file=sys.stderr)
        return False
    return True


def report(run: dict[str, Any]) -> str:
    """Return the table of a run, as Markdown: lowest samples, ratios to the best s3fs."""

    def lowest(name: str, way: str, n: int) -> float:
        return min(sample[n] for sample in run["samples"][name][way])

    names = [n for n, ways in run["samples"].items() if ways["down"]]
    best = {
        way: min((lowest(n, way, 0) for n in names if n in SETTINGS), default=float("nan"))
        for way in ("up", "down")
    }
    rows = [
        "| | upload, MB/s | best s3fs = 1 | CPU s/GiB "
        "| download, MB/s | best s3fs = 1 | CPU s/GiB |",
        "|-|-|-|-|-|-|-|",
    ]
    for name in names:
        cells = [name]
        for way in ("up", "down"):
            seconds = lowest(name, way, 0)
            cells.append(f"{run['nbytes'] / 1e6 / seconds:.0f}")
            cells.append(f"{best[way] / seconds:.2f}")
            cells.append(f"{lowest(name, way, 1) / (run['nbytes'] / 2**30):.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    facts = {key: run[key] for key in ("versions", "machine", "load_before")}
    return "\n".join([*rows, "", json.dumps(facts)])


# --- one act, in a process of its own -----------------------------------------------------


def _child(name: str, way: str, url: str, how: str, *, quick: bool) -> None:
    options = json.loads(how)
    arrays = workloads.arrays(workloads.workload("W1", quick=quick))
    samples = []
    for number in range(REPEATS):
        at = f"{url}-{number if way == 'up' else 0}"
        if name == OURS:
            act, check = _ours(way, at, options, arrays)
        elif name in SETTINGS:
            act, check = _s3fs(way, at, options, arrays, *SETTINGS[name])
        else:
            act, check = (_torch if name == TORCH else _dcp)(way, at, options, arrays)
        begin, busy = time.perf_counter(), time.process_time()
        found = act()
        samples.append([time.perf_counter() - begin, time.process_time() - busy])
        if way == "down" and not check(found):
            raise SystemExit(f"{name} returned other bytes than were stored")
        del found, act, check
    print(json.dumps(samples))


def _ours(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Callable[[Any], bool]]:
    import ckptfmt

    store = ckptfmt.open(url, storage_options=options)
    state = {"w": arrays}
    if way == "up":
        store.save({"w": np.ones(3)})
        return lambda: store.save(state), bool
    return lambda: store.latest().load()["w"], lambda found: _same(found, arrays)


def _s3fs(
    way: str, url: str, options: Any, arrays: Any, part: int, count: int
) -> tuple[Act, Callable[[Any], bool]]:
    import fsspec

    fs = fsspec.filesystem("s3", **options)
    path = url.removeprefix("s3://")
    data = b"".join(a.tobytes() for a in arrays.values())
    fs.pipe_file(f"{path}-warm", b"1")
    if way == "up":
        return lambda: fs.pipe_file(path, data, chunksize=part, max_concurrency=count), bool
    starts = list(range(0, len(data), part))
    ends = [min(start + part, len(data)) for start in starts]
    return (
        lambda: fs.cat_ranges(
            [path] * len(starts), starts, ends, batch_size=count, on_error="raise"
        ),
        lambda found: b"".join(found) == data,
    )


def _torch(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Callable[[Any], bool]]:
    import fsspec
    import torch

    def up() -> None:
        with fsspec.open(url, "wb", **options) as file:
            torch.save({path: torch.from_numpy(a) for path, a in arrays.items()}, file)

    def down() -> Any:
        with fsspec.open(url, "rb", **options) as file:
            return torch.load(file, weights_only=True)

    return (up, bool) if way == "up" else (down, lambda found: _same(found, arrays))


def _dcp(way: str, url: str, options: Any, arrays: Any) -> tuple[Act, Callable[[Any], bool]]:
    import torch
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import _fsspec_filesystem as remote

    state = {path: torch.from_numpy(a) for path, a in arrays.items()}
    if way == "up":
        writer = remote.FsspecWriter(url, overwrite=True, **options)
        return lambda: checkpoint.save(state, storage_writer=writer), bool
    empty = {path: torch.empty_like(t) for path, t in state.items()}

    def down() -> Any:
        checkpoint.load(empty, storage_reader=remote.FsspecReader(url, **options))
        return empty

    return down, lambda found: _same(found, arrays)


def _same(found: Any, arrays: Any) -> bool:
    return found.keys() == arrays.keys() and all(
        np.asarray(found[path]).tobytes() == array.tobytes() for path, array in arrays.items()
    )


if __name__ == "__main__":
    main()
