"""The table in README.md, between two marks."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tests.bench.contract import CONTENDERS, LIMITS, OURS, PEER
from tests.bench.measures import FROZEN, MAPPED, MEASURES, UNVERIFIED, WORKLOADS, Measure
from tests.bench.report import (
    Cell,
    Verdict,
    cells,
    machine_lines,
    number,
    second_bytes,
    title,
    verdicts,
)

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"

OTHERS: Final = "the fastest of the others"
COLUMNS: Final = {  # heading → contenders, the fastest of which is shown
    "ckptfmt": ("ckptfmt_store",),
    "safetensors (numpy)": ("safetensors_numpy",),
    "torch.save / load, best of its ways": (
        "torch_save",
        "torch_save_without_crc",
        "torch_load_mmap",
    ),
    OTHERS: (
        "torch_dcp",
        "torchsnapshot_files",
        "torch_checkpointing_files",
        "tensorizer_file",
        "orbax_files",
        "keras_model",
        "keras_weights",
        "h5py_file",
        "numpy_savez",
    ),
    "hardware limit": LIMITS,
}


WAYS: Final = {  # contender → how the target names it
    UNVERIFIED: "`verify=False`:",
    FROZEN: "`frozen=`:",
    MAPPED: "`mmap=True`:",
}


class MarksMissingError(Exception):
    """The file has no place for the table."""


def insert(path: pathlib.Path, run: dict[str, Any], picture: str = "") -> None:
    """Replace what stands between the marks: a picture, if there is one, and the table.

    Raises:
        MarksMissingError: there is no such file, or it has not both marks once and in order.
    """
    whole = path.read_text("utf-8") if path.exists() else ""
    head, begin, rest = whole.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise MarksMissingError(f"{path.name} must have {BEGIN} and {END}, once each")
    shown = f"![Times as multiples of the hardware's]({picture})\n\n" if picture else ""
    path.write_text(f"{head}{BEGIN}\n{shown}{markdown(run)}{END}{tail}", "utf-8")


def markdown(run: dict[str, Any]) -> str:
    """Return the table and what it depends on."""
    judged = verdicts(run)
    rows = [["", *COLUMNS, "target"], ["-"] * (len(COLUMNS) + 2)]
    for workload in run["workloads"]:
        rows.append([f"**{title(run, workload)}**", *[""] * (len(COLUMNS) + 1)])
        for measure in (m for m in MEASURES if m.workload == workload):
            found = cells(run, measure)
            if found:
                rows.append(_row(measure, found, [v for v in judged if v.measure is measure]))
    met = sum(verdict.met for verdict in judged)
    notes = [
        f"Median of {run['rounds']} rounds; in brackets the multiples of safetensors' time and"
        " of the hardware limit's.",
        "ckptfmt digests every byte it saves and verifies every byte it loads; safetensors does"
        " neither. Loads from a warm page cache, unless said to be cold.",
        *(f"{name.capitalize()}: {words}." for name, words in machine_lines(run)),
    ]
    written = second_bytes(run).get(OURS)
    if written is not None:
        notes.append(
            f"The second save wrote {written:.3f} times the bytes that had changed"
            " (the others write all again)."
        )
    notes.append(
        f"{met} of {len(judged)} targets met. Made by `{command(run)}`;"
        " how to read it, and what it does not show: [docs/benchmarks.md](docs/benchmarks.md)."
    )
    table = "\n".join(_line(row) for row in rows)
    return table + "\n\n" + "".join(f"- {note}\n" for note in notes)


def command(run: dict[str, Any]) -> str:
    """Return what makes such a table; the choices are named where something was left out."""
    choices = [
        f"--{option} {','.join(chosen)}"
        for option, chosen, every in (
            ("workloads", run["workloads"], WORKLOADS),
            ("only", run["contenders"], CONTENDERS),
        )
        if set(chosen) < set(every)
    ]
    words = " ".join(["--readme", *choices])
    return f"make bench ARGS='{words}'" if choices else f"make bench ARGS={words}"


def _row(measure: Measure, found: Sequence[Cell], judged: Sequence[Verdict]) -> list[str]:
    row = [measure.title]
    for heading, names in COLUMNS.items():
        own = [cell for cell in found if cell.contender in names]
        best = min(own, key=lambda cell: cell.median, default=None)
        name = f"{best.name}: " if best and heading == OTHERS else ""
        row.append(name + _cell(best, measure) if best else "–")
    return [*row, "<br>".join(_verdict(verdict) for verdict in judged)]


def _verdict(verdict: Verdict) -> str:
    who = WAYS.get(verdict.target.contender, "")
    return f"{who} {verdict.text}".strip()


def _cell(cell: Cell, measure: Measure) -> str:
    value = number(cell.median, measure)
    if measure.is_memory or cell.contender in LIMITS:
        return value
    peer = None if cell.contender == PEER else cell.to_peer
    ratios = [f"{ratio:.2f}x" if ratio else "–" for ratio in (peer, cell.to_limit)]
    return f"{value} ({', '.join(ratios)})"


def _line(row: Iterable[str]) -> str:
    return f"| {' | '.join(row)} |"
