"""A run as lines over examples: what a picture of it shows. Pure; nothing is drawn here.

Node (a checkpoint, deleted or not) -> Run -> lines, edges, events, extremes
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ckptfmt.errors import UsageError
from ckptfmt.training import selection
from ckptfmt.training.metric import Metric
from ckptfmt.training.progress import Progress
from ckptfmt.training.record import KEY
from ckptfmt.training.segment import Segment
from ckptfmt.training.selection import Number, Point

MAX_EDGES: Final = 1000  # beyond, only every so many-th edge is listed
RESTART: Final = "restart"  # kind of the event of a new process that changes nothing else
MAX_SEEN: Final = 2**63 - 1  # a count beyond was never one of examples

# Words in a metric's name that say which way it improves, as people use them.
_LOWER: Final = frozenset(
    {"loss", "error", "err", "mse", "mae", "rmse", "mape", "perplexity", "ppl", "nll", "wer"}
    | {"cer", "fid", "bpb", "bpc", "crossentropy", "divergence", "kl", "regret"}
)
_HIGHER: Final = frozenset(
    {"acc", "accuracy", "auc", "auroc", "f1", "precision", "recall", "bleu", "rouge", "iou"}
    | {"map", "score", "reward", "r2", "psnr", "ssim", "top1", "top5", "return"}
)

# Fields of a segment and how a change of each is told.
FED: Final[Mapping[str, str]] = {
    "global_batch": "batch",
    "dataset_size": "data set size",
    "dataset": "data set",
    "world": "workers",
    "accumulation": "accumulation",
    "consistency": "consistency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One checkpoint of a run, or what is known of a deleted one."""

    point: Point
    parent: str | None = None  # id of what it continues
    dropped: tuple[str, ...] = ()  # sections that were slimmed away
    new_nbytes: int | None = None  # bytes it wrote; None: deleted
    reused_nbytes: int | None = None  # bytes it shares with earlier ones; None: deleted

    @property
    def state(self) -> str:
        """`stored`, `slimmed` or `deleted`."""
        if not self.point.stored:
            return "deleted"
        return "slimmed" if self.dropped else "stored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a store knows of a run."""

    name: str
    nodes: tuple[Node, ...] = ()
    newest: str | None = None  # id of the node whose past is the main line
    progress: Progress | None = None  # of that node; None: not recorded


class Line(NamedTuple):
    """Checkpoints that continue each other."""

    nodes: tuple[Node, ...]
    main: bool  # what the newest one went through
    forked: bool  # begins with a checkpoint of another line: the one it leaves


class Edge(NamedTuple):
    """The end of a virtual epoch."""

    virtual_epoch: int
    seen: int


class Event(NamedTuple):
    """Something that changed on the way."""

    seen: int
    kind: str  # segment, extension, origin, resume (of an earlier one) or restart
    text: str


class Extreme(NamedTuple):
    """The best value of a metric on the main line."""

    metric: str
    mode: str
    point: Point


def lines(run: Run) -> list[Line]:
    """Return the main line of a run, then its branches, the newest one first.

    A node is in one line, and besides in those that leave it.
    """
    known = {node.point.id: node for node in run.nodes}
    ends = sorted(known.values(), key=lambda node: node.point.number, reverse=True)
    if run.newest in known:
        ends.insert(0, known[run.newest])
    claimed: set[str] = set()
    found: list[Line] = []
    for end in ends:
        if end.point.id in claimed:
            continue
        path = [end]
        claimed.add(end.point.id)
        while (above := known.get(path[-1].parent or "")) is not None:
            path.append(above)
            if above.point.id in claimed:
                break
            claimed.add(above.point.id)
        forked = above is not None
        found.append(Line(tuple(reversed(path)), main=not found, forked=forked))
    return found


def main_line(run: Run) -> tuple[Node, ...]:
    """Return what the newest checkpoint went through, oldest first."""
    found = lines(run)
    return found[0].nodes if found else ()


def place(point: Point) -> int | None:
    """Return the examples a point has seen, or None where that is no count."""
    seen = point.seen
    return seen if seen is not None and 0 <= seen <= MAX_SEEN else None


