"""State tree ⇄ structure and arrays; paths, selection, renaming. Pure; copies no array data.

A *structure* is a state tree with an `ArrayRef` in place of each array. A *path* names a leaf
or a container: keys and indexes, escaped and joined by `/`. Functions that take a structure
treat it as immutable: what they return may share containers with it.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt import dtypes
from ckptfmt.dtypes import DType
from ckptfmt.errors import NotFoundError, StateError
from ckptfmt.leaves import (
    DICT_TYPES,
    MAX_DEPTH,
    MAX_PATH_NBYTES,
    ArrayRef,
    escape,
    join,
    unescape,
)

Array: TypeAlias = npt.NDArray[Any]
Structure: TypeAlias = dict[str | int, object]

MAX_OVERLAP_CHECKS: Final = 200_000  # pairs of arrays; about 0.3 s when all are strided
_SHARE_EFFORT: Final = (
    1000  # candidate solutions per pair: microseconds; the exact problem is NP-hard
)
_AS_IS: Final = frozenset({type(None), bool, int, float, complex, bytes})


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One array of a state tree; its row is its place in `Flat.leaves`."""

    path: str  # of the first reference, in pre-order
    array: Array  # the caller's memory
    dtype: DType
    aliases: tuple[str, ...]  # paths of the further references


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """A state tree taken apart."""

    structure: Structure
    leaves: tuple[Leaf, ...]
    overlaps: tuple[tuple[str, str], ...]  # arrays that share some memory and come back apart


def flatten(state: Mapping[str, object]) -> Flat:
    """Take a state tree apart into its structure and its arrays.

    Two references are one array (*tied*) iff memory start, shape, dtype and the strides along
    axes longer than one are equal; arrays without elements are never tied. Other arrays that
    share memory are separate, and reported in `overlaps`: a pair is reported if it is known
    to share a byte, or if finding that out would take more than a bounded effort. At most
    `MAX_OVERLAP_CHECKS` pairs with intersecting extents are looked at, in memory order.

    Raises:
        StateError: something in the tree cannot be stored; names the path and the way out.
    """
    return _Walk(None).run(state)


def check(state: Mapping[str, object]) -> list[StateError]:
    """Return everything in the tree that `flatten` would refuse, in pre-order."""
    problems: list[StateError] = []
    _Walk(problems).run(state)
    return problems


