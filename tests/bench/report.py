"""Numbers into tables: medians, ratios, targets. Pure; works on a run that was kept as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tests.bench import curves
from tests.bench.contract import LIMITS, OURS, PEER
from tests.bench.measures import (
    MEASURES,
    SECOND_BYTES,
    TARGETS,
    TO_PEER,
    Measure,
    Target,
)

Run = dict[str, Any]

OTHERS_SECONDS: Final = 0.1  # shorter samples are too short for the kernel's processor times
TITLES: Final = {
    "W1": "W1 {title}: {nbytes} in {arrays} float32 arrays",
    "W2": "W2 {title}: {arrays} float32 arrays, {nbytes}",
    "W3": "W3 {title}: {nbytes} in {arrays} float32 arrays",
    "W4": "W4 {title}: {nbytes} in {arrays} {dtype} arrays",
    "W5": "W5 {title}: {nbytes}, {arrays} float32 arrays",
    "W6": "W6 {title}: {checkpoints} of {nbytes}",
    "W7": "W7 {title}: {checkpoints} of {nbytes}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one contender needed for one measure."""

    contender: str
    name: str
    values: tuple[float, ...]
    to_peer: float | None  # median in medians of safetensors.numpy
    to_limit: float | None  # the same of the fastest limit

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a target."""

    target: Target
    measure: Measure
    found: float | None  # ratio, or bytes; None: not measured
    met: bool

    @property
    def text(self) -> str:
        """What was asked for and whether it was met."""
        bound = f"≤ {self.shown(self.target.limit)}"
        if self.target.to:
            bound = f"{bound} {self.target.to}"
        if self.found is None:
            return f"{bound} not measured"
        if self.met:
            return f"{bound} met by {100 * (1 - self.found / self.target.limit):.0f} %"
        return f"{bound} MISSED by {100 * (self.found / self.target.limit - 1):.0f} %"

    def shown(self, value: float) -> str:
        """Return what was found or asked for: a ratio, or with its unit."""
        return number(value, self.measure, ratio=bool(self.target.to))


def cells(run: Run, measure: Measure) -> list[Cell]:
    """Return the contenders of one measure, in the order of the contract."""
    values: dict[str, list[float]] = {}
    for sample in run["samples"]:
        if (sample["workload"], sample["measure"]) == (measure.workload, measure.key):
            values.setdefault(sample["contender"], []).append(sample["value"])
    medians = {name: statistics.median(found) for name, found in values.items()}
    peer = medians.get(PEER)
    limit = min((medians[name] for name in LIMITS if name in medians), default=None)
    return [
        Cell(
            contender=name,
            name=contender["name"],
            values=tuple(values[name]),
            to_peer=medians[name] / peer if peer else None,
            to_limit=medians[name] / limit if limit else None,
        )
        for name, contender in run["contenders"].items()
        if name in values
    ]


def verdicts(run: Run) -> list[Verdict]:
    """Judge every target whose workload was run."""
    found = []
    for target in TARGETS:
        if target.workload not in run["workloads"]:
            continue
        measure = next(
            m for m in MEASURES if (m.workload, m.key) == (target.workload, target.key)
        )
        if target.contender not in run["contenders"]:
            continue  # it was not asked for
        ours = next((c for c in cells(run, measure) if c.contender == target.contender), None)
        value = None if ours is None else _judged(ours, target)
        met = value is not None and value <= target.limit
        found.append(Verdict(target=target, measure=measure, found=value, met=met))
    return found


def _judged(ours: Cell, target: Target) -> float | None:
    if not target.to:
        return ours.median
    return ours.to_peer if target.to == TO_PEER else ours.to_limit


def number(value: float, measure: Measure, *, ratio: bool = False) -> str:
    """Return a value with its unit, or a ratio of times."""
    if measure.is_memory:
        return f"{value / 2**20:.0f} MiB" if value >= 10 * 2**20 else f"{value / 2**20:.1f} MiB"
    if ratio:
        return f"{value:.2f}x"
    return f"{value:.3f} s" if value >= 0.1 else f"{1000 * value:.2f} ms"


def size(nbytes: float) -> str:
    """Return a length in the unit that suits it."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= one:
            return f"{nbytes / one:.4g} {unit}"
    return f"{nbytes:.0f} B"


