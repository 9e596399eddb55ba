"""What a checkpoint continues, and what its summary says of its tree. Pure."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ckptfmt._engine.plan import section_of
from ckptfmt.format.manifest import Ancestor, Manifest
from ckptfmt.format.records import overlaid
from ckptfmt.format.summary import Section
from ckptfmt.leaves import PROBE
from ckptfmt.tree import Structure

NOTHING: Final[Mapping[str, Mapping[str, Any]]] = types.MappingProxyType({})


class Lineage(NamedTuple):
    """What a checkpoint continues."""

    parent: tuple[int, str] | None = None  # (number, id)
    history: Sequence[Ancestor] = ()  # its ancestors, the parent last
    digest: str | None = None  # algorithm to inherit

    @classmethod
    def after(cls, parent: Manifest | None) -> Lineage:
        """Return the lineage of a child of `parent`; None begins a new one."""
        if parent is None or parent.summary.id is None:
            return cls()
        return cls(
            (parent.summary.number, parent.summary.id),
            [*parent.history, ancestor(parent)],
            parent.tables.digest.name,
        )

    def told(self, attached: Mapping[str, Mapping[str, Any]] = NOTHING) -> list[Ancestor]:
        """Return the history with the metrics in force: those that came late included."""
        return [with_late(row, attached.get(row.id, {})) for row in self.history]


def with_late(row: Ancestor, attached: Mapping[str, Any]) -> Ancestor:
    """Return the row of a checkpoint with what was attached to it later."""
    if not attached:
        return row
    return row._replace(metrics=overlaid("metrics.", row.metrics, attached))


def sections(structure: Structure, arrays: Iterable[tuple[str, int]]) -> tuple[Section, ...]:
    """Return name, bytes and arrays of each top-level key; all ranks are one row, the probe
    is the last.

    Args:
        arrays: Path and bytes of each array.
    """
    rows: dict[str, list[int]] = {}
    probe = [0, 0]
    for name, value in structure.items():
        rows.setdefault(str(name) if isinstance(value, dict | list | tuple) else "", [0, 0])
    inside, row = None, probe  # what the last path began with, up to its first "/"
    for path, nbytes in arrays:
        if not (inside and path.startswith(inside)):
            inside = path[: path.find("/") + 1]
            # The probe is no section of the state (spec §6.3.4).
            row = probe if inside == PROBE + "/" else rows[section_of(path)]
        row[0] += nbytes
        row[1] += 1
    named = [*rows.items(), *([(PROBE, probe)] if probe[1] else [])]
    return tuple(Section(name=n, nbytes=b, arrays=a) for n, (b, a) in named)


def ancestor(manifest: Manifest) -> Ancestor:
    """Return the history row of a checkpoint."""
    summary = manifest.summary
    seen = summary.counters.get("seen")
    return Ancestor(
        summary.number,
        summary.id or "",
        seen if type(seen) is int else None,
        summary.time,
        dict(summary.metrics),
        summary.writer.get("process"),
    )
