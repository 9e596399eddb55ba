"""Measure ckptfmt beside its peers and the hardware: `python -m tests.bench`, `make bench`."""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any, Final

from tests.bench import curves, machine, readme, report, rounds, workloads
from tests.bench.contract import CONTENDERS
from tests.bench.measures import FEW, MEASURES, WORKLOADS, Measure
from tests.bench.processes import ROOT
from tests.bench.rounds import Options

ROUNDS: Final = 5
PEER_ROUNDS: Final = 2
QUICK_ROUNDS: Final = 2
COPIES: Final = 9  # of the largest workload on disk at a time: the fixtures and what is saved
CURVE: Final = 5.5  # the same of a curve: it has three contenders
STATES: Final = 4  # of it in memory: arrays, a second copy, and the page cache of one file


def main() -> int:
    options = _arguments()
    if options.read is not None:
        run: dict[str, Any] = json.loads(options.read.read_text("utf-8"))
    else:
        run = _measured(options)
    if options.json is not None:
        options.json.write_text(json.dumps(run, indent=1) + "\n", "utf-8")
    print(report.text(run), end="")
    picture = ""
    if options.plots is not None and not run["quick"]:
        from tests.bench import plots  # needs matplotlib

        drawn = plots.draw(run, options.plots)
        picture = drawn.resolve().relative_to(ROOT).as_posix() if options.readme else ""
        print(f"drawn: {drawn.name}", file=sys.stderr)
    if options.readme is not None and not run.get("curves"):
        if run["quick"]:
            print("a quick run means nothing: it goes into no page", file=sys.stderr)
            return 2
        try:
            readme.insert(options.readme, run, picture)
        except readme.MarksMissingError as error:
            print(error, file=sys.stderr)
            return 2
    return 1 if run["failures"] else 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    folder = (options.folder or ROOT / ".cache") / f"bench-{os.getpid()}"
    problem = _lacking(folder.parent, options)
    if problem:
        raise SystemExit(problem)
    folder.mkdir(parents=True)
    chosen = options.workloads or WORKLOADS
    measures: tuple[Measure, ...] = MEASURES
    contenders = options.only or CONTENDERS
    if options.curves:
        chosen = curves.workloads(quick=options.quick, largest=options.largest)
        measures, contenders = curves.measures(chosen), options.only or FEW
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up: these are gigabytes
    try:
        return rounds.run(
            Options(
                quick=options.quick,
                rounds=options.rounds
                or (QUICK_ROUNDS if options.quick or options.curves else ROUNDS),
                measures=measures,
                seed=time.time_ns() % 2**32 if options.seed is None else options.seed,
                folder=folder,
                peer_rounds=options.peer_rounds,
                seconds=math.inf if options.minutes is None else 60 * options.minutes,
                environments=options.environments,
                contenders=contenders,
                workloads=chosen,
            ),
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    finally:
        shutil.rmtree(folder)


def _lacking(folder: pathlib.Path, options: argparse.Namespace) -> str:
    """Return what this machine has too little of: it would be measured instead."""
    folder.mkdir(parents=True, exist_ok=True)
    names = WORKLOADS
    if options.curves:
        names = curves.workloads(quick=options.quick, largest=options.largest)
    largest = max(workloads.workload(n, quick=options.quick).nbytes for n in names)
    for what, free, needed in (
        (
            "disk",
            shutil.disk_usage(folder).free,
            (CURVE if options.curves else COPIES) * largest,
        ),
        ("memory", machine.available(), (2.2 if options.curves else STATES) * largest),
    ):
        if free < needed:
            return f"{report.size(needed)} of {what} are needed, {report.size(free)} are free"
    return ""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it still run?")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, or {QUICK_ROUNDS} with --quick")
    parser.add_argument("--peer-rounds", type=int, default=PEER_ROUNDS,
                        help="of those, how many have all contenders, not only ours,"
                        " safetensors.numpy and the limits")  # fmt: skip
    parser.add_argument("--minutes", type=float,
                        help="begin no sample later, and none of a peer after 0.6 of it; but"
                        " ours, safetensors.numpy and the limits do a whole round")  # fmt: skip
    parser.add_argument("--environments", type=pathlib.Path, metavar="FOLDER",
                        help="of contenders that have one: see environments.py")  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the order; printed")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep all samples")
    parser.add_argument("--from", type=pathlib.Path, dest="read", metavar="FILE",
                        help="report a run kept with --json; nothing is measured")  # fmt: skip
    parser.add_argument("--readme", type=pathlib.Path, metavar="FILE", nargs="?",
                        const=ROOT / "README.md",
                        help="put the table between the marks of README.md")  # fmt: skip
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk to measure; .cache")
    parser.add_argument("--curves", action="store_true",
                        help="over bytes, arrays and checkpoints, not the table")  # fmt: skip
    parser.add_argument("--largest", type=int, default=curves.LARGEST_MB, metavar="MB",
                        help="of the curves; %(default)s")  # fmt: skip
    parser.add_argument("--plots", type=pathlib.Path, metavar="FOLDER", nargs="?",
                        const=ROOT / "docs", help="draw it as SVG; docs")  # fmt: skip
    parser.add_argument("--only", type=_names(CONTENDERS), metavar="CONTENDER,…",
                        help=", ".join(CONTENDERS))  # fmt: skip
    parser.add_argument("--workloads", type=_names(WORKLOADS), metavar="W,…",
                        help=", ".join(WORKLOADS))  # fmt: skip
    return parser.parse_args()


def _names(known: tuple[str, ...]) -> Any:
    def names(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)} are none of {list(known)}")
        return chosen

    return names


if __name__ == "__main__":
    sys.exit(main())