def edges(progress: Progress | None) -> list[Edge]:
    """Return where virtual epochs end; of very many every so many-th, and the last."""
    if progress is None:
        return []
    n = progress.virtual_epochs
    step = -(-n // MAX_EDGES)
    numbers = [*range(step, n, step), n]
    return [Edge(k, progress.edge(k)) for k in numbers]


def events(run: Run) -> list[Event]:
    """Return what changed on the main line, in order of examples: segments, stop points,
    returns to an earlier checkpoint, restarts of the process, where the weights came from."""
    found: list[Event] = []
    if run.progress is not None:
        found += _declared(run.progress)
    for above, node in itertools.pairwise(main_line(run)):
        seen = place(above.point)
        # Numbers count all commits: one that is missing here belongs to another branch.
        if seen is None:
            continue
        if node.point.number != above.point.number + 1:
            text = f"checkpoint {node.point.number} continues {above.point.number}"
            found.append(Event(seen, "resume", text))
        elif node.point.process == node.point.id:
            text = f"a new process goes on from checkpoint {above.point.number}"
            found.append(Event(seen, RESTART, text))
    return sorted(found, key=lambda event: event.seen)


def _declared(progress: Progress) -> list[Event]:
    found = []
    if progress.parent is not None:
        text = f"begun from checkpoint {progress.parent.id[:8]} at {progress.parent.seen:,}"
        found.append(Event(0, "origin", text))
    for old, new in itertools.pairwise(progress.segments):
        found.append(Event(new.from_seen, "segment", _change(old, new)))
    for seen, before, after in progress.state()[KEY]["extensions"]:
        found.append(Event(seen, "extension", f"stop point {before:,} → {after:,}"))
    return found


def _change(old: Segment, new: Segment) -> str:
    parts = [
        f"{word} {told(getattr(old, name))} → {told(getattr(new, name))}"
        for name, word in FED.items()
        if getattr(old, name) != getattr(new, name)
    ]
    if new.data_replay:
        parts.append("position in the data lost")
    return ", ".join(parts) or "declared again"


def told(value: object) -> str:
    """Return a value of a segment as people read it."""
    if value is None:
        return "?"
    return f"{value:,}" if isinstance(value, int) else str(value)


def metric_names(runs: Iterable[Run]) -> list[str]:
    """Return the names of all metrics that were measured at least once, in order of use."""
    points = (node.point for run in runs for node in run.nodes)
    return list(
        dict.fromkeys(
            name for p in points for name, value in p.metrics.items() if value is not None
        )
    )


def panels(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group metrics that measure the same thing: `loss` and `val_loss` share one axis."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(quantity(name), []).append(name)
    return [tuple(group) for group in found.values()]


def quantity(name: str) -> str:
    """Return what a metric measures, without split and ways to measure."""
    try:
        return Metric.parse(name).name
    except UsageError:  # a name with a meaning of its own
        return name


def mode_of(metric: str) -> str | None:
    """Return which way a metric improves by the words in its name: `min`, `max`, or None.

    None where there is no such word, or words of both kinds: nothing is guessed.
    """
    words = set(re.split(r"[^a-z0-9]+", quantity(metric).lower()))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    if lower == higher:
        return None
    return "min" if lower else "max"


def extremes(run: Run, metrics: Mapping[str, str]) -> list[Extreme]:
    """Return the best point of each metric on the main line, and the best stored one if that
    is another. Metrics without a comparable value are left out.

    Args:
        metrics: Name to mode.
    """
    found = []
    points = [node.point for node in main_line(run)]
    for metric, mode in metrics.items():
        ordered = selection.ranked(points, metric, mode)
        stored = [point for point in ordered if point.stored]
        chosen = dict.fromkeys(one.id for one in (*ordered[:1], *stored[:1]))
        found += [Extreme(metric, mode, p) for p in ordered if p.id in chosen]
    return found


def as_float(value: Number | None) -> float | None:
    """Return a metric as something that can be drawn; None: not measured."""
    if value is None:
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return float("inf") if value > 0 else float("-inf")


def document(run: Run, metrics: Mapping[str, str]) -> dict[str, Any]:
    """Return all of it as plain values."""
    progress = run.progress
    return {
        "store": run.name,
        "newest": run.newest,
        "lines": [
            {"main": line.main, "numbers": [node.point.number for node in line.nodes]}
            for line in lines(run)
        ],
        "checkpoints": [
            {
                "number": node.point.number,
                "id": node.point.id,
                "parent": node.parent,
                "seen": node.point.seen,
                "state": node.state,
                "dropped": list(node.dropped),
                "new_nbytes": node.new_nbytes,
                "reused_nbytes": node.reused_nbytes,
                "metrics": dict(node.point.metrics),
            }
            for node in run.nodes
        ],
        "virtual_epochs": None if progress is None else progress.virtual_epochs,
        "total": None if progress is None else progress.total,
        "edges": [edge._asdict() for edge in edges(progress)],
        "events": [event._asdict() for event in events(run)],
        "best": [
            {
                "metric": found.metric,
                "mode": found.mode,
                "number": found.point.number,
                "id": found.point.id,
                "seen": found.point.seen,
                "value": found.point.metrics[found.metric],
                "stored": found.point.stored,
            }
            for found in extremes(run, metrics)
        ],
    }
