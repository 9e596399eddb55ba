"""A lazy array answers an index with what NumPy would answer, kind and all."""

from __future__ import annotations

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend


@pytest.mark.parametrize("index", [(0, ...), (..., 0, 1), (0, ..., 1), 0, (0, 1), ..., (1, 0)])
def test_an_ellipsis_makes_an_array_of_what_would_be_a_scalar(index: object) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    lazy = ckptfmt.open(MemoryBackend()).save({"a": array})["a"]

    found, expected = lazy[index], array[index]  # type: ignore[index]

    assert type(found) is type(expected)
    assert np.array_equal(found, expected)
    assert found.dtype == expected.dtype
