"""The checks that all backends share."""

from __future__ import annotations

import itertools

import pytest

from ckptfmt.backends._keys import exactly, flat, inside
from ckptfmt.errors import BackendError, IntegrityError


def test_blocks_beyond_the_announced_length_are_not_taken() -> None:
    """They could be endless, and none of their bytes may be written."""
    taken = []

    with pytest.raises(BackendError) as caught:
        taken.extend(map(bytes, exactly("k", itertools.repeat(b"123"), 8)))

    assert caught.value.where == {"key": "k", "expected": 8, "found": 9}
    assert taken == [b"123", b"123"]


def test_empty_blocks_are_left_out() -> None:
    assert [bytes(view) for view in exactly("k", [b"", b"1", b""], 1)] == [b"1"]


@pytest.mark.parametrize(
    ("offset", "nbytes", "size", "expected"),
    [(0, None, 0, 0), (3, None, 5, 2), (5, None, 5, 0), (5, 0, 5, 0), (0, 5, 5, 5)],
)
def test_the_length_of_a_range(
    offset: int, nbytes: int | None, size: int, expected: int
) -> None:
    assert inside("k", offset, nbytes, size) == expected


@pytest.mark.parametrize(
    ("offset", "nbytes", "size"), [(6, None, 5), (6, 0, 5), (0, 6, 5), (5, 1, 5)]
)
def test_a_range_beyond_the_end_says_what_was_found(
    offset: int, nbytes: int | None, size: int
) -> None:
    with pytest.raises(IntegrityError) as caught:
        inside("k", offset, nbytes, size)

    assert caught.value.where["key"] == "k"
    assert caught.value.where["found"] == size


def test_a_view_is_flat_and_shares_memory() -> None:
    data = bytearray(8)
    view = flat(memoryview(data).cast("I", [2]))

    view[0] = 1

    assert view.format == "B"
    assert data[0] == 1
