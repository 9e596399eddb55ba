"""What a store knows of a run, for pictures: checkpoints, deleted ones, sizes, progress."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ckptfmt import Checkpoint, Store
from ckptfmt.cli import address
from ckptfmt.cli.bars import Bar
from ckptfmt.cli.screen import Screen
from ckptfmt.errors import FormatError, NotFoundError
from ckptfmt.training import Point, Progress
from ckptfmt.training.curves import Node, Run


def read(url: str, lineage: str | None, screen: Screen) -> Run:
    """Return a run; no array is read.

    Args:
        lineage: As in `Store.history`.

    Raises:
        NotFoundError: there is no store, or no checkpoint in it.
        FormatError: and its kinds, when the manifest of the newest one is damaged or too new.
    """
    store = address.open_store(url)
    points = store.history(lineage=lineage)
    newest = store.latest().id if lineage == "all" else points[-1].id
    wanted = {point.id for point in points}
    stored = {found.id: found for found in store if found.id in wanted}
    parents = _parents(points, stored.values())
    with screen.bar(unit="checkpoints") as bar:
        nodes = [
            _node(point, stored.get(point.id), parents.get(point.id), screen)
            for point in _counted(points, bar)
        ]
    return Run(
        name=store.url,
        nodes=tuple(sorted(nodes, key=lambda node: node.point.number)),
        newest=newest,
        progress=_progress(store, stored.get(newest), screen),
    )


def _counted(points: list[Point], bar: Bar) -> Iterable[Point]:
    for n, point in enumerate(points):
        bar("reading manifests", n, len(points))
        yield point


def _parents(points: list[Point], stored: Iterable[Checkpoint]) -> dict[str, str]:
    """Return what each checkpoint continues: a history tells it of deleted ones too."""
    found: dict[str, str] = {}
    known: set[str] = set()
    for checkpoint in sorted(stored, key=lambda one: one.number, reverse=True):
        if checkpoint.id not in known:
            ids = [*(row.id for row in checkpoint.history), checkpoint.id]
            known.update(ids)
            found |= {child: above for above, child in itertools.pairwise(ids)}
    return found


def _node(
    point: Point, checkpoint: Checkpoint | None, parent: str | None, screen: Screen
) -> Node:
    if checkpoint is None:
        return Node(point=point, parent=parent)
    new = reused = None
    try:
        new, reused = checkpoint.new_bytes, checkpoint.reused_bytes
    except FormatError as error:
        screen.warn(f"checkpoint {checkpoint.number} is damaged: {error.message}")
    except NotFoundError:
        screen.warn(f"checkpoint {checkpoint.number} was deleted meanwhile")
    return Node(
        point=point,
        parent=parent,
        dropped=checkpoint.dropped,
        new_nbytes=new,
        reused_nbytes=reused,
    )


def _progress(store: Store, newest: Checkpoint | None, screen: Screen) -> Progress | None:
    if newest is None:
        return None
    try:
        return Progress.restore(newest.counters)
    except NotFoundError:
        return None
    except FormatError as error:
        screen.warn(f"progress of checkpoint {newest.number} is left out: {error.message}")
        return None
