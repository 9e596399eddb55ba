"""Hypothesis strategies for state trees, and equality of trees bit by bit.

What the strategies draw, `tree.flatten` accepts: every dtype of the table, 0-d, empty,
strided, reversed, broadcast, big-endian and read-only arrays, NaNs with payloads, tied arrays.
"""

from __future__ import annotations

import datetime
import math
import struct
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from ckptfmt.dtypes import DTYPES, DType, by_numpy
from ckptfmt.leaves import DICT_TYPES, join
from ckptfmt.tree import flatten

Array: TypeAlias = npt.NDArray[Any]
State: TypeAlias = dict[str, object]

_BITS: Final = {  # of one element, where it has fewer than its bytes
    "BOOL": 1, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "I4": 4, "U4": 4, "I2": 2, "U2": 2,
}  # fmt: skip
_LAYOUTS: Final = (
    "plain", "fortran", "big-endian", "strided", "reversed", "broadcast", "read-only", "offset",
)  # fmt: skip


def dtypes() -> st.SearchStrategy[DType]:
    """Draw a row of the dtype table."""
    return st.sampled_from(sorted(DTYPES.values(), key=lambda row: row.name))


def shapes(*, max_dims: int = 3, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw a shape; `()` and shapes with a zero are among them."""
    return st.lists(st.integers(0, max_side), max_size=max_dims).map(tuple)


@st.composite
def arrays(
    draw: st.DrawFn,
    dtype: st.SearchStrategy[DType] | None = None,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
) -> Array:
    """Draw an array of any bits and any memory layout."""
    row = draw(dtypes() if dtype is None else dtype)
    array = _from_bits(row, draw(shapes() if shape is None else shape), draw)
    layout = draw(st.sampled_from(_LAYOUTS))
    match layout:
        case "fortran":
            array = np.asfortranarray(array) if array.ndim else array
        case "big-endian":
            array = array.astype(array.dtype.newbyteorder(">"))
        case "strided" if array.ndim:
            wide = np.repeat(array, 2, axis=-1)
            array = wide[..., ::2]
        case "reversed" if array.ndim:
            array = np.ascontiguousarray(array[::-1])[::-1]
        case "broadcast":
            array = np.broadcast_to(array, (2, *array.shape))
        case "read-only":
            array.flags.writeable = False
        case "offset":  # not aligned to its item size
            memory = bytearray(b"\x7f" + array.tobytes())
            array = np.frombuffer(memory, array.dtype, array.size, 1).reshape(array.shape)
    return array


def _from_bits(row: DType, shape: tuple[int, ...], draw: st.DrawFn) -> Array:
    nbytes = math.prod(shape) * row.itemsize
    bits = np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), np.uint8)
    bits = bits & np.uint8((1 << _BITS.get(row.name, 8)) - 1)
    return bits.view(row.numpy).reshape(shape)


@st.composite
def scalars(draw: st.DrawFn) -> np.generic:
    """Draw a NumPy scalar of any dtype and any bits."""
    scalar: np.generic = _from_bits(draw(dtypes()), (1,), draw)[0]
    return scalar


def datetimes() -> st.SearchStrategy[datetime.datetime]:
    """Draw a datetime that is naive or has a fixed offset, down to seconds.

    Python reads an offset of less than a second as none, so that those cannot be stored.
    """
    seconds = st.integers(-86_399, 86_399)
    offsets = seconds.map(lambda s: datetime.timezone(datetime.timedelta(seconds=s)))
    zones = st.none() | st.just(datetime.UTC) | offsets
    return st.builds(lambda at, zone: at.replace(tzinfo=zone, fold=0), st.datetimes(), zones)


def floats() -> st.SearchStrategy[float]:
    """Draw a float of any bits: NaNs of every sign and payload, subnormals, -0.0."""
    bits = st.binary(min_size=8, max_size=8)
    return st.floats() | bits.map(lambda data: float(struct.unpack("<d", data)[0]))


def values() -> st.SearchStrategy[object]:
    """Draw a leaf that is not an array."""
    edges = [0, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64]
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**200), 2**200) | st.sampled_from(edges),
        floats(),
        st.builds(complex, floats(), floats()),
        st.text(max_size=5),
        st.binary(max_size=5),
        datetimes(),
        scalars(),
    )


def keys() -> st.SearchStrategy[str]:
    """Draw a key; some are empty, or look like a path, an escape, a number or a pattern."""
    odd = ["", "/", "~", "~0", "~1", "a/b", "0", "-1", "a.b", "*", "**", "ü", "\0"]
    return st.sampled_from(["a", "b", "weight", *odd]) | st.text(max_size=4)


@st.composite
def trees(draw: st.DrawFn, *, max_leaves: int = 12) -> State:
    """Draw a state tree; its arrays may be tied, or overlap."""
    pool = draw(st.lists(arrays(), min_size=1, max_size=4))
    pool += [array.view() for array in pool]  # the same memory: tied
    pool += [array[1:] for array in pool if array.ndim]  # a part of it: an overlap, or empty
    shared = st.sampled_from(pool)
    node = st.recursive(values() | shared | arrays(), _containers, max_leaves=max_leaves)
    state: State = draw(st.dictionaries(keys().filter(bool), node, max_size=4))
    if several := draw(st.lists(shared, max_size=3)):  # else two of the pool rarely meet
        state["shared"] = several
    return state


def _containers(node: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    any_key = keys() | st.integers(-(2**63), 2**64 - 1)
    mixed = st.dictionaries(any_key, node, max_size=3)
    return st.one_of(
        st.dictionaries(keys(), node, max_size=3),
        mixed.filter(lambda tree: len({str(key) for key in tree}) == len(tree)),
        st.lists(node, max_size=3),
        st.lists(node, max_size=3).map(tuple),
    )


def same(a: object, b: object) -> bool:
    """Whether `assert_same` would pass."""
    return difference(a, b) is None


def assert_same(a: object, b: object) -> None:
    """Assert that two values are equal in every type, bit and order, and in what is tied.

    As a checkpoint keeps no more, these count as the same: dict, OrderedDict and defaultdict;
    an array and a memmap; any byte order and memory layout of an array; two names of one
    NumPy dtype.

    Raises:
        AssertionError: they differ; names the first path that does.
    """
    found = difference(a, b)
    assert found is None, found


def difference(a: object, b: object) -> str | None:
    """Return a sentence about the first difference, or None; see `assert_same`."""
    found = _difference(a, b, None)
    if found is None and _ties(a) != _ties(b):
        return f"tied arrays differ: {_ties(a)} != {_ties(b)}"
    return found


def _difference(a: object, b: object, path: str | None) -> str | None:
    where = "at the root" if path is None else f"at {path!r}"
    if _kind(a) is not _kind(b):
        return f"{where}: type {_kind(a).__qualname__} != {_kind(b).__qualname__}"
    if isinstance(a, dict) and isinstance(b, dict):
        if [(type(key), key) for key in a] != [(type(key), key) for key in b]:
            return f"{where}: keys {list(a)!r} != {list(b)!r}"
        pairs = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: length {len(a)} != {len(b)}"
        pairs = list(zip(range(len(a)), a, b, strict=True))
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _array_difference(a, b, where)
    else:
        return None if _bits(a) == _bits(b) else f"{where}: {a!r} != {b!r} in bits"
    found = (_difference(x, y, join(path, key)) for key, x, y in pairs)
    return next((text for text in found if text is not None), None)


def _array_difference(a: Array, b: Array, where: str) -> str | None:
    row, other = by_numpy(a.dtype), by_numpy(b.dtype)
    if row is not other:
        return f"{where}: dtype {row.name} != {other.name}"
    if a.shape != b.shape:
        return f"{where}: shape {a.shape} != {b.shape}"
    if _bits(a) != _bits(b):
        return f"{where}: {row.name} arrays of shape {a.shape} differ in bits"
    return None


def _kind(value: object) -> type:
    kind = type(value)
    if kind in DICT_TYPES:
        return dict
    if issubclass(kind, np.generic) and np.dtype(kind).type is kind:
        return by_numpy(np.dtype(kind)).numpy.type  # numpy.longlong is numpy.int64
    return np.ndarray if kind is np.memmap else kind


def _bits(value: object) -> object:
    """Return what tells two values of one type apart, to the last bit."""
    match value:
        case np.ndarray() | np.generic():
            array = np.asarray(value)
            return array.astype(by_numpy(array.dtype).numpy, copy=False).tobytes()
        case float():
            return struct.pack("<d", value)
        case complex():
            return struct.pack("<dd", value.real, value.imag)
        case datetime.datetime():
            return repr(value)  # == ignores the fold and the zone's name
    return value


def _ties(tree: object) -> set[tuple[str, ...]]:
    leaves = flatten({"x": tree}).leaves  # below a root, as `tree` may be of any type
    return {(leaf.path, *leaf.aliases) for leaf in leaves if leaf.aliases}
