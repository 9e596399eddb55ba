"""Orbax folders: arrays in OCDBT or in Zarr folders, the tree in `_METADATA` or `checkpoint`.

A composite checkpoint has a folder for each item (`state`, `params`, …); name any file of its
own folder, or the folder. Format: https://orbax.readthedocs.io/en/latest/guides/checkpoint/.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import ocdbt, texts, zarr
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.readers import flax
from ckptfmt.migrate.source import MAX_DEPTH, Contents, Lazy, Note

TREE: Final = "_METADATA"
WHOLE: Final = "_CHECKPOINT_METADATA"
OLD: Final = "checkpoint"
PLACEHOLDER: Final = "PLACEHOLDER://"
_MARKS: Final = (TREE, WHOLE, ocdbt.MANIFEST, "_sharding", "orbax.checkpoint", OLD)
_JSON: Final = ("metadata", "data.json", "metadata.json")
_SEQUENCE: Final = 1
_BESIDE: Final = {
    "_sharding": "on which devices arrays were",
    "array_metadatas/process_0": "how arrays were cut when they were written",
}
_ENDS: Final = "/.zarray", "/zarr.json"
FREE_NBYTES: Final = 2**30  # so much of an array may stand in chunks that are not stored
_EMPTY: Final[dict[Any, type]] = {  # kind of value → what makes one
    "None": type(None),
    "Dict": dict,
    "List": list,
    "Tuple": tuple,
    "NamedTuple": tuple,
}


def read(place: Place) -> Contents | None:
    """Return what a folder holds, named itself or by a file of its own, or None."""
    if place.name is not None and place.name not in _MARKS:
        return None
    folder = place.folder
    marked = any(folder.has(name) for name in (TREE, WHOLE, ocdbt.MANIFEST))
    if not marked and not (folder.has(OLD) and _is_placed(folder)):
        return None
    reader = _Reader(folder)
    handlers = reader.handlers()
    if isinstance(handlers, dict):
        root: Any = {}
        for item in sorted(handlers):
            found = reader.item(item)
            if found is not None:
                root[item] = found[0]
            else:
                reader.notes.append(Note(path=item, text="left out: an item of another kind"))
    else:
        root = reader.arrays("")
    if not reader.found:
        return None
    return Contents(
        format="orbax",
        root=root,
        files=tuple(reader.files),
        producer="Orbax",
        notes=tuple(reader.notes),
        roles={"state": "model", "params": "model", "default": "model"},
    )


def _is_placed(folder: Names) -> bool:
    """Tell whether a Flax file is only the tree of arrays that are elsewhere."""
    return PLACEHOLDER.encode() in folder.span(OLD).head(2**20)


class _Reader:
    def __init__(self, folder: Names) -> None:
        self.files: dict[str, None] = {}
        self.notes: list[Note] = []
        self.found = 0  # arrays
        self._folder = folder
        self._get: zarr.Get = lambda key: None
        self._room = FREE_NBYTES

    def handlers(self) -> Any:
        """Return the items that a composite checkpoint lists, or None when it is not one."""
        if self._folder.has(WHOLE):
            found = self._json(WHOLE)
            handlers = found.get("item_handlers") if isinstance(found, dict) else None
            if isinstance(handlers, dict):
                return handlers
        return None

    def item(self, name: str) -> tuple[Any] | None:
        """Return what one item of a composite checkpoint holds, or None."""
        prefix = f"{name}/"
        if any(self._folder.has(f"{prefix}{file}") for file in (TREE, ocdbt.MANIFEST)):
            return (self.arrays(prefix),)
        for file in _JSON:
            if self._folder.has(f"{prefix}{file}"):
                return (self._json(f"{prefix}{file}"),)
        return None

    def arrays(self, prefix: str) -> Any:
        """Return the tree of one folder."""
        names: list[str] = []
        if self._folder.has(f"{prefix}{ocdbt.MANIFEST}"):
            database = ocdbt.Database(self._folder, prefix)
            self._get, self._room = database.get, max(FREE_NBYTES, 64 * database.nbytes)
            self.files |= database.files
            names = [key.removesuffix(end) for key in database.names() for end in _ENDS
                     if key.endswith(end)]  # fmt: skip
        else:
            self._get = functools.partial(self._file, prefix)
        described = self._tree(prefix)
        if described is None and not names and self._folder.has(f"{prefix}{OLD}"):
            return self._placed(f"{prefix}{OLD}")
        root = self._nested(described or [], prefix)
        known = {name for name, _, _ in described or ()}
        for name in names:
            if name not in known:  # without a description, by the flat name
                if name in root:
                    raise FormatError("two values at one path", file=prefix, found=name)
                root[name] = self._array(name)
        for beside, text in _BESIDE.items():
            if self._folder.has(f"{prefix}{beside}"):
                self.notes.append(Note(path=f"{prefix}{beside}", text=f"left out: {text}"))
        return _listed(root)

    def _placed(self, name: str) -> Any:
        """Return the tree of a Flax file whose arrays are elsewhere: text says where."""
        self.files[name] = None

        def placed(node: Any) -> Any:
            if isinstance(node, dict):
                return {key: placed(child) for key, child in node.items()}
            if isinstance(node, str) and node.startswith(PLACEHOLDER):
                return self._array(node.removeprefix(PLACEHOLDER))
            return [placed(child) for child in node] if isinstance(node, list) else node

        return placed(flax.parse(self._folder.inside(name, said_by=name)))

    def _file(self, prefix: str, key: str) -> memoryview | None:
        name = f"{prefix}{key}"
        if not self._folder.has(name):
            return None
        self.files[name] = None
        return self._folder.inside(name, said_by=f"{prefix}{TREE}").data

    def _json(self, name: str) -> Any:
        self.files[name] = None
        return texts.parse(self._folder.inside(name, said_by=name))

    def _array(self, name: str) -> Lazy:
        found = zarr.array(name, self._get, self._room)
        if found is None:
            raise FormatError("an array of the tree is not there", path=name)
        self.found += 1
        return found

    def _tree(self, prefix: str) -> list[tuple[str, tuple[Any, ...], Any]] | None:
        """Return (flat name, path, kind of value) of each leaf, or None without a tree."""
        if not self._folder.has(f"{prefix}{TREE}"):
            return None
        found = self._json(f"{prefix}{TREE}")
        rows = found.get("tree_metadata") if isinstance(found, dict) else None
        if not isinstance(rows, dict):
            raise FormatError("malformed tree", file=f"{prefix}{TREE}")
        return [_leaf(row, f"{prefix}{TREE}") for row in rows.values()]

    def _nested(
        self, rows: list[tuple[str, tuple[Any, ...], Any]], prefix: str
    ) -> dict[Any, Any]:
        root: dict[Any, Any] = {}
        for name, path, kind in rows:
            if kind in _EMPTY:
                value: Any = _EMPTY[kind]()  # one of its own: leaves below go in there
            else:
                value = zarr.array(name, self._get, self._room)
                self.found += value is not None
                if value is None and kind in ("string", "str"):
                    text = "left out: text, which Orbax keeps in a file of its own"
                    self.notes.append(Note(path=name, text=text))
                    continue
            if value is None and kind != "None":
                raise FormatError("an array of the tree is not there", path=name, kind=kind)
            *above, last = path
            node = root
            for key in above:
                node = node.setdefault(key, {})
                if not isinstance(node, dict):
                    raise FormatError("a path through a value", file=prefix, found=name)
            if last in node:
                raise FormatError("two values at one path", file=prefix, found=name)
            node[last] = value
        return root


def _leaf(row: Any, file: str) -> tuple[str, tuple[Any, ...], Any]:
    """Return a leaf of `tree_metadata`: flat name, path, kind of value."""
    match row:
        case {"key_metadata": list(keys), "value_metadata": dict(value)} if (
            0 < len(keys) <= MAX_DEPTH
        ):
            path = tuple(_key(key, file) for key in keys)
            return ".".join(map(str, path)), path, value.get("value_type")
    raise FormatError("malformed leaf of a tree", file=file)


def _key(key: Any, file: str) -> str | int:
    match key:
        case {"key": str(text), "key_type": int(kind)}:
            is_number = (
                kind == _SEQUENCE and text.isascii() and text.isdigit() and len(text) < 19
            )
            return int(text) if is_number else text
    raise FormatError("malformed key of a tree", file=file)


def _listed(node: Any) -> Any:
    """Return a tree with a list where keys count from zero."""
    if not isinstance(node, dict):
        return node
    found = {key: _listed(child) for key, child in node.items()}
    if found and set(found) == set(range(len(found))):
        return [found[n] for n in range(len(found))]
    return found