def title(run: Run, workload: str) -> str:
    """Return a workload's heading."""
    own = run["workloads"][workload]
    return TITLES[workload].format(**own | {"nbytes": size(own["nbytes"])})


def text(run: Run) -> str:
    """Return everything as aligned text."""
    lines = [*_head(run), ""]
    if run.get("curves"):
        return "\n".join([*lines, *curves.lines(run), *_missing(run)]) + "\n"
    judged = verdicts(run)
    for workload in run["workloads"]:
        lines += [
            title(run, workload),
            _row("", "median", "min", "max", "x peer", "x limit", ""),
        ]
        for measure in (m for m in MEASURES if m.workload == workload):
            found = cells(run, measure)
            if found:
                lines.append(f"  {measure.title}")
            lines += _cannot(run, measure)
            for cell in found:
                note = "; ".join(
                    v.text
                    for v in judged
                    if v.measure is measure and v.target.contender == cell.contender
                )
                lines.append(_cell_row(cell, measure, note))
        lines.append("")
    lines += [*_bytes(run), *_second_bytes(run), *_resident(run), *_missing(run), *_result(run)]
    return "\n".join(lines) + "\n"


def machine_lines(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) of what the figures depend on."""
    own = run["machine"]
    yield (
        "machine",
        (
            f"{own['processor']}, {own['cores']} cores, {size(own['memory'])} memory,"
            f" {own['system']}, {own['file_system']} ({own['mount_options']})"
        ),
    )
    yield (
        "versions",
        ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    )
    others = [s["others"] for s in run["samples"] if s.get("timed", 0) >= OTHERS_SECONDS]
    load = run["load"]
    noise = [
        f"load average {load['before'][0]} before and {load['after'][0]} after (the"
        f" benchmark itself is up to 2 of it), at the samples {_spread('load', run, '.1f')}",
        f"probe (copy of 16 MiB) {_spread('probe', run, '.1f', 1e9)} GB/s",
    ]
    if others:
        used = _range(others, ".2f")
        noise.append(f"cores used by everybody else and by the kernel's writers {used}")
    yield "noise", "; ".join(noise)


def _head(run: Run) -> list[str]:
    kind = "QUICK: small sizes, the figures mean nothing; " if run["quick"] else ""
    head = [
        (
            "ckptfmt benchmark",
            f"{kind}{run['rounds']} rounds of shuffled order (seed {run['seed']}), every sample"
            f" in its own process, medians; began {run['began']}, took {run['took']:.0f} s",
        ),
        *machine_lines(run),
        (
            "priming",
            "before each sample, saves and loads, everything is synced and a scratch file of"
            " 1.1 times the length is written and removed; 'after idling': synced, then a pause"
            " of 5 s",
        ),
        (
            "page cache",
            "loads warm (the files were read just before) unless said to be cold (the files"
            " synced and dropped from the page cache, which mincore confirmed). Durable = file"
            " and folder synced",
        ),
        ("checked", _compared(run)),
    ]
    return [f"{name:<18} {words}" for name, words in head]


def _compared(run: Run) -> str:
    ways = sum(len(row["compared"]) for row in run["compared"])
    wrong = [f for f in run["failures"] if f["measure"] == "check"]
    if wrong:
        return f"FAILED for {', '.join(sorted({f['contender'] for f in wrong}))}"
    return (
        f"{ways} ways to read what was saved gave the same bits; bytes on disk are those of the"
        " arrays plus at most 1 % and 1 KiB for each array"
    )


def _range(values: list[float], form: str, unit: float = 1.0) -> str:
    low, middle, high = (f(values) / unit for f in (min, statistics.median, max))
    return f"{middle:{form}} ({low:{form}} .. {high:{form}})"


def _spread(key: str, run: Run, form: str, unit: float = 1.0) -> str:
    values = [sample[key] for sample in run["samples"] if key in sample]
    return _range(values, form, unit) if values else "none"


def _cell_row(cell: Cell, measure: Measure, note: str) -> str:
    return _row(
        cell.name,
        *(number(v, measure) for v in (cell.median, min(cell.values), max(cell.values))),
        "" if cell.to_peer is None or measure.is_memory else f"{cell.to_peer:.2f}",
        "" if cell.to_limit is None or measure.is_memory else f"{cell.to_limit:.2f}",
        note,
    )


def _row(name: str, *rest: str) -> str:
    *numbers, note = rest
    return f"    {name:<24}{''.join(f'{n:>11}' for n in numbers)}   {note}".rstrip()


def _bytes(run: Run) -> list[str]:
    lines = ["bytes on disk, in bytes of the arrays"]
    for workload, own in run["workloads"].items():
        data = own["nbytes"] * own["checkpoints"]
        ratios = [
            f"{run['contenders'][row['contender']]['name']} {row['nbytes'] / data:.4f}"
            for row in run["compared"]
            if row["workload"] == workload and "nbytes" in row
        ]
        if ratios:
            lines.append(f"    {workload}  {', '.join(ratios)}")
    return [*lines, ""]


def second_bytes(run: Run) -> dict[str, float]:
    """Return the bytes that each contender's second save wrote, in bytes that had changed."""
    return {
        s["contender"]: s["nbytes"] / s["changed"]
        for s in run["samples"]
        if s["measure"] == "second-durable"
    }


