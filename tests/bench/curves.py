"""How times grow with bytes, arrays and checkpoints: `make bench-curves`. Tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.contract import OURS, PEER
from tests.bench.measures import FEW, Measure

Run = dict[str, Any]

LIMIT: Final = "limit_page_cache"
LARGEST_MB: Final = 2500  # more is asked for: 8000 needs 45 GB of disk and a quarter of an hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One measure over many sizes."""

    family: str  # of the workloads: `family-number`
    key: str
    title: str
    axis: str
    action: str
    needs: str
    durable: bool = False


POINTS: Final = {
    "size": (10, 40, 160, 640, 2500, 8000),
    "arrays": (10, 100, 1000, 10_000, 100_000),
    "run": (1, 10, 100, 1000),  # a save takes longer the longer the run: 10,000 take an hour
}
QUICK: Final = {"size": (1, 2), "arrays": (10, 20), "run": (1, 2)}

SIZE: Final = "megabytes in 64 arrays"
ARRAYS: Final = "arrays of 1 KiB"
CURVES: Final = (
    Curve(
        family="size",
        key="save-durable",
        title="durable save",
        axis=SIZE,
        action="save",
        needs="saver",
        durable=True,
    ),
    Curve(
        family="size",
        key="into",
        title="load into existing arrays",
        axis=SIZE,
        action="load_into",
        needs="load_into",
    ),
    Curve(
        family="arrays",
        key="save-durable",
        title="durable save",
        axis=ARRAYS,
        action="save",
        needs="saver",
        durable=True,
    ),
    Curve(
        family="arrays",
        key="read",
        title="load and read every byte",
        axis=ARRAYS,
        action="load_and_read",
        needs="load_mmap|load",
    ),
    Curve(
        family="arrays",
        key="list",
        title="open and list",
        axis=ARRAYS,
        action="listing",
        needs="listing",
    ),
    Curve(
        family="run",
        key="list-run",
        title="list a run with counters and metrics",
        axis="checkpoints",
        action="list_run",
        needs="list_run",
    ),
)


def workloads(*, quick: bool, largest: int) -> tuple[str, ...]:
    """Return the names of all points; of sizes, those of at most so many megabytes."""
    points = QUICK if quick else POINTS
    return tuple(
        f"{family}-{many}"
        for family, numbers in points.items()
        for many in numbers
        if family != "size" or many <= largest
    )


def measures(names: tuple[str, ...]) -> tuple[Measure, ...]:
    """Return what is measured at these points."""
    return tuple(
        Measure(
            key=curve.key,
            workload=name,
            title=curve.title,
            action=curve.action,
            needs=curve.needs,
            durable=curve.durable,
            among=FEW,
        )
        for name in names
        for curve in CURVES
        if name.startswith(curve.family + "-")
    )


def points(run: Run, curve: Curve, contender: str) -> list[tuple[int, list[float]]]:
    """Return (number, seconds of each sample) of one line, smallest first."""
    found: dict[int, list[float]] = {}
    for sample in run["samples"]:
        family, _, many = sample["workload"].partition("-")
        if (family, sample["measure"], sample["contender"]) == (
            curve.family,
            curve.key,
            contender,
        ):
            found.setdefault(int(many), []).append(sample["value"])
    return sorted(found.items())


def lines(run: Run) -> Iterator[str]:
    """Yield a table for each curve: medians, and the multiples of safetensors and the limit."""
    for curve in CURVES:
        medians = {
            name: {many: statistics.median(s) for many, s in points(run, curve, name)}
            for name in run["contenders"]
        }
        yield f"{curve.title}, over {curve.axis}"
        names = "".join(f"{run['contenders'][name]['name']:>20}" for name in medians)
        yield f"{'':>10}{names}{'x peer':>10}{'x limit':>10}"
        for many in sorted({many for found in medians.values() for many in found}):
            row = [medians[name].get(many) for name in medians]
            cells = "".join(f"{'-' if s is None else f'{1000 * s:.2f} ms':>20}" for s in row)
            ours = medians.get(OURS, {}).get(many)
            ratios = (
                ours / other if ours and other else None
                for other in (medians.get(name, {}).get(many) for name in (PEER, LIMIT))
            )
            shown = "".join(f"{'-' if r is None else f'{r:.2f}':>10}" for r in ratios)
            yield f"{many:>10,}{cells}{shown}"
        yield ""
