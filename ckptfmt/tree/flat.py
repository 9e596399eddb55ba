"""State tree → `Flat`: every value checked, every array found once."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from ckptfmt import dtypes
from ckptfmt.dtypes import DType
from ckptfmt.errors import StateError
from ckptfmt.leaves import (
    DICT_TYPES,
    MAX_DEPTH,
    MAX_PATH_NBYTES,
    PROBE,
    ArrayRef,
    Shard,
    is_exact,
    is_unicode,
    join,
)
from ckptfmt.tree.advice import kind_of, way_out
from ckptfmt.tree.overlap import Array, elements_of, overlaps, start_of
from ckptfmt.tree.structure import Structure

_AS_THEY_ARE: Final = frozenset({type(None), bool, int, float, complex, bytes})


class Leaf(NamedTuple):
    """One array of a state tree; its row is its place in `Flat.leaves`.

    A tuple: made by the hundred thousand.
    """

    path: str  # of the first reference, in pre-order
    array: Array  # the caller's memory, never a copy
    dtype: DType
    aliases: tuple[str, ...]  # paths of the further references
    shard: Shard | None = None  # which part of its array it is; None: the whole

    @property
    def start(self) -> tuple[int, ...]:
        """Index of the first element in the whole array."""
        return (0,) * self.array.ndim if self.shard is None else self.shard.start

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return self.array.shape if self.shard is None else self.shard.global_shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        if self.shard is None:
            return self.array.nbytes
        return self.dtype.itemsize * math.prod(self.shard.global_shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A state tree taken apart."""

    structure: Structure
    probe: Structure | None  # of the stored example; its arrays follow those of the state
    leaves: tuple[Leaf, ...]
    overlaps: tuple[
        tuple[str, str], ...
    ]  # paths of arrays that share bytes and come back apart


def flatten(state: Mapping[str, object], probe: Mapping[str, object] | None = None) -> Flat:
    """Take a state tree apart into its structure and its arrays.

    Two references are one array (*tied*) iff memory start, shape, dtype and the strides along
    axes longer than one are equal; arrays without elements are never tied. Other arrays that
    share memory stay separate and are reported in `Flat.overlaps`; `overlap.overlaps` says
    exactly which. A memmap becomes a plain array over the same memory.

    Args:
        probe: A dict with arrays that is stored beside the state, not as part of it.

    Raises:
        StateError: something in the tree cannot be stored; names its path and the way out.
    """
    walk = _Walk(problems=None, arrays=True)
    structure = walk.root(state)
    count = len(walk.leaves)
    beside = None if probe is None else walk.beside(probe)
    leaves = walk.leaves
    for row, aliases in walk.aliases.items():
        leaves[row] = leaves[row]._replace(aliases=tuple(aliases))
    pairs: tuple[tuple[str, str], ...] = ()
    if walk.starts:
        shared = overlaps([leaf.array for leaf in leaves[:count]], walk.starts[:count])
        pairs = tuple((leaves[a].path, leaves[b].path) for a, b in shared)
    return Flat(structure=structure, probe=beside, leaves=tuple(leaves), overlaps=pairs)


def check(state: Mapping[str, object]) -> list[StateError]:
    """Return everything that `flatten` would refuse, in pre-order; empty if it would pass.

    Nothing is reported from inside a container that is itself too deep or part of a cycle.
    """
    problems: list[StateError] = []
    _Walk(problems=problems, arrays=True).root(state)
    return problems


def plain(value: object) -> object:
    """Return a value without arrays as it would come back: containers new, of base types.

    Raises:
        StateError: it, or something in it, is an array or cannot be stored; names the path
            inside the value and the way out.
    """
    return _Walk(problems=None, arrays=False).value(value, None, 0)


