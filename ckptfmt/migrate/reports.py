"""What a migration says of itself: every item of the source and where it went."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Names
from ckptfmt.migrate.layout import Layout
from ckptfmt.migrate.source import Contents, Lazy, Name, Note, Record, dotted, walk
from ckptfmt.migrate.storing import is_text, stored

ARTIFACT: Final = "migration.json"
MAX_ARTIFACT_NBYTES: Final = 4 * 2**20  # a longer report goes without its items
_BLOCK: Final = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One leaf of the source."""

    path: str  # in the source
    kind: str  # array, value, record, name, or empty for a container without content
    target: str | None  # path in the store; under counters or a metadata field; None: left out
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that was read."""

    name: str  # relative to the source's folder
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was in a source and where it goes."""

    format: str
    producer: str | None
    files: tuple[SourceFile, ...]
    items: tuple[Item, ...]
    notes: tuple[Note, ...]

    @property
    def identity(self) -> str:
        """A digest of the files' names and digests: the same source, the same text."""
        lines = "".join(f"{file.sha256} {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()

    def document(self, *, items: bool = True) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        rows = [_row(item) for item in self.items] if items else []
        return {
            "format": self.format,
            "producer": self.producer,
            "files": [
                {"name": f.name, "nbytes": f.nbytes, "sha256": f.sha256} for f in self.files
            ],
            "identity": self.identity,
            "count": len(self.items),
            "items": rows,
            "notes": [{"path": note.path, "text": note.text} for note in self.notes],
        }

    def artifact(self, version: str) -> bytes:
        """Return what is stored with the checkpoint: the whole report if it is not too long."""
        for items in (True, False):
            data = json.dumps({"ckptfmt": version, **self.document(items=items)}).encode()
            if len(data) <= MAX_ARTIFACT_NBYTES:
                break
        return data


def report(contents: Contents, layout: Layout, folder: Names) -> Report:
    """Return the report of a source; reads every file once for its digest."""
    notes = (*contents.notes, *(Note(path="", text=text) for text in layout.notes))
    return Report(
        format=contents.format,
        producer=contents.producer,
        files=tuple(_files(contents.files, folder)),
        items=tuple(_items(contents, layout)),
        notes=notes,
    )


def _files(names: Iterable[str], folder: Names) -> Iterator[SourceFile]:
    for name in names:
        span = folder.span(name)
        digest = hashlib.sha256()
        for at in range(0, span.nbytes, _BLOCK):
            digest.update(span.data[at : at + _BLOCK])
        yield SourceFile(name=name, nbytes=span.nbytes, sha256=digest.hexdigest())


def _items(contents: Contents, layout: Layout) -> Iterator[Item]:
    leaves = list(walk(contents.root))
    _, places = stored(layout, None)
    if len(places) != len(leaves):
        raise FormatError(
            "holds itself in a way that cannot be followed",
            expected=len(leaves),
            found=len(places),
        )
    for (path, leaf), target in zip(leaves, places, strict=True):
        lazy = isinstance(leaf, Lazy)
        note = leaf.note if lazy else None
        if lazy and is_text(leaf.dtype):
            note = "text: stored as a list"
        yield Item(
            path=dotted(path),
            kind=kind_of(leaf),
            target=dotted(target),
            dtype=leaf.dtype.str if lazy else None,
            shape=leaf.shape if lazy else None,
            note=note,
        )


def kind_of(leaf: Any) -> str:
    """Return what sort of leaf this is."""
    match leaf:
        case Lazy(items=[]):
            return "empty"
        case Lazy() | np.generic():
            return "array"
        case Record():
            return "record"
        case Name():
            return "name"
        case dict() | list() | tuple():
            return "empty"
        case _:
            return "value"


def _row(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"path": item.path, "kind": item.kind, "target": item.target}
    if item.dtype is not None:
        row |= {"dtype": item.dtype, "shape": list(item.shape or ())}
    if item.note is not None:
        row["note"] = item.note
    return row