class _Walk:
    """One pass over one state tree. Raises, or collects into `problems`."""

    def __init__(self, problems: list[StateError] | None) -> None:
        self._problems = problems
        self._open: set[int] = set()  # ids of the containers around the current value
        self._rows: dict[object, int] = {}  # memory → row
        self._found: list[tuple[str, Array, DType]] = []
        self._aliases: dict[int, list[str]] = {}

    def run(self, state: object) -> Flat:
        structure: Structure = {}
        if type(state) not in DICT_TYPES or not isinstance(state, dict):
            self._refuse(
                f"expected a dict at the root, got {_kind(state)}: {way_out(state)}", None
            )
        elif odd := [key for key in state if type(key) is not str]:
            self._refuse(f"expected str keys at the root, got {_kind(odd[0])}", None)
        else:
            structure = self._dict(state, None, 0)
        leaves = tuple(
            Leaf(path=path, array=array, dtype=dtype, aliases=tuple(self._aliases.get(row, ())))
            for row, (path, array, dtype) in enumerate(self._found)
        )
        return Flat(structure=structure, leaves=leaves, overlaps=_overlaps(leaves))

    def _value(self, value: object, path: str, depth: int) -> object:
        kind = type(value)
        if isinstance(value, np.ndarray) and (kind is np.ndarray or kind is np.memmap):
            return self._array(value, path)
        if kind in _AS_IS:
            return value
        if isinstance(value, str) and kind is str:
            if not _is_unicode(value):
                self._refuse("text is not Unicode: remove the lone surrogates", path)
            return value
        if isinstance(value, dict) and kind in DICT_TYPES:
            return self._dict(value, path, depth)
        if isinstance(value, (list, tuple)) and (kind is list or kind is tuple):
            return self._sequence(value, path, depth)
        if isinstance(value, np.generic) and self._dtype(value.dtype, path):
            return value
        if isinstance(value, datetime.datetime) and kind is datetime.datetime:
            if not _is_exact(value):
                self._refuse(
                    "expected a datetime that is naive or has a fixed, unnamed offset, and "
                    "fold 0: convert it with .astimezone(datetime.timezone.utc)",
                    path,
                )
            return value
        if not isinstance(value, np.generic):
            self._refuse(f"{_kind(value)} cannot be stored: {way_out(value)}", path)
        return None

    def _dict(self, value: dict[Any, Any], path: str | None, depth: int) -> Structure:
        if not self._enter(value, path, depth):
            return {}
        result: Structure = {}
        ints = False
        for key, child in value.items():
            if type(key) is str:
                if not _is_unicode(key):
                    self._refuse("key is not Unicode: remove the lone surrogates", path)
                    continue
            elif type(key) is int and -(2**63) <= key < 2**64:
                ints = True
            else:
                self._refuse(
                    f"expected a str or 64-bit int key, got {_kind(key)}: use str(key)",
                    path,
                )
                continue
            below = join(path, key)
            if 4 * len(below) > MAX_PATH_NBYTES and len(below.encode()) > MAX_PATH_NBYTES:
                self._refuse(f"a path here is longer than {MAX_PATH_NBYTES} bytes", path)
                continue
            result[key] = self._value(child, below, depth + 1)
        if ints and len({str(key) for key in result}) < len(result):
            self._refuse("two keys have the same text, such as 1 and '1': rename one", path)
        self._open.discard(id(value))
        return result

    def _sequence(
        self, value: list[Any] | tuple[Any, ...], path: str, depth: int
    ) -> list[object] | tuple[object, ...]:
        if not self._enter(value, path, depth):
            return []
        result = [self._value(v, f"{path}/{i}", depth + 1) for i, v in enumerate(value)]
        self._open.discard(id(value))
        return result if type(value) is list else tuple(result)

    def _enter(self, value: object, path: str | None, depth: int) -> bool:
        if id(value) in self._open:
            self._refuse("container contains itself: break the cycle", path)
            return False
        if depth >= MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} levels deep: flatten it", path)
            return False
        self._open.add(id(value))
        return True

    def _array(self, array: Array, path: str) -> object:
        dtype = self._dtype(array.dtype, path)
        if dtype is None:
            return None
        shape, row = array.shape, len(self._found)
        if 0 not in shape:
            strides = array.strides
            if 1 in shape:  # NumPy sets the stride of such an axis as it likes
                strides = tuple(s for n, s in zip(shape, strides, strict=True) if n > 1)
            memory = (array.__array_interface__["data"][0], shape, strides, array.dtype)
            first = self._rows.setdefault(memory, row)
            if first != row:
                self._aliases.setdefault(first, []).append(path)
                return ArrayRef(first)
        self._found.append((path, np.asarray(array), dtype))  # a memmap becomes a view of it
        return ArrayRef(row)

    def _dtype(self, dtype: np.dtype[Any], path: str) -> DType | None:
        try:
            return dtypes.by_numpy(dtype, path=path)
        except StateError as error:
            if self._problems is None:
                raise
            self._problems.append(error)
            return None

    def _refuse(self, message: str, path: str | None) -> None:
        error = StateError(message) if path is None else StateError(message, path=path)
        if self._problems is None:
            raise error
        self._problems.append(error)


def _is_unicode(text: str) -> bool:
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def _is_exact(value: datetime.datetime) -> bool:
    if type(value.tzinfo) not in (type(None), datetime.timezone):
        return False
    return repr(datetime.datetime.fromisoformat(value.isoformat())) == repr(value)


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def way_out(value: object) -> str:
    return "convert it"


