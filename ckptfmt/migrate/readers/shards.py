"""Weights cut into several files with an index, as Hugging Face writes them.

The index is JSON: `{"metadata": …, "weight_map": {name: file}}`. The files are read by
whichever reader knows them, safetensors or PyTorch.
"""

from __future__ import annotations

import json
from typing import Any

from ckptfmt.errors import FormatError
from ckptfmt.migrate import registry, texts
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.source import Contents, Note

SUFFIX = ".index.json"
MAX_TEXT = 1000
_WITHOUT = frozenset({"shards", "folder", "archive"})


def read(place: Place) -> Contents | None:
    """Return the whole set that a named index or part belongs to, or None."""
    if place.name is None:
        return None
    if place.name.endswith(".json"):
        return of_index(place.folder, place.name)
    for name in place.folder.names():
        # Another index may be damaged: only one that mentions this file is looked into.
        if name.endswith(SUFFIX) and _mentions(place.folder, name, place.name):
            found = texts.parse(place.folder.span(name))
            if _is_index(found) and place.name in found["weight_map"].values():
                return of_index(place.folder, name)
    return None


def of_index(folder: Names, name: str) -> Contents | None:
    """Return the set of an index, or None when this JSON is no index.

    Raises:
        FormatError: an array is missing, or stands in another part than the index says.
    """
    index = texts.parse(folder.span(name))
    if not _is_index(index):
        return None
    weight_map: dict[str, Any] = index["weight_map"]
    root: dict[str, Any] = {}
    files = [name]
    notes: list[Note] = []
    if index.get("metadata"):
        text = json.dumps(index["metadata"])[:MAX_TEXT]
        notes.append(Note(path=name, text=f"metadata of the index: {text}"))
    inner: Contents | None = None
    for file in dict.fromkeys(weight_map.values()):
        folder.inside(file, said_by=name)
        inner = registry.find(Place(folder, file), without=_WITHOUT)
        if inner is None or not isinstance(inner.root, dict):
            raise FormatError("a part of sharded weights holds no names", file=file)
        for key, value in inner.root.items():
            if weight_map.get(key) != file:
                raise FormatError(
                    "an array stands in another part than the index says",
                    file=file,
                    path=key,
                    expected=weight_map.get(key),
                )
            root[key] = value
        files.append(file)
        notes += [
            Note(path=f"{file}/{n.path}" if n.path else file, text=n.text) for n in inner.notes
        ]
    if missing := [key for key in weight_map if key not in root]:
        raise FormatError(
            "arrays of the index are in no part",
            file=name,
            count=len(missing),
            first=missing[0],
        )
    return Contents(
        format=f"{inner.format if inner else 'empty'}-sharded",
        root={key: root[key] for key in weight_map},
        files=tuple(files),
        producer=inner.producer if inner else None,
        notes=tuple(notes),
    )


def _mentions(folder: Names, index: str, name: str) -> bool:
    data = bytes(folder.span(index).data)
    return any(json.dumps(name, ensure_ascii=a)[1:-1].encode() in data for a in (True, False))


def _is_index(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("weight_map"), dict)
