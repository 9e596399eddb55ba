"""Nodes: the exact bytes of every type, and everything that is not a node."""

from __future__ import annotations

import collections
import datetime
import enum
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from ckptfmt.errors import FormatError, StateError, UnsupportedError
from ckptfmt.format import _msgpack
from ckptfmt.format.values import decode, decode_plain, encode, encode_plain
from ckptfmt.leaves import MAX_DEPTH, MAX_PATH_NBYTES, ArrayRef
from ckptfmt.testing.strategies import assert_same

UTC = datetime.UTC
NAN = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]

NODES: list[tuple[object, object]] = [
    (None, None),
    (True, True),
    (0, 0),
    (2**63, 2**63),
    (2**64 - 1, 2**64 - 1),
    (-(2**63), -(2**63)),
    (2**64, [5, b"\x01" + b"\0" * 8]),
    (-(2**63) - 1, [5, b"\xff\x7f" + b"\xff" * 7]),
    (-(2**71), [5, b"\x80" + b"\0" * 8]),
    (2**71 - 1, [5, b"\x7f" + b"\xff" * 8]),
    (-(2**71) - 1, [5, b"\xff\x7f" + b"\xff" * 8]),
    (2**71, [5, b"\x00\x80" + b"\0" * 8]),
    (-0.0, -0.0),
    (NAN, NAN),
    (complex(-0.0, NAN), [6, -0.0, NAN]),
    ("ü", "ü"),
    (b"\xff", b"\xff"),
    ([1], [1, [1]]),
    ((1, [2]), [2, [1, [1, [2]]]]),
    ({}, [0, [], []]),
    ({2**64 - 1: 1, -(2**63): 2}, [0, [2**64 - 1, -(2**63)], [1, 2]]),
    ({"b": 1, "a": 2, 3: 4}, [0, ["b", "a", 3], [1, 2, 4]]),
    (np.float32(1), [4, "F32", b"\0\0\x80\x3f"]),
    (np.float64(1), [4, "F64", b"\0\0\0\0\0\0\xf0\x3f"]),
    (np.bool_(True), [4, "BOOL", b"\x01"]),
    (np.int64(-2), [4, "I64", b"\xfe" + b"\xff" * 7]),
    (datetime.datetime(2026, 1, 2), [7, "2026-01-02T00:00:00"]),
    (datetime.datetime(2026, 1, 2, 3, 4, 5, 6, UTC), [7, "2026-01-02T03:04:05.000006+00:00"]),
]


@pytest.mark.parametrize(("value", "node"), NODES, ids=lambda x: repr(x)[:30])
def test_a_value_has_this_node(value: object, node: object) -> None:
    assert _msgpack.pack(encode_plain(value)) == _msgpack.pack(node)
    assert_same(decode_plain(node, at="$"), value)


def test_arrays_are_references() -> None:
    structure = {"a": ArrayRef(0), "b": [ArrayRef(1), ArrayRef(0)]}

    node = [0, ["a", "b"], [[3, 0], [1, [[3, 1], [3, 0]]]]]

    assert encode(structure) == node
    assert decode(node, arrays=2) == structure


def test_sequences_of_msgpack_may_be_tuples() -> None:
    assert decode((0, ("a",), ((2, ((3, 0),)),)), arrays=1) == {"a": (ArrayRef(0),)}


def test_ordered_and_default_dicts_are_dicts() -> None:
    ordered = collections.OrderedDict(b=collections.defaultdict(list, a=1))

    assert encode(ordered) == [0, ["b"], [[0, ["a"], [1]]]]


def test_rows_may_have_gaps_but_must_ascend() -> None:
    assert decode([0, ["a", "b"], [[3, 1], [3, 3]]], arrays=4) == {
        "a": ArrayRef(1),
        "b": ArrayRef(3),
    }
    with pytest.raises(FormatError, match="row 0 is out of order") as caught:
        decode([0, ["a", "b"], [[3, 1], [3, 0]]], arrays=2)
    assert caught.value.where == {"at": "$.tree", "path": "b"}


def nested(levels: int, node: object = None) -> object:
    for _ in range(levels):
        node = [1, [node]]
    return node


def key_of(nbytes: int) -> list[object]:
    return [0, ["k" * nbytes], [None]]


