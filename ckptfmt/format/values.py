"""State tree ⇄ node: the msgpack-ready form of a structure (spec §6.4). Pure.

None, bool, float, str, bytes and integers of 64 bits stand for themselves; everything else is
a list that starts with a tag. Every value has exactly one node, so that equal trees are equal
bytes: a node that `encode` would not have written is refused by `decode`.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Final, TypeGuard

import numpy as np

from ckptfmt import dtypes
from ckptfmt.errors import FormatError, StateError, UnsupportedError
from ckptfmt.leaves import (
    DICT_TYPES,
    MAX_DEPTH,
    MAX_PATH_NBYTES,
    SEQUENCE_TYPES,
    ArrayRef,
    is_exact,
    is_unicode,
    join,
)

DICT: Final = 0
LIST: Final = 1
TUPLE: Final = 2
ARRAY: Final = 3
SCALAR: Final = 4
BIG_INT: Final = 5
COMPLEX: Final = 6
DATETIME: Final = 7

MIN_INT: Final = -(2**63)
MAX_INT: Final = 2**64 - 1
MAX_DATETIME_CHARS: Final = 48  # isoformat gives 42 at most
MAX_DTYPE_CHARS: Final = 32  # an unknown name is quoted in a message

_SAME: Final = frozenset({type(None), bool, float, bytes})


def encode(structure: object) -> list[object]:
    """Return the node of a structure, with `ArrayRef` where an array belongs.

    Whatever is returned, `decode` accepts and gives back equal in type, order and bits.

    Raises:
        StateError: a value, a key or the nesting cannot be stored, or the root is not a dict
            with non-empty str keys.
    """
    if not _is_root(structure):
        raise StateError(f"expected a dict with non-empty str keys, got {_kind(structure)}")
    node = _encode(structure, None, "", 0, True)
    assert isinstance(node, list)
    return node


def encode_plain(value: object) -> object:
    """Return the node of a value of any type a tree may hold, except arrays.

    Raises:
        StateError: a value, a key or the nesting cannot be stored.
    """
    return _encode(value, None, "", 0, False)


def decode(
    node: object, *, arrays: int, at: str = "$.tree", first: int = 0
) -> dict[str | int, object]:
    """Return the structure of a node, with `ArrayRef` where an array belongs.

    First references to rows must ascend in pre-order, as a row is named by its first
    reference; whether every row is referenced is for the caller to check.

    Args:
        node: As msgpack gives it; sequences may be lists or tuples.
        arrays: Rows in the array table.
        at: Where the node stands in the manifest, for messages.
        first: Lowest row that may be referenced.

    Raises:
        FormatError: the node is not one that `encode` writes.
        UnsupportedError: a kind of node, or a dtype, that is unknown to this release.
    """
    structure = _Decoder(arrays, at, first).value(node, None, "", 0)
    if not _is_root(structure):
        raise FormatError(
            f"expected a dict with non-empty str keys, got {_kind(structure)}", at=at
        )
    return structure


def decode_plain(node: object, *, at: str) -> object:
    """Return the value of a node that holds no arrays.

    Raises:
        FormatError: the node is not one that `encode_plain` writes.
        UnsupportedError: a kind of node, or a dtype, that is unknown to this release.
    """
    return _Decoder(0, at, 0).value(node, None, "", 0)


# Both directions pass (parent, key) down instead of a path: most leaves never need theirs.


def _is_root(value: object) -> TypeGuard[dict[str | int, object]]:
    return isinstance(value, dict) and all(type(key) is str and key for key in value)


def _encode(
    value: object, parent: str | None, key: str | int, depth: int, refs: bool
) -> object:
    kind = type(value)
    if kind in _SAME:
        return value
    if isinstance(value, ArrayRef) and refs:
        return [ARRAY, value.row]
    if isinstance(value, str) and kind is str:
        if is_unicode(value):
            return value
        raise StateError("text is not Unicode: lone surrogate", path=join(parent, key))
    if isinstance(value, int) and kind is int:
        return value if MIN_INT <= value <= MAX_INT else [BIG_INT, _big_int_bytes(value)]
    if isinstance(value, DICT_TYPES) and kind in DICT_TYPES:
        path = _enter(parent, key, depth)
        keys = _encode_keys(list(value), path)
        return [DICT, keys, [_encode(v, path, k, depth + 1, refs) for k, v in value.items()]]
    if isinstance(value, (list, tuple)) and kind in SEQUENCE_TYPES:
        path = _enter(parent, key, depth)
        if _too_long(path, range(len(value))[-1:]):
            raise StateError(f"paths here exceed {MAX_PATH_NBYTES} bytes", path=path)
        tag = LIST if kind is list else TUPLE
        return [tag, [_encode(v, path, i, depth + 1, refs) for i, v in enumerate(value)]]
    if isinstance(value, complex) and kind is complex:
        return [COMPLEX, value.real, value.imag]
    if isinstance(value, np.generic) and kind is value.dtype.type:
        row = dtypes.by_numpy(value.dtype, path=join(parent, key))
        return [SCALAR, row.name, np.asarray(value).astype(row.numpy, copy=False).tobytes()]
    if isinstance(value, datetime.datetime) and kind is datetime.datetime:
        if is_exact(value):
            return [DATETIME, value.isoformat()]
        raise StateError(
            "expected a datetime that is naive or has a fixed, unnamed offset, and fold 0",
            path=join(parent, key),
        )
    raise StateError(f"{_kind(value)} cannot be stored", path=join(parent, key))


def _enter(parent: str | None, key: str | int, depth: int) -> str | None:
    if depth >= MAX_DEPTH:
        raise StateError(f"nested more than {MAX_DEPTH} levels deep", path=join(parent, key))
    return join(parent, key) if depth else None


def _encode_keys(keys: list[str | int], path: str | None) -> list[str | int]:
    for key in keys:
        if not _is_key(key):
            raise StateError(
                f"expected a Unicode str or a 64-bit int as key, got {_kind(key)}", path=path
            )
    if _same_texts(keys):
        raise StateError("two keys have the same text, such as 1 and '1'", path=path)
    if _too_long(path, keys):
        raise StateError(f"paths here exceed {MAX_PATH_NBYTES} bytes", path=path)
    return keys


def _is_key(key: object) -> TypeGuard[str | int]:
    if isinstance(key, str):
        return type(key) is str and is_unicode(key)
    return isinstance(key, int) and type(key) is int and MIN_INT <= key <= MAX_INT


def _same_texts(keys: Sequence[str | int]) -> bool:
    return len(set(map(str, keys))) != len(keys)


def _too_long(path: str | None, keys: Sequence[str | int]) -> bool:
    """Whether the path of some child exceeds the limit."""
    longest = max(map(len, map(str, keys)), default=0)
    if 4 * (len(path or "") + 1 + longest) <= MAX_PATH_NBYTES:  # 4 bytes per character at most
        return False
    return any(len(join(path, key).encode()) > MAX_PATH_NBYTES for key in keys)


def _big_int_bytes(value: int) -> bytes:
    significant = value if value >= 0 else ~value
    return value.to_bytes(significant.bit_length() // 8 + 1, "big", signed=True)


def _kind(value: object) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


class _Decoder:
    """One pass over one node; remembers which rows it has seen."""

    def __init__(self, arrays: int, at: str, first: int) -> None:
        self._arrays = arrays
        self._at = at
        self._highest = first - 1
        self._seen: set[int] = set()

    def value(self, node: object, parent: str | None, key: str | int, depth: int) -> object:
        kind = type(node)
        if kind in _SAME:
            return node
        if isinstance(node, str):
            if is_unicode(node):
                return node
        elif isinstance(node, int):
            if MIN_INT <= node <= MAX_INT:
                return node
        elif isinstance(node, (list, tuple)) and node and type(node[0]) is int:
            tag = node[0]
            if tag == ARRAY and len(node) == 2:
                return self._ref(node[1], parent, key)
            if DICT <= tag <= TUPLE:
                return self._container(node, parent, key, depth)
            if tag > DATETIME:
                raise UnsupportedError(
                    f"unknown kind of node {tag}: upgrade ckptfmt",
                    at=self._at,
                    path=join(parent, key),
                )
            return self._leaf(node, parent, key)
        raise self._error(f"expected a node, got {_kind(node)}", parent, key)

    def _container(
        self, node: Sequence[object], parent: str | None, key: str | int, depth: int
    ) -> object:
        if depth >= MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} levels deep", parent, key)
        keys: Sequence[str | int]
        match node:
            case [0, [*texts], [*nodes]] if len(texts) == len(nodes):
                keys = [text for text in texts if _is_key(text)]
                if len(keys) != len(texts) or _same_texts(keys):
                    raise self._error("expected distinct str or 64-bit int keys", parent, key)
            case [1 | 2, [*nodes]]:
                keys = range(len(nodes))
            case _:
                raise self._error("expected [0, keys, nodes] or [1 or 2, nodes]", parent, key)
        path = join(parent, key) if depth else None
        if _too_long(path, keys if node[0] == DICT else keys[-1:]):
            raise self._error(f"paths here exceed {MAX_PATH_NBYTES} bytes", parent, key)
        values = [self.value(n, path, k, depth + 1) for k, n in zip(keys, nodes, strict=True)]
        if node[0] == DICT:
            return dict(zip(keys, values, strict=True))
        return values if node[0] == LIST else tuple(values)

    def _ref(self, row: object, parent: str | None, key: str | int) -> ArrayRef:
        if type(row) is not int or not 0 <= row < self._arrays:
            raise self._error(f"expected a row below {self._arrays}", parent, key)
        if row > self._highest:
            self._highest = row
            self._seen.add(row)
        elif row not in self._seen:
            raise self._error(f"row {row} is out of order", parent, key)
        return ArrayRef(row)

    def _leaf(self, node: Sequence[object], parent: str | None, key: str | int) -> object:
        match node:
            case [4, str() as name, bytes() as data] if len(name) <= MAX_DTYPE_CHARS:
                row = dtypes.by_name(name, at=self._at, path=join(parent, key))
                # NumPy would read any byte but 0 as True: two encodings of one value.
                if len(data) == row.itemsize and (name != "BOOL" or data in (b"\0", b"\1")):
                    return np.frombuffer(data, row.numpy)[0]
            case [5, bytes() as data]:
                number = int.from_bytes(data, "big", signed=True)
                if not MIN_INT <= number <= MAX_INT and _big_int_bytes(number) == data:
                    return number
            case [6, float() as real, float() as imaginary]:
                return complex(real, imaginary)
            case [7, str() as text] if len(text) <= MAX_DATETIME_CHARS:
                moment = _parse(text)
                if moment is not None:
                    return moment
        raise self._error("expected a leaf in its one encoding", parent, key)

    def _error(self, message: str, parent: str | None, key: str | int) -> FormatError:
        return FormatError(message, at=self._at, path=join(parent, key))


def _parse(text: str) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.isoformat() == text else None
