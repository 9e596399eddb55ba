"""What a checkpoint is without some of its sections: the manifest of a revision (spec §9.3).

Pure. Every other fact stays, those of a later minor version included.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import Any

from ckptfmt import tree
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.format import tables
from ckptfmt.format.manifest import Manifest, encode_tree, references
from ckptfmt.format.summary import Summary
from ckptfmt.leaves import PROBE, ArrayRef


def without(
    manifest: Manifest, drop: Collection[str], *, revision: int, save: str, time: int
) -> Manifest:
    """Return the manifest of the next revision, which lacks some sections.

    When all of them were dropped before, this is the manifest itself.

    Args:
        drop: Names of root keys that hold containers.
        revision: Its number.
        save: The save id that makes it.
        time: Now, in microseconds since the Unix epoch.

    Raises:
        NotFoundError: there never was such a section.
        UsageError: nothing would be left.
        FormatError: the manifest breaks a rule of spec §6.4.
    """
    structure, probe = manifest.structures()
    drop = _checked(manifest.summary, structure, drop)
    if not drop:
        return manifest
    kept = {key: node for key, node in structure.items() if key not in drop}
    paths: dict[int, list[str]] = {}  # old row → the paths that stay, the first reference first
    for path, row in itertools.chain(references(kept, None), references(probe, PROBE)):
        paths.setdefault(row, []).append(path)
    rows = {old: new for new, old in enumerate(paths)}
    summary = manifest.summary
    return dataclasses.replace(
        manifest,
        summary=dataclasses.replace(
            summary,
            revision=revision,
            save=save,
            sections=tuple(s for s in summary.sections if s.name not in drop),
            dropped=(*summary.dropped, *drop),
            dropped_at={**summary.dropped_at, **dict.fromkeys(drop, time)},
        ),
        tree=encode_tree(_renumbered(kept, rows)),
        probe=None if probe is None else encode_tree(_renumbered(probe, rows)),
        tables=_tables(manifest.tables, paths),
    )


def _checked(summary: Summary, structure: Any, drop: Collection[str]) -> list[str]:
    """Return what there is to drop, in order of the tree."""
    there = [s.name for s in summary.sections if s.name in structure]
    for name in drop:
        if name not in there and name not in summary.dropped:
            raise NotFoundError(
                "no such section", section=name, checkpoint=summary.number, present=there
            )
    found = [name for name in there if name in drop]
    if len(found) == len(structure):
        raise UsageError(
            "nothing would be left of the checkpoint: delete it instead",
            checkpoint=summary.number,
            drop=found,
        )
    return found


def _renumbered(structure: Any, rows: dict[int, int]) -> Any:
    return tree.unflatten(structure, lambda _, row: ArrayRef(rows[row]))


def _tables(old: tables.Tables, paths: dict[int, list[str]]) -> tables.Tables:
    """Return the rows that stay, and the files in which a chunk of them lies."""
    files: dict[int, int] = {}
    arrays = []
    for row, (first, *aliases) in paths.items():
        chunks = [
            chunk._replace(file=files.setdefault(chunk.file, len(files)))
            for chunk in old.chunks(row)
        ]
        arrays.append((old.array(row)._replace(path=first), aliases, chunks))
    return tables.build(arrays, files=[old.files[n] for n in files], algorithm=old.digest)
