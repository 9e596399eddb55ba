"""How far apart two arrays are."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from ckptfmt.cli.numeric import Difference, blocks, compare

NAN, INF = math.nan, math.inf


def difference(a: object, b: object, dtype: object = "f4") -> Difference:
    one, other = np.array(a, dtype=dtype), np.array(b, dtype=dtype)  # type: ignore[call-overload]
    return compare(one, other, (slice(None),) * one.ndim)


def test_equal_bits_are_no_difference() -> None:
    assert difference([1, NAN, -0.0], [1, NAN, -0.0]) == Difference(same_bits=True)


def test_the_largest_distance_is_found() -> None:
    found = difference([1.0, 2.0, 4.0], [1.0, 2.5, 3.0])

    assert found == Difference(same_bits=False, differing=2, max_abs=1.0, max_rel=0.25)


def test_other_bits_of_the_same_value_are_no_difference_in_value() -> None:
    assert difference([0.0], [-0.0]) == Difference(same_bits=False)


def test_nan_on_both_sides_is_equal_whatever_its_bits() -> None:
    a = np.array([0x7FC00000, 0x3F800000], dtype="u4").view("f4")
    b = np.array([0x7FC00001, 0x3F800000], dtype="u4").view("f4")

    assert compare(a, b, (slice(None),)) == Difference(same_bits=False)


def test_nan_on_one_side_is_counted_and_hides_no_other_difference() -> None:
    found = difference([NAN, 1.0, NAN, 8.0], [1.0, NAN, NAN, 4.0])

    assert (found.differing, found.nan_in_a, found.nan_in_b) == (3, 1, 1)
    assert (found.max_abs, found.max_rel) == (4.0, 0.5)


@pytest.mark.parametrize(("a", "b"), [(INF, 1.0), (INF, -INF), (0.0, -INF)])
def test_infinite_distances(a: float, b: float) -> None:
    found = difference([a], [b])

    assert (found.differing, found.max_abs, found.max_rel) == (1, INF, INF)


def test_the_same_infinity_is_equal() -> None:
    assert difference([INF, 1.0], [INF, 2.0]).max_abs == 1.0


@pytest.mark.parametrize(
    ("dtype", "a", "b", "distance"),
    [
        ("i8", 2**63 - 1, -(2**63), 2**64 - 1),
        ("u8", 0, 2**64 - 1, 2**64 - 1),
        ("i8", 2**60, 2**60 + 1, 1),  # lost in float64
        ("i1", -128, 127, 255),
        ("?", True, False, 1),
        (ml_dtypes.int4, -8, 7, 15),
        (ml_dtypes.uint4, 15, 0, 15),
    ],
)
def test_distances_of_integers_are_exact(dtype: object, a: int, b: int, distance: int) -> None:
    found = difference([a], [b], dtype)

    assert found.max_abs == distance
    assert type(found.max_abs) is int


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "f2", "c8"])
def test_other_dtypes_are_compared_by_value(dtype: object) -> None:
    assert difference([1.0, 1.25], [1.0, 2.5], dtype) == Difference(
        same_bits=False, differing=1, max_abs=1.25, max_rel=0.5
    )


def test_complex_numbers_are_compared_whole() -> None:
    found = difference([3 + 4j], [3 - 4j], "c16")

    assert (found.max_abs, found.max_rel) == (8.0, 1.6)


def test_two_dtypes_are_compared_by_value() -> None:
    a, b = np.array([1, 2], dtype="f4"), np.array([1, 2.5], dtype="f8")

    assert compare(a, b, (slice(None),)).max_abs == 0.5


def test_arrays_without_elements_and_without_axes() -> None:
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))) == Difference(same_bits=True)
    assert difference(1.0, 3.0).max_abs == 2.0


@pytest.mark.parametrize("limit", [1, 8, 40, 100, 10_000])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 3, 4), (1, 9, 2), (4, 0, 2)])
def test_blocks_cover_an_array_once_within_the_limit(
    shape: tuple[int, ...], limit: int
) -> None:
    touched = np.zeros(shape, dtype="i8")

    for index in blocks(shape, 8, limit):
        touched[index] += 1
        assert touched[index].nbytes <= max(limit, 8)

    assert (touched == 1).all()


def test_differences_of_blocks_add_up() -> None:
    a = Difference(same_bits=True)
    b = Difference(same_bits=False, differing=2, max_abs=3, max_rel=0.5, nan_in_a=1, nan_in_b=4)

    assert a.merged(b) == b
    assert b.merged(b).differing == 4
    assert b.merged(b).nan_in_b == 8
    assert not b.merged(a).same_bits
