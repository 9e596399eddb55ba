"""How a run got to where it is, in sentences."""

from __future__ import annotations

import dataclasses
from typing import Final

from ckptfmt.training.progress import Progress
from ckptfmt.training.segment import ASYNC, Segment

_WORDS: Final = {
    "global_batch": "batches of {:,}",
    "dataset_size": "{:,} examples in the data set",
    "dataset": "data set {!r}",
    "world": "{:,} workers",
    "accumulation": "{:,} batches to an update",
}


def story(progress: Progress) -> list[str]:
    """Return what happened to a run, in the order of examples: one sentence each.

    Where it came from, how it was fed from which example on, where its stop point moved, and
    where it is. For people; the same is in `state` for programs.
    """
    told: list[tuple[int, str]] = []
    before: Segment | None = None
    for segment in progress.segments:
        told.append((segment.from_seen, _fed(segment, before)))
        before = segment
    for seen, old, new in progress.extensions:
        told.append((seen, f"stop point moved from {old:,} to {new:,} examples"))
    told.sort(key=lambda row: row[0])  # stable: what was declared first comes first
    lines = [f"at {seen:,}: {text}" for seen, text in told]
    if progress.parent is not None:
        parent = progress.parent
        lines.insert(0, f"fine-tuned from {parent.id}, which had seen {parent.seen:,} examples")
    passes = "" if progress.passes is None else f", {float(progress.passes):.2f} passes"
    lines.append(
        f"now at {progress.seen:,} of {progress.total:,} examples, virtual epoch"
        f" {float(progress.position):.2f} of {progress.virtual_epochs}{passes}"
    )
    if progress.applied != progress.seen:
        lines.append(f"{progress.applied:,} of them went into updates of the weights")
    return lines


def _fed(segment: Segment, before: Segment | None) -> str:
    parts = []
    for field in dataclasses.fields(Segment):
        value = getattr(segment, field.name)
        had = field.default if before is None else getattr(before, field.name)
        if field.name in _WORDS and value != had:
            parts.append(_WORDS[field.name].format(value))
    if segment.consistency == ASYNC and (before is None or before.consistency != ASYNC):
        parts.append("workers push on their own")
    if segment.data_replay:
        parts.append("the position in the data was lost, examples may have come twice")
    return ", ".join(parts) or "the run begins"
