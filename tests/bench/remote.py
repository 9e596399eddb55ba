"""Measure a bucket: ckptfmt beside its client and torch; `python -m tests.bench.remote`.

Everybody moves the W1 state (1 GiB in 444 arrays) to and from the same server on loopback,
through s3fs with the same options, in a process of its own. The server is ours
(`tests/remote/bucket.py`) and takes its share of the cores; read the ratios, not the rates.
Then ckptfmt lists 1,000 checkpoints with their metrics, each request held back by 50 ms.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Final

import ckptfmt
from tests.bench import machine, workloads
from tests.bench.remote_acts import (
    DCP,
    DOWN,
    INTO,
    LIST,
    OURS,
    SETTINGS,
    TORCH,
    UP,
    WAYS,
    Sample,
)
from tests.remote import bucket
from tests.remote.many import commit_many

CONTENDERS: Final = (OURS, *SETTINGS, TORCH, DCP, LIST)
LISTED: Final = 1000  # checkpoints …
DELAY: Final = 0.05  # … each request of theirs held back by so many seconds …
LIST_SECONDS: Final = 2.0  # … are listed with metrics in so many
DISTRIBUTIONS: Final = frozenset(
    {"ckptfmt", "numpy", "fsspec", "s3fs", "aiobotocore", "aiohttp", "torch"}
)
# Without a checksum and a signature of each part, which plain HTTP has twice and TLS not.
TUNED: Final = {
    "config_kwargs": {
        "max_pool_connections": 64,
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "s3": {"payload_signing_enabled": False},
    }
}
CLIENT: Final = "best s3fs"
# What is asked of ckptfmt: (its way, whose, way of that one, multiple of its rate at least).
TARGETS: Final = (
    (UP, CLIENT, UP, 0.9),
    (DOWN, CLIENT, DOWN, 0.9),
    (INTO, CLIENT, DOWN, 0.9),
    (UP, TORCH, UP, 2.0),
    (DOWN, TORCH, DOWN, 2.0),
    (UP, DCP, UP, 2.0),
    (INTO, DCP, INTO, 2.0),
)
TITLES: Final = {UP: "upload", DOWN: "download", INTO: "download into arrays that exist"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.remote", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--repeats", type=int, default=2, help="samples of each process")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--folder", type=pathlib.Path, help="where the server stores")
    parser.add_argument("--json", type=pathlib.Path, help="keep all samples; adds to a file")
    parser.add_argument("--from", type=pathlib.Path, dest="read", help="report a run kept so")
    parser.add_argument("--only", default=",".join(CONTENDERS))
    options = parser.parse_args()
    run = json.loads(options.read.read_text()) if options.read else _measured(options)
    print(report(run))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    names = [name for name in options.only.split(",") if _installed(name)]
    own = workloads.workload("W1", quick=options.quick)
    samples: dict[str, dict[str, list[Sample]]] = {
        name: {way: [] for way in ((LIST,) if name == LIST else WAYS)} for name in names
    }
    run = {
        "nbytes": own.nbytes,
        "listed": LISTED // 50 if options.quick else LISTED,
        "quick": options.quick,
        "samples": samples,
        "machine": machine.describe(pathlib.Path(options.folder or tempfile.gettempdir())),
        "versions": machine.versions(set(DISTRIBUTIONS)),
        "load": [machine.load_average()],
    }
    for number in range(options.rounds):
        for name in random.Random(number).sample(names, len(names)):
            with (
                tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
                bucket.running(pathlib.Path(folder)) as server,
            ):
                for way, found in _samples(name, server, options, run["listed"]).items():
                    samples[name][way] += found
            shown = {way: [s["seconds"] for s in found] for way, found in samples[name].items()}
            print(number, name, shown, file=sys.stderr, flush=True)
            run["load"] = [run["load"][0], machine.load_average()]
            if options.json:  # what was measured is kept, whatever becomes of the rest
                options.json.write_text(json.dumps(run, indent=1) + "\n")
    return run


def _samples(
    name: str, server: bucket.Bucket, options: argparse.Namespace, count: int
) -> dict[str, list[Sample]]:
    how = {
        "name": name, "url": "s3://b/run", "options": {**server.options, **TUNED},
        "server": server.process.pid, "repeats": options.repeats, "quick": options.quick,
        "count": count,
    }  # fmt: skip
    if name == LIST:
        with ckptfmt.open("s3://b/run", storage_options=server.options) as store:
            commit_many(store, count)
        server.ask("set", delay=DELAY)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.remote_acts", json.dumps(how)],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-3000:]}")
    found: dict[str, list[Sample]] = json.loads(done.stdout)
    return found


def _installed(name: str) -> bool:
    if name not in CONTENDERS:
        raise SystemExit(f"no such contender: {name}; there are {CONTENDERS}")
    if name not in (TORCH, DCP):
        return True
    try:
        import torch  # noqa: F401
    except ImportError:
        print(f"{name} is left out: torch is not installed", file=sys.stderr)
        return False
    return True


def report(run: dict[str, Any]) -> str:
    """Return a run as Markdown: medians, lowest and highest samples, targets.

    Processor time is that of the client plus that of the server.
    """
    samples = {name: ways for name, ways in run["samples"].items() if name != LIST}
    listings = run["samples"].get(LIST, {}).get(LIST, [])
    rate = {
        (name, way): run["nbytes"] / 1e6 / statistics.median(s["seconds"] for s in ways[way])
        for name, ways in samples.items()
        for way in WAYS
        if ways[way]
    }
    for way in WAYS:
        of_client = [rate[name, way] for name in SETTINGS if (name, way) in rate]
        if of_client:
            rate[CLIENT, way] = max(of_client)
    titles = (f"{TITLES[way]}, MB/s | CPU s/GiB" for way in WAYS)
    lines = [f"| | {' | '.join(titles)} |", "|-|-|-|-|-|-|-|"] if samples else []
    lines += [f"| {' | '.join(_cells(name, run, rate))} |" for name in samples]
    lines.append("")
    for way, whose, its, least in TARGETS:
        if (OURS, way) in rate and (whose, its) in rate:
            ratio = rate[OURS, way] / rate[whose, its]
            kept = "met" if ratio >= least else "**missed**"
            lines.append(f"- {TITLES[way]}: {ratio:.2f} of {whose}, at least {least}: {kept}")
    if listings:
        lines.append(_listing(run["listed"], listings))
    every = [s for ways in samples.values() for way in WAYS for s in ways[way]] + listings
    others = sorted(s["others"] / s["seconds"] for s in every)
    lines.append(
        f"- cores used by everybody else during the samples: {statistics.median(others):.2f}"
        f" ({others[0]:.2f} .. {others[-1]:.2f}); load average {run['load']}"
    )
    facts = {key: run[key] for key in ("versions", "machine", "quick")}
    return "\n".join([*lines, "", json.dumps(facts)])


def _listing(count: int, samples: list[Sample]) -> str:
    """Return what became of the listing, which is judged in seconds."""
    seconds = sorted(s["seconds"] for s in samples)
    median, cpu = statistics.median(seconds), statistics.median(s["client"] for s in samples)
    kept = "met" if median <= LIST_SECONDS else "**missed**"
    return (
        f"- {count:,} checkpoints listed with metrics, each request held back by"
        f" {DELAY * 1000:.0f} ms: {median:.2f} s ({seconds[0]:.2f} .. {seconds[-1]:.2f}),"
        f" {cpu:.2f} CPU s of the client; at most {LIST_SECONDS} s: {kept}"
    )


def _cells(name: str, run: dict[str, Any], rate: dict[tuple[str, str], float]) -> list[str]:
    cells = [name]
    for way in WAYS:
        own = run["samples"][name][way]
        if not own:
            cells += ["", ""]
            continue
        rates = sorted(run["nbytes"] / 1e6 / s["seconds"] for s in own)
        cells.append(f"{rate[name, way]:.0f} ({rates[0]:.0f} .. {rates[-1]:.0f})")
        both = (statistics.median(s[side] for s in own) for side in ("client", "server"))
        cells.append(" + ".join(f"{cpu / (run['nbytes'] / 2**30):.2f}" for cpu in both))
    return cells


if __name__ == "__main__":
    main()