class _Walk:
    """One pass over one state tree. Raises, or collects into `problems`."""

    def __init__(self, *, problems: list[StateError] | None, arrays: bool) -> None:
        self.leaves: list[Leaf] = []  # by row, still without aliases
        # Address of the first element, by row. Empty while each array owns its memory, which
        # then no other one has: an address takes longer to find out than all else.
        self.starts: list[int] = []
        self.aliases: dict[int, list[str]] = {}  # row → further paths
        self._problems = problems
        self._arrays = arrays
        self._open: set[int] = set()  # ids of the containers around the current value
        self._dtypes: dict[np.dtype[Any], DType] = {}
        self._addressed = False  # whether `starts` is kept
        self._by_start: dict[int, int] = {}  # address (or id of the owner) → first row there
        self._by_memory: dict[object, int] = {}  # the same, only where an address repeats

    def root(self, state: object) -> Structure:
        if type(state) not in DICT_TYPES or not isinstance(state, dict):
            storable = type(state) in (*_AS_THEY_ARE, list, tuple, str, np.ndarray)
            fix = "wrap it, as in {'model': value}" if storable else way_out(state)
            self._refuse(f"expected a dict at the root, got {kind_of(state)}: {fix}")
            return {}
        if odd := [key for key in state if type(key) is not str]:
            self._refuse(f"expected str keys at the root, got {kind_of(odd[0])}: use str(key)")
        if "" in state:
            self._refuse("a key at the root is empty: give the section a name")
        return self._dict(state, None, 0)

    def beside(self, probe: object) -> Structure:
        """Walk what is stored beside the state; never tied to it, though memory be shared."""
        self._by_start, self._by_memory = {}, {}
        if type(probe) is not dict:
            self._refuse(f"expected a dict, got {kind_of(probe)}", PROBE)
            return {}
        return self._dict(probe, PROBE, 0)

    def value(self, value: object, path: str | None, depth: int) -> object:
        # The type comes first: isinstance() asks value.__class__, which a proxy may forge.
        kind = type(value)
        if (kind is np.ndarray or kind is np.memmap) and isinstance(value, np.ndarray):
            return self._array(value, path, None)
        if kind in _AS_THEY_ARE:
            return value
        if kind is str and isinstance(value, str):
            if not is_unicode(value):
                self._refuse("text is not Unicode: remove the lone surrogates", path)
            return value
        if kind in DICT_TYPES and isinstance(value, dict):
            return self._dict(value, path, depth)
        if (kind is list or kind is tuple) and isinstance(value, (list, tuple)):
            return self._sequence(value, path, depth)
        if kind is datetime.datetime and isinstance(value, datetime.datetime):
            if not is_exact(value):
                self._refuse(
                    "expected a datetime that is naive, or has a fixed and unnamed offset, with"
                    " fold 0: use value.astimezone(datetime.timezone.utc)",
                    path,
                )
            return value
        if issubclass(kind, np.generic) and _is_storable(kind):
            return value
        if kind is Shard and isinstance(value, Shard):
            inner = type(value.array)
            if inner is np.ndarray or inner is np.memmap:
                return self._array(value.array, path, value)
            value = value.array  # refused as it would be without the shard around it
        self._refuse(f"{kind_of(value)} cannot be stored: {way_out(value)}", path)
        return None

    def _dict(self, value: dict[Any, Any], path: str | None, depth: int) -> Structure:
        result: Structure = {}
        if not self._enter(value, path, depth):
            return result
        mixed = False
        for key, child in value.items():
            if type(key) is str:
                if path is None or "/" in key or "~" in key:
                    below = join(path, key)
                else:
                    below = f"{path}/{key}"  # what `join` returns, without its calls
                if not key.isascii() and not is_unicode(key):
                    self._refuse("key is not Unicode: remove the lone surrogates", below)
            elif type(key) is int and -(2**63) <= key < 2**64:
                below = join(path, key)
                mixed = True
            else:
                below = join(path, f"<{kind_of(key)}>")
                self._refuse("expected a str or 64-bit int key: use str(key)", below)
            if 4 * len(below) <= MAX_PATH_NBYTES or self._fits(below):
                plain_array = type(child) is np.ndarray
                result[key] = (
                    self._array(child, below, None)
                    if plain_array
                    else self.value(child, below, depth + 1)
                )
        if mixed and len(set(map(str, result))) < len(result):
            self._refuse("two keys have the same text, such as 1 and '1': rename one", path)
        self._open.discard(id(value))
        return result

    def _sequence(
        self, value: list[Any] | tuple[Any, ...], path: str | None, depth: int
    ) -> list[object] | tuple[object, ...]:
        result: list[object] = []
        if self._enter(value, path, depth):
            for index, child in enumerate(value):
                below = f"{index}" if path is None else f"{path}/{index}"
                if self._fits(below):
                    result.append(self.value(child, below, depth + 1))
            self._open.discard(id(value))
        return result if type(value) is list else tuple(result)

    def _enter(self, value: object, path: str | None, depth: int) -> bool:
        if id(value) in self._open:
            self._refuse("this container contains itself: break the cycle", path)
        elif depth >= MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep: use fewer levels", path)
        else:
            self._open.add(id(value))
            return True
        return False

    def _fits(self, path: str) -> bool:
        if 4 * len(path) <= MAX_PATH_NBYTES:  # a character has at most four bytes
            return True
        if len(path.encode(errors="surrogatepass")) <= MAX_PATH_NBYTES:
            return True
        shown = f"{path[:200]}…"
        self._refuse(f"path is longer than {MAX_PATH_NBYTES} bytes: use shorter keys", shown)
        return False

    def _array(self, array: Array, path: str | None, shard: Shard | None) -> ArrayRef | None:
        if not self._arrays:
            self._refuse(
                "an array cannot stand here: use array.tolist(), or the state tree", path
            )
            return None
        dtype = self._dtypes.get(array.dtype) or self._dtype(array.dtype, path)
        if dtype is None or path is None:
            return None
        row, start = len(self.leaves), self._start(array, shard)
        if array.size:
            first = self._by_start.setdefault(start, row)
            if first != row:
                known = self.leaves[first]
                self._by_memory.setdefault(_memory(known.array, known.shard), first)
                first = self._by_memory.setdefault(_memory(array, shard), row)
            if first != row:
                self.aliases.setdefault(first, []).append(path)
                return ArrayRef(first)
        self.leaves.append(Leaf(path, np.asarray(array), dtype, (), shard))
        if self._addressed:
            self.starts.append(start)
        return ArrayRef(row)

    def _start(self, array: Array, shard: Shard | None) -> int:
        """Return what tells where an array begins: an address from the first view on."""
        if not self._addressed:
            if shard is None and array.flags.owndata:
                return id(array)
            self._addressed = True
            self.starts = [start_of(leaf.array) for leaf in self.leaves]
            known = self._by_start.values()
            self._by_start = {self.starts[row]: row for row in known}
        return start_of(array)

    def _dtype(self, dtype: np.dtype[Any], path: str | None) -> DType | None:
        try:
            row = dtypes.by_numpy(dtype, path=path)
        except StateError as error:
            if self._problems is None:
                raise
            self._problems.append(error)
            return None
        self._dtypes[dtype] = row
        return row

    def _refuse(self, message: str, path: str | None = None) -> None:
        error = StateError(message) if path is None else StateError(message, path=path)
        if self._problems is None:
            raise error
        self._problems.append(error)


def _memory(array: Array, shard: Shard | None) -> object:
    return elements_of(array), None if shard is None else (shard.start, shard.global_shape)


def _is_storable(kind: type[np.generic]) -> bool:
    """Whether scalars of this type have a known dtype; a subclass of such a type has none."""
    try:
        dtype = np.dtype(kind)
        dtypes.by_numpy(dtype)
    except (TypeError, StateError):
        return False
    return dtype.type is kind
