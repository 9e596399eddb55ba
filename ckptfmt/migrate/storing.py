"""A source's tree → a state tree that can be stored: every value has its place, none is lost.

What a state tree cannot hold as it is becomes plain data that says what it was:

    Record            {"__class__": name, "__args__": […], …}; a lone dict state is merged in
    Name              its text
    dict, odd keys    {"__pairs__": [[key, value], …]}
    repeated parent   {"__ref__": path of it in the store, empty for the whole source}
    str, no Unicode   {"__bytes__": UTF-8 with surrogates}
    array of text     a list; of objects, the list of them
    array of others   {"__class__": "numpy.ndarray", "dtype": …, "shape": …, "bytes": raw bytes}
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from ckptfmt import dtypes
from ckptfmt.errors import FormatError, StateError
from ckptfmt.leaves import MAX_DEPTH, is_unicode
from ckptfmt.migrate.layout import Layout, put
from ckptfmt.migrate.source import (
    CONTAINERS,
    MAX_NODES,
    Array,
    Key,
    Lazy,
    Name,
    Path,
    Record,
    Settable,
    children,
    dotted,
)

CLASS: Final = "__class__"
_FIELDS: Final = frozenset({CLASS, "__args__", "__state__", "__items__", "__dict__"})
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, bytes})


def stored(
    layout: Layout, array_of: Callable[[Lazy], Array] | None
) -> tuple[Layout, list[Path]]:
    """Return what is stored of a layout, and the place of each leaf, in the order of `walk`.

    Args:
        array_of: As for `Storing`.

    Raises:
        FormatError: as in `Storing.value`.
    """
    found = Layout()
    places: list[Path] = []
    for move in layout.moves:
        storing = Storing(array_of, around=move.around)
        put(found, move.target, storing.value(layout.part(move.target), move.target))
        places += storing.places if move.source is not None else []
    return found, places


class Storing:
    """One conversion.

    Args:
        array_of: Returns the memory of an array, the same for the same `Lazy`; None where only
            the places are asked for.
        around: Containers that the value lies in.
    """

    def __init__(
        self, array_of: Callable[[Lazy], Array] | None = None, *, around: Iterable[Any] = ()
    ) -> None:
        self.places: list[Path] = []  # of each leaf so far, as `walk` counts leaves
        self._array_of = array_of
        self._inside: dict[int, Path] = {id(node): () for node in around}
        self._nodes = 0

    def value(self, node: Any, path: Path = ()) -> Any:
        """Return what is stored at a path of the store for a node.

        Raises:
            FormatError: nested deeper than a state tree can be, or it unfolds without end.
        """
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise FormatError("unfolds to too many values", path=dotted(path))
        if isinstance(node, Lazy) and node.items is None:
            return self._array(node, path)
        if isinstance(node, (*CONTAINERS, Lazy)):
            return self._container(node, path)
        return self._leaf(node, path)

    def _container(self, node: Any, path: Path) -> Any:
        if id(node) in self._inside:
            self.places.append(path)
            return {"__ref__": dotted(self._inside[id(node)])}
        if len(self._inside) >= MAX_DEPTH - 4:  # below a section, and inside what is added here
            raise FormatError(
                f"nested more than {MAX_DEPTH - 4} levels deep: a state tree cannot hold it",
                path=dotted(path)[:1000],
            )
        if not children(node):
            self.places.append(path)
        self._inside[id(node)] = path
        try:
            if isinstance(node, Record):
                return self._record(node, path)
            if isinstance(node, Lazy):
                shape = list(node.shape)
                items = self._list(node.items or [], (*path, "__items__"))
                return {CLASS: "numpy.ndarray", "shape": shape, "__items__": items}
            if isinstance(node, dict):
                return self._dict(node, path)
            items = self._list(node, path)
            return items if isinstance(node, list) else tuple(items)
        finally:
            del self._inside[id(node)]

    def _list(self, items: Iterable[Any], path: Path) -> list[Any]:
        return [self.value(item, (*path, n)) for n, item in enumerate(items)]

    def _dict(self, node: dict[Any, Any], path: Path) -> Any:
        if _is_plain(node):
            return {key: self.value(child, (*path, key)) for key, child in node.items()}
        pairs = []
        for n, (key, child) in enumerate(node.items()):
            at = (*path, "__pairs__", n)
            pairs.append([self._key(key, (*at, 0)), self.value(child, (*at, 1))])
        return {"__pairs__": pairs}

    def _key(self, key: Any, path: Path) -> Any:
        """Return a key as a value; it is no leaf of the source."""
        known = len(self.places)
        found = self.value(key.value if isinstance(key, Key) else key, path)
        del self.places[known:]
        return found

    def _record(self, node: Record, path: Path) -> Any:
        parts = children(node)
        if len(parts) == 1:
            only = parts[0][1]
            is_new = isinstance(only, dict) and id(only) not in self._inside
            if is_new and _is_plain(only) and not _FIELDS & only.keys():
                return {CLASS: node.cls, **self.value(only, path)}
        kept = {name: self.value(part, (*path, name)) for name, part in parts}
        if isinstance(kept.get("__args__"), tuple):
            kept["__args__"] = list(kept["__args__"])
        return {CLASS: node.cls, **kept}

    def _array(self, node: Lazy, path: Path) -> Any:
        if _is_portable(node.dtype):
            self.places.append(path)
            return None if self._array_of is None else self._array_of(node)
        if is_text(node.dtype):
            self.places.append(path)
            return self._leaf_list(None if self._array_of is None else node.load().tolist())
        array = None if self._array_of is None else self._array_of(node)
        return self._odd(node.dtype, node.shape, array, path)

    def _odd(
        self, dtype: np.dtype[Any], shape: Iterable[int], array: Array | None, path: Path
    ) -> Any:
        """Keep what has no portable dtype: its bytes, with the name of the dtype."""
        self.places.append((*path, "bytes"))
        if dtype.hasobject:
            raise FormatError("an array of references", path=dotted(path), found=dtype)
        return {
            CLASS: "numpy.ndarray",
            "dtype": str(dtype.descr if dtype.names else dtype.str),
            "shape": list(shape),
            "bytes": None if array is None else _bytes(array),
        }

    def _leaf_list(self, node: Any) -> Any:
        return [self._leaf_list(n) for n in node] if isinstance(node, list) else _plain(node)

    def _leaf(self, node: Any, path: Path) -> Any:
        if isinstance(node, np.generic) and not isinstance(node, np.str_ | np.bytes_):
            if not _is_portable(node.dtype):
                return self._odd(node.dtype, (), np.asarray(node), path)
            self.places.append(path)
            return node
        self.places.append(path)
        return self._key(node, path) if isinstance(node, Key) else _plain(node)


def is_text(dtype: np.dtype[Any]) -> bool:
    """Tell whether arrays of a dtype are stored as lists of text or bytes."""
    return dtype.kind in "US"


def _is_portable(dtype: np.dtype[Any]) -> bool:
    try:
        dtypes.by_numpy(dtype)
    except StateError:
        return False
    return True


def _is_plain(node: dict[Any, Any]) -> bool:
    """Tell whether a state tree can hold a dict with its keys as they are."""
    return all(
        (type(key) is str and is_unicode(key)) or (type(key) is int and -(2**63) <= key < 2**64)
        for key in node
    ) and len(set(map(str, node))) == len(node)


def _bytes(array: Array) -> Array:
    """Return the bytes of an array, in C order; a view where they stand so."""
    if not array.nbytes:
        return np.empty(0, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _plain(node: Any) -> Any:
    if isinstance(node, np.str_ | np.bytes_):
        node = node.item()
    if type(node) is str:
        return node if is_unicode(node) else {"__bytes__": node.encode(errors="surrogatepass")}
    if type(node) in _PLAIN or type(node) is datetime.datetime:
        return node
    if isinstance(node, Name | Settable):
        return str(node)
    if type(node) is bytearray:
        return bytes(node)
    raise FormatError("a reader gave a value of an unexpected kind", found=type(node).__name__)
