"""`assert_same` tells apart whatever a checkpoint must keep apart, and says where."""

from __future__ import annotations

import collections
import datetime
import pathlib
import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, find, settings

from ckptfmt import tree
from ckptfmt.dtypes import DTYPES
from ckptfmt.testing import strategies
from ckptfmt.testing.strategies import Array, assert_same, same

W = np.arange(6, dtype="f4").reshape(2, 3)
DAY = datetime.datetime(2026, 1, 2)
NAN = [
    struct.unpack("<d", struct.pack("<Q", bits))[0]
    for bits in (0x7FF8 << 48, (0x7FF8 << 48) + 1)
]

DIFFERENT: list[tuple[object, object]] = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    (NAN[0], NAN[1]),
    (complex(0, 0.0), complex(0, -0.0)),
    ("a", b"a"),
    (None, False),
    ([1], (1,)),
    ([1], [1, 2]),
    ([1], [2]),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({1: 1}, {"1": 1}),
    ({1: 1}, {True: 1}),
    (DAY, DAY.replace(fold=1)),
    (DAY.replace(tzinfo=datetime.UTC), DAY),
    (np.float32(1), np.float64(1)),
    (np.float64(1), 1.0),
    (np.float32(0.0), np.float32(-0.0)),
    (ml_dtypes.bfloat16(1), np.float16(1)),
    (W, W.tolist()),
    (W, W.astype("f8")),
    (W, W.view("i4")),
    (W, W + 1),
    (W, W.T),
    (W, W.reshape(3, 2)),
    (W[0, 0, ...], W[0, :1]),
    (np.array(1.0, "f4"), np.float32(1)),
    ([W, W], [W, W.copy()]),
    ([W, W.copy()], [W, W]),
    ({"a": W, "b": W, "c": W.copy()}, {"a": W, "b": W.copy(), "c": W}),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT, ids=repr)
def test_values_that_differ_are_not_the_same(a: object, b: object) -> None:
    assert not same({"x": [a]}, {"x": [b]})
    assert not same(b, a)
    assert same(a, a)


def test_what_a_checkpoint_does_not_keep_counts_as_the_same(tmp_path: pathlib.Path) -> None:
    mapped = np.memmap(tmp_path / "x", "f4", "w+", shape=(2, 3))
    mapped[:] = W

    assert_same(W, mapped)
    assert_same(W, W.astype(">f4"))
    assert_same(W, np.asfortranarray(W))
    assert_same(np.int64(1), np.longlong(1))
    assert_same({"a": {"b": 1}}, collections.OrderedDict(a=collections.defaultdict(int, b=1)))


def test_the_message_names_the_first_path() -> None:
    a = {"model": {"a/b": [1, {"w": W, "v": W[0]}]}}
    b = {"model": {"a/b": [1, {"w": W + 1, "v": W[1]}]}}

    with pytest.raises(AssertionError) as caught:
        assert_same(a, b)
    assert "at 'model/a~1b/1/w': F32 arrays of shape (2, 3) differ in bits" in str(caught.value)
    with pytest.raises(AssertionError, match="at the root: type int != str"):
        assert_same(1, "1")


MANY = settings(
    max_examples=5000, phases=[Phase.generate]
)  # one is enough, the smallest or not
KINDS: dict[str, Callable[[Array], bool]] = {
    "0-d": lambda a: a.ndim == 0,
    "empty": lambda a: a.size == 0 and a.ndim == 2,
    "big-endian": lambda a: a.dtype.byteorder == ">",
    "strided": lambda a: a.size > 1 and not a.flags.c_contiguous,
    "reversed": lambda a: a.size > 1 and min(a.strides) < 0,
    "broadcast": lambda a: a.size > 1 and 0 in a.strides,
    "read-only": lambda a: not a.flags.writeable,
    "not aligned": lambda a: not a.flags.aligned,
    "ml_dtypes": lambda a: a.dtype == ml_dtypes.bfloat16,
    "NaN": lambda a: a.dtype.kind == "f" and bool(np.isnan(a).any()),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_array_is_drawn(kind: Callable[[Array], bool]) -> None:
    find(strategies.arrays(), kind, settings=MANY)


def test_scalars_of_every_dtype_are_drawn() -> None:
    for row in DTYPES.values():
        scalar = find(
            strategies.scalars(), lambda s, row=row: s.dtype == row.numpy, settings=MANY
        )
        assert type(scalar) is row.numpy.type


def test_tied_and_overlapping_arrays_are_drawn() -> None:
    flat = strategies.trees().map(tree.flatten)

    find(flat, lambda flat: any(leaf.aliases for leaf in flat.leaves), settings=MANY)
    find(flat, lambda flat: flat.overlaps != (), settings=MANY)