NOT_NODES: dict[str, object] = {
    "empty": [],
    "no tag": [[]],
    "map": {},
    "negative tag": [-1, []],
    "bool as tag": [True, []],
    "float as tag": [1.0, []],
    "str as tag": ["0", [], []],
    "none as tag": [None],
    "dict without nodes": [0, []],
    "dict with fewer nodes": [0, ["a", "b"], [1]],
    "dict with more nodes": [0, ["a"], [1, 2]],
    "dict with extra": [0, [], [], None],
    "dict with text for keys": [0, "a", [1]],
    "bytes for nodes": [1, b"ab"],
    "dup keys": [0, ["a", "a"], [1, 2]],
    "dup texts": [0, ["1", 1], [1, 2]],
    "dup ints": [0, [1, 1], [1, 2]],
    "bool key": [0, [True], [1]],
    "null key": [0, [None], [1]],
    "bytes key": [0, [b"a"], [1]],
    "float key": [0, [1.0], [1]],
    "huge key": [0, [2**64], [1]],
    "list key": [0, [["a"]], [1]],
    "surrogate key": [0, ["\ud800"], [1]],
    "surrogate text": "\ud800",
    "list without nodes": [1],
    "list with extra": [1, [], []],
    "list of no list": [1, None],
    "tuple as map": [2, {}],
    "row out of range": [3, 2],
    "negative row": [3, -1],
    "bool as row": [3, True],
    "huge row": [3, 2**63],
    "float as row": [3, 0.0],
    "row missing": [3],
    "row with extra": [3, 0, 0],
    "scalar of no bytes": [4, "F32", b""],
    "scalar too long": [4, "F32", b"\0" * 8],
    "scalar of text": [4, "F32", "\0\0\0\0"],
    "scalar as number": [4, "F32", 1.0],
    "scalar with odd name": [4, None, b"\0"],
    "scalar with long name": [4, "F" * 1000, b"\0"],
    "bool of two": [4, "BOOL", b"\x02"],
    "big int that is small": [5, b"\x01"],
    "big int at the edge": [5, b"\0" + b"\xff" * 8],
    "big int at the other edge": [5, b"\x80" + b"\0" * 7],
    "big int of nothing": [5, b""],
    "big int padded": [5, b"\0\0\x80" + b"\0" * 8],
    "big negative int padded": [5, b"\xff\xff\x7f" + b"\xff" * 8],
    "big int of text": [5, "123"],
    "big int as int": [5, 2**63],
    "huge int": 2**64,
    "very negative int": -(2**63) - 1,
    "complex of ints": [6, 1, 2],
    "complex of one": [6, 1.0],
    "complex of bool": [6, True, 0.0],
    "date": [7, "2026-01-02"],
    "no date": [7, "yesterday"],
    "no day": [7, "2026-02-30T00:00:00"],
    "date with Z": [7, "2026-01-02T00:00:00Z"],
    "date with a space": [7, "2026-01-02 00:00:00"],
    "date of week": [7, "2026-W01-2T00:00:00"],
    "date with zero micros": [7, "2026-01-02T00:00:00.000000"],
    "date with minus zero": [7, "2026-01-02T00:00:00-00:00"],
    "date with a long offset": [7, "2026-01-02T00:00:00+24:00"],
    "long date": [7, "2026-01-02T00:00:00" + " " * 10**6],
    "empty date": [7, ""],
    "date as int": [7, 0],
    "datetime object": datetime.datetime(2026, 1, 2),
    "too deep": nested(MAX_DEPTH),
    "far too deep": nested(5_000),
    "long path": key_of(MAX_PATH_NBYTES - 1),
    "long path of the first key": [0, ["k" * (MAX_PATH_NBYTES - 1), "a"], [1, 2]],
    "path long by escapes": [0, ["~" * (MAX_PATH_NBYTES // 2)], [None]],
    "path long by characters": [0, ["ü" * (MAX_PATH_NBYTES // 2)], [None]],
    "long path of an index": [0, ["k" * (MAX_PATH_NBYTES - 3)], [[1, [None] * 11]]],
}


@pytest.mark.parametrize("node", NOT_NODES.values(), ids=NOT_NODES)
def test_what_is_not_a_node_is_refused(node: object) -> None:
    with pytest.raises(FormatError) as caught:
        decode([0, ["x"], [node]], arrays=2, at="$.here")

    assert type(caught.value) is FormatError
    assert caught.value.where["at"] == "$.here"
    assert str(caught.value.where["path"]).startswith("x")
    assert len(str(caught.value)) < 1000 + MAX_PATH_NBYTES


EDGES: dict[str, object] = {
    "deep": nested(MAX_DEPTH - 1),
    "long path": key_of(MAX_PATH_NBYTES - 2),
    "path long by escapes": [0, ["~" * (MAX_PATH_NBYTES // 2 - 1)], [None]],
    "long path of an index": [0, ["k" * (MAX_PATH_NBYTES - 4)], [[1, [None] * 10]]],
    "empty list at a long path": [0, ["k" * (MAX_PATH_NBYTES - 2)], [[1, []]]],
}


@pytest.mark.parametrize("node", EDGES.values(), ids=EDGES)
def test_limits_are_inclusive(node: object) -> None:
    root = [0, ["x"], [node]]

    assert encode(decode(root, arrays=0)) == root


@pytest.mark.parametrize(
    "root", [None, 1, [1, []], [2, []], [3, 0], [0, [1], [None]], [0, [""], [1]]]
)
def test_the_root_of_a_tree_has_names(root: object) -> None:
    with pytest.raises(FormatError, match="expected a dict with non-empty str keys"):
        decode(root, arrays=1)


def test_plain_values_hold_no_arrays() -> None:
    with pytest.raises(FormatError, match="row below 0"):
        decode_plain([1, [[3, 0]]], at="$.hyperparameters")
    with pytest.raises(StateError, match="ArrayRef cannot be stored"):
        encode_plain([ArrayRef(0)])


def test_an_unknown_dtype_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="'F99'") as caught:
        decode([0, ["a/b"], [[4, "F99", b"\0"]]], arrays=0)
    assert caught.value.where == {"at": "$.tree", "path": "a~1b"}


@pytest.mark.parametrize("tag", [8, 9, 2**63])
def test_an_unknown_kind_of_node_is_unsupported(tag: int) -> None:
    with pytest.raises(UnsupportedError, match=f"unknown kind of node {tag}") as caught:
        decode([0, ["a"], [[1, [[tag, None]]]]], arrays=0)
    assert caught.value.where == {"at": "$.tree", "path": "a/0"}


def test_rows_below_the_first_belong_to_another_tree() -> None:
    assert decode([0, ["a"], [[3, 2]]], arrays=3, first=2) == {"a": ArrayRef(2)}
    with pytest.raises(FormatError, match="row 1 is out of order"):
        decode([0, ["a"], [[3, 1]]], arrays=3, first=2)


class Color(enum.IntEnum):
    RED = 1


class Number(float): ...


class Moment(datetime.datetime): ...


class Half(np.float16): ...


class Text(str):
    __slots__ = ()


class Bytes(bytes): ...


class Items(list[object]): ...


class Pair(NamedTuple):
    first: int


class Phase(complex): ...


class Zone(datetime.tzinfo):
    def utcoffset(self, at: datetime.datetime | None) -> datetime.timedelta | None:
        raise AssertionError("a zone's code must not run")


def cycle() -> list[object]:
    items: list[object] = []
    items.append(items)
    return items


def deep(levels: int) -> object:
    value: object = None
    for _ in range(levels):
        value = (value,)
    return value


DAY = datetime.datetime(2026, 1, 2)
NOT_VALUES: dict[str, object] = {
    "set": {1},
    "enum": Color.RED,
    "subclass of float": Number(1),
    "subclass of str": Text("a"),
    "subclass of bytes": Bytes(b"a"),
    "subclass of list": Items(),
    "subclass of complex": Phase(1),
    "named tuple": Pair(1),
    "str subclass as key": {Text("a"): 1},
    "zone with code": datetime.datetime(2026, 1, 2, tzinfo=Zone()),
    "subclass of datetime": Moment(2026, 1, 2),
    "subclass of a scalar": Half(1),
    "array": np.zeros(2),
    "NumPy str": np.str_("a"),
    "NumPy datetime": np.datetime64("2026-01-02"),
    "long double": np.longdouble(1),
    "surrogate": "\ud800",
    "surrogate key": {"\ud800": 1},
    "bool key": {True: 1},
    "tuple key": {(1,): 1},
    "NumPy key": {np.int64(1): 1},
    "huge key": {2**64: 1},
    "two keys of one text": {1: 1, "1": 2},
    "fold": DAY.replace(fold=1),
    "named zone": DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1), "CET")),
    "counter": collections.Counter("a"),
    "cycle": cycle(),
    "deep": deep(MAX_DEPTH),
    "long path": {"k" * MAX_PATH_NBYTES: 1},
    "long index": {"k" * (MAX_PATH_NBYTES - 3): [1]},
}


@pytest.mark.parametrize("value", NOT_VALUES.values(), ids=NOT_VALUES)
@pytest.mark.parametrize("encoder", [encode, encode_plain])
def test_what_decode_would_refuse_is_not_encoded(
    encoder: Callable[[object], object], value: object
) -> None:
    with pytest.raises(StateError) as caught:
        encoder({"x": value})

    assert str(caught.value.where["path"]).startswith("x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("\ud800", "text is not Unicode"),
        (DAY.replace(fold=1), "fixed, unnamed offset, and fold 0"),
        ({"\ud800": 1}, "Unicode str or a 64-bit int as key, got str"),
        ({1: 1, "1": 2}, "same text"),
        (deep(MAX_DEPTH), f"more than {MAX_DEPTH} levels"),
        ({"k" * MAX_PATH_NBYTES: 1}, f"exceed {MAX_PATH_NBYTES} bytes"),
        (np.str_("a"), "'<U1' cannot be stored"),
        ({1}, "set cannot be stored"),
    ],
    ids=lambda x: ascii(x)[:20],
)
def test_the_message_says_what_is_wrong(value: object, message: str) -> None:
    with pytest.raises(StateError, match=message):
        encode({"x": value})


def test_plain_values_may_be_as_deep_as_trees() -> None:
    value = deep(MAX_DEPTH)

    assert decode_plain(encode_plain(value), at="$") == value
    with pytest.raises(StateError, match="levels deep"):
        encode_plain((value,))
    with pytest.raises(FormatError, match="levels deep"):
        decode_plain([2, [encode_plain(value)]], at="$")


@pytest.mark.parametrize("state", [None, [], 1, {1: 2}, {"": 1}])
def test_only_a_dict_with_names_is_a_tree(state: object) -> None:
    with pytest.raises(StateError, match="expected a dict with non-empty str keys"):
        encode(state)
