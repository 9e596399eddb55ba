"""A source's tree → a state tree that can be stored: every value has its place, none is lost.

What a state tree cannot hold as it is becomes plain data that says what it was:

    Record            {"__class__": name, "__args__": […], …}; a lone dict state is merged in
    Name              its text
    dict, odd keys    {"__pairs__": [[key, value], …]}
    repeated parent   {"__ref__": path of it}
    str, no Unicode   {"__bytes__": UTF-8 with surrogates}
    array of text     a list; of objects, the list of them; of other types, its raw bytes
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ckptfmt import dtypes
from ckptfmt.errors import FormatError, StateError
from ckptfmt.leaves import MAX_DEPTH, is_unicode
from ckptfmt.migrate.source import (
    MAX_NODES,
    Array,
    Key,
    Lazy,
    Name,
    Path,
    Record,
    Settable,
    dotted,
)

CLASS: Final = "__class__"
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, bytes})


class Storing:
    """One conversion.

    Args:
        array_of: Returns the memory of an array; called once for each `Lazy`.
    """

    def __init__(self, array_of: Callable[[Lazy], Array]) -> None:
        self._array_of = array_of
        self._arrays: dict[int, Any] = {}  # by id: what was tied stays tied
        self._inside: dict[int, Path] = {}
        self._nodes = 0

    def value(self, node: Any, path: Path = ()) -> Any:
        """Return what is stored for a node.

        Raises:
            FormatError: nested deeper than a state tree can be, or it unfolds without end.
        """
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise FormatError("unfolds to too many values", path=dotted(path))
        if isinstance(node, Lazy):
            if id(node) not in self._arrays:
                self._arrays[id(node)] = self._array(node, path)
            return self._arrays[id(node)]
        if isinstance(node, dict | list | tuple | Record):
            return self._container(node, path)
        return self._leaf(node)

    def _container(self, node: Any, path: Path) -> Any:
        if id(node) in self._inside:
            return {"__ref__": dotted(self._inside[id(node)])}
        if len(self._inside) >= MAX_DEPTH - 4:  # below a section, and inside what is added here
            raise FormatError(
                f"nested more than {MAX_DEPTH - 4} levels deep: a state tree cannot hold it",
                path=dotted(path)[:1000],
            )
        self._inside[id(node)] = path
        try:
            if isinstance(node, Record):
                return self._record(node, path)
            if isinstance(node, dict):
                return self._dict(node, path)
            items = [self.value(item, (*path, n)) for n, item in enumerate(node)]
            return items if isinstance(node, list) else tuple(items)
        finally:
            del self._inside[id(node)]

    def _dict(self, node: dict[Any, Any], path: Path) -> Any:
        keys = list(node)
        plain = all(
            (type(key) is str and is_unicode(key))
            or (type(key) is int and -(2**63) <= key < 2**64)
            for key in keys
        )
        if plain and len(set(map(str, keys))) == len(keys):
            return {key: self.value(child, (*path, key)) for key, child in node.items()}
        pairs = [
            [
                self.value(key.value if isinstance(key, Key) else key, (*path, n, 0)),
                self.value(child, (*path, n, 1)),
            ]
            for n, (key, child) in enumerate(node.items())
        ]
        return {"__pairs__": pairs}

    def _record(self, node: Record, path: Path) -> Any:
        fields = [
            ("__args__", list(node.args)),
            ("__state__", node.state),
            ("__items__", node.items),
            ("__dict__", node.entries),
        ]
        kept = {name: value for name, value in fields if value is not None and value != []}
        kept = {
            name: value for name, value in kept.items() if value != {} or name != "__dict__"
        }
        if len(kept) == 1:
            (only,) = kept.values()
            inner = self.value(only, (*path, *kept)) if isinstance(only, dict) else None
            if isinstance(inner, dict) and CLASS not in inner and "__pairs__" not in inner:
                return {CLASS: node.cls, **inner}
        return {CLASS: node.cls, **{n: self.value(v, (*path, n)) for n, v in kept.items()}}

    def _array(self, node: Lazy, path: Path) -> Any:
        if node.items is not None:
            items = [self.value(item, (*path, n)) for n, item in enumerate(node.items)]
            return {CLASS: "numpy.ndarray", "shape": list(node.shape), "__items__": items}
        try:
            dtypes.by_numpy(node.dtype)
        except StateError:
            return self._odd_array(node)
        return self._array_of(node)

    def _odd_array(self, node: Lazy) -> Any:
        """Keep what has no portable dtype: text as a list, the rest as bytes with its name."""
        if node.dtype.kind in "US" and not node.dtype.hasobject:
            return self._leaf_list(node.load().tolist())
        raw = Lazy.of(np.frombuffer(node.load().tobytes(), np.uint8))
        descr = str(node.dtype.descr if node.dtype.names else node.dtype.str)
        return {
            CLASS: "numpy.ndarray",
            "dtype": descr,
            "shape": list(node.shape),
            "bytes": self._array_of(raw),
        }

    def _leaf_list(self, node: Any) -> Any:
        return (
            [self._leaf_list(n) for n in node] if isinstance(node, list) else self._leaf(node)
        )

    def _leaf(self, node: Any) -> Any:
        if type(node) is str:
            return (
                node if is_unicode(node) else {"__bytes__": node.encode(errors="surrogatepass")}
            )
        if type(node) in _PLAIN:
            return node
        if isinstance(node, np.generic):
            try:
                dtypes.by_numpy(node.dtype)
            except StateError:
                return self._odd_array(Lazy.of(np.asarray(node)))
            return node
        if isinstance(node, Name | Settable):
            return str(node)
        if isinstance(node, Key):
            return self.value(node.value)
        if type(node) is datetime.datetime:
            return node
        if type(node) is bytearray:
            return bytes(node)
        raise FormatError(
            "a reader gave a value of an unexpected kind", found=type(node).__name__
        )