def _overlaps(leaves: Sequence[Leaf]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of leaves that share memory; see `flatten` for the bounds."""
    if not leaves:
        return ()
    extents = np.array([_extent(leaf.array) for leaf in leaves], dtype=np.int64)
    order = np.lexsort((extents[:, 1], extents[:, 0]))
    start, end = extents[order].T
    reach = np.maximum.accumulate(end)
    if not (start[1:] < reach[:-1]).any():
        return ()
    pairs: list[tuple[int, int]] = []
    active: list[int] = []
    checks = 0
    for row in order.tolist():
        low, high = extents[row]
        if low == high:
            continue
        active = [other for other in active if extents[other, 1] > low]
        for other in active:
            checks += 1
            if checks > MAX_OVERLAP_CHECKS:
                break
            if _share(leaves[row].array, leaves[other].array):
                pairs.append((min(row, other), max(row, other)))
        active.append(row)
    return tuple((leaves[a].path, leaves[b].path) for a, b in sorted(pairs))


def _extent(array: Array) -> tuple[int, int]:
    """First byte and the byte after the last one."""
    start: int = array.__array_interface__["data"][0]
    if array.flags.c_contiguous:
        return start, start + array.nbytes
    low = high = start
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return low, high + array.itemsize


def _share(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_SHARE_EFFORT)  # type: ignore[arg-type]  # any int
    except np.exceptions.TooHardError:
        return True


def unflatten(
    structure: Structure, array_of: Callable[[str, int], object]
) -> dict[str | int, object]:
    """Return the structure with each `ArrayRef` replaced by `array_of(path, row)`.

    `array_of` is called for every reference in pre-order, so a tied array asks more than once.
    Containers are new.
    """

    def build(node: object, path: str | None) -> object:
        if isinstance(node, ArrayRef):
            return array_of(path or "", node.row)
        if isinstance(node, dict):
            return {key: build(child, join(path, key)) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            children = (build(child, join(path, i)) for i, child in enumerate(node))
            return type(node)(children)
        return node

    return {key: build(child, join(None, key)) for key, child in structure.items()}


def paths(structure: object) -> Iterator[tuple[str, object]]:
    """Yield (path, leaf) in pre-order; a leaf is a value or an `ArrayRef`.

    Empty containers have no leaves.
    """
    return _paths(structure, None)


def _paths(node: object, path: str | None) -> Iterator[tuple[str, object]]:
    for key, child in _items(node):
        below = join(path, key)
        if isinstance(child, (dict, list, tuple)):
            yield from _paths(child, below)
        else:
            yield below, child


def _items(node: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(node, dict):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()


def lookup(structure: object, path: str) -> object:
    """Return the container or leaf at `path`.

    Raises:
        NotFoundError: nothing is there; names what is near.
    """
    node = structure
    parent: str | None = None
    for component in path.split("/"):
        names = {escape(key): child for key, child in _items(node)}
        if component not in names:
            near = [
                join(parent, unescape(name))
                for name in difflib.get_close_matches(component, names, cutoff=0.4)
            ]
            raise NotFoundError("no such path in the state tree", path=path, near=near)
        node = names[component]
        parent = component if parent is None else f"{parent}/{component}"
    return node


def matches(patterns: str | Sequence[str], path: str) -> bool:
    """Whether any pattern selects `path`; see `matcher`."""
    return matcher(patterns)(path)


def matcher(patterns: str | Sequence[str]) -> Callable[[str], bool]:
    """Return the test for glob patterns over (escaped) paths.

    `*` is any text within a component, `?` one character of it, and a component `**` any
    number of components, also none. A pattern that is the path of a container also selects
    everything below it. Matching takes time linear in the path for each pattern.
    """
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    exact = frozenset(globs)
    tests = [
        re.compile(_regex(glob), re.DOTALL).match for glob in globs if set(glob) & set("*?")
    ]

    def test(path: str) -> bool:
        if path in exact or any(match(path + "/") for match in tests):
            return True
        while (cut := path.rfind("/")) >= 0:
            path = path[:cut]
            if path in exact:
                return True
        return False

    return test


def _regex(glob: str) -> str:
    """Translate a glob; the subject ends in `/`, so that components look alike."""
    runs: list[str] = [""]
    for component in glob.split("/"):
        if component == "**":
            runs.append("")
        else:
            runs[-1] += _component_regex(component) + "/"
    if len(runs) == 1:
        return runs[0] + r"\Z"
    # The first fit of what stands between two `**` is as good as any later one: an atomic
    # group commits to it, so that no pattern takes exponential time.
    middle = "".join(f"(?>(?:[^/]*/)*?{run})" for run in runs[1:-1] if run)
    return rf"{runs[0]}{middle}(?:[^/]*/)*{runs[-1]}\Z"


def _component_regex(component: str) -> str:
    first, *rest = (re.escape(p).replace(r"\?", "[^/]") for p in component.split("*"))
    if not rest:
        return first
    return first + "".join(f"(?>[^/]*?{p})" for p in rest[:-1]) + f"[^/]*{rest[-1]}"


def filter(structure: Structure, keep: Callable[[str], bool]) -> Structure:
    """Return what is left of a structure when only leaves with `keep(path)` stay.

    An empty container counts as a leaf; a container that loses its last child goes too. A
    list or tuple that loses some elements becomes a dict with the old indexes as int keys,
    so that no element silently changes its name.
    """
    kept = _kept(structure, None, keep)
    return kept if isinstance(kept, dict) else {}


_GONE: Final = object()


def _kept(node: object, path: str | None, keep: Callable[[str], bool]) -> object:
    if not isinstance(node, (dict, list, tuple)) or (not node and path is not None):
        return node if path is None or keep(path) else _GONE
    pairs = [(key, _kept(child, join(path, key), keep)) for key, child in _items(node)]
    left = {key: child for key, child in pairs if child is not _GONE}
    if not left:
        return _GONE
    if isinstance(node, dict) or len(left) < len(node):
        return left
    return type(node)(left.values())