def _second_bytes(run: Run) -> list[str]:
    found = second_bytes(run)
    if not found:
        return []
    names = (f"{run['contenders'][n]['name']} {ratio:.3f}" for n, ratio in found.items())
    lines = [
        "bytes written by the second save, in bytes that changed",
        f"    {', '.join(names)}",
    ]
    if OURS in found:
        met = "met" if found[OURS] <= SECOND_BYTES else "MISSED"
        lines.append(f"    ours: ≤ {SECOND_BYTES} {met}")
    return [*lines, ""]


def _resident(run: Run) -> list[str]:
    lines = []
    for measure in (m for m in MEASURES if m.is_memory):
        peaks: dict[str, list[float]] = {}
        for s in run["samples"]:
            if s["measure"] == measure.key:
                peaks.setdefault(s["contender"], []).append(s["resident"])
        if peaks:
            names = (
                f"{run['contenders'][n]['name']} {size(statistics.median(found))}"
                for n, found in peaks.items()
            )
            lines.append(f"    {measure.title.removeprefix('peak extra memory of a ')}:")
            lines.append(f"        {', '.join(names)}")
    note = (
        "growth of peak resident memory (with mapped pages of files, which are no allocation)"
    )
    return [note, *lines, ""] if lines else []


def _cannot(run: Run, measure: Measure) -> list[str]:
    """Return the contenders that could not do it here."""
    return [
        f"    {run['contenders'][row['contender']]['name']:<24}{row['why']:>11}"
        for row in run.get("left_out", ())
        if (row["workload"], row["measure"]) == (measure.workload, measure.key)
    ]


def _missing(run: Run) -> list[str]:
    lines = [
        f"not run: {name}: {contender['missing']}"
        for name, contender in run["contenders"].items()
        if "missing" in contender
    ]
    lines += [
        f"left out: {row['workload']} {row['measure']},"
        f" {run['contenders'][row['contender']]['name']}: {row['why']}: {row['reason']}"
        for row in run.get("left_out", ())
    ]
    lines += [
        f"FAILED: {f['workload']} {f['measure']}, {f['contender']}:"
        f" {f['reason'].strip().splitlines()[-1]}"
        for f in run["failures"]
    ]
    return [*lines, ""] if lines else []


def _result(run: Run) -> list[str]:
    judged = verdicts(run)
    missed = [v for v in judged if not v.met]
    lines = [f"targets: {len(judged) - len(missed)} of {len(judged)} met"]
    for verdict in missed:
        found = "-" if verdict.found is None else verdict.shown(verdict.found)
        own = verdict.target.contender
        who = "" if own == OURS else f", {run['contenders'][own]['name']}"
        what = f"{verdict.target.workload} {verdict.measure.title}{who}"
        lines.append(f"    {what}: {found}, {verdict.text}")
    return lines
