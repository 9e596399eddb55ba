"""What a checkpoint says of its arrays, however it is asked."""

from __future__ import annotations

import numpy as np

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.reports import ArrayInfo

FIELDS = ("path", "dtype", "shape", "aliases", "nbytes", "stored_nbytes", "chunks", "digests")


def said(info: ArrayInfo) -> list[object]:
    return [getattr(info, name) for name in FIELDS]


def test_rows_say_the_same_one_by_one_and_together() -> None:
    tied = np.zeros((3, 4), "<f4")
    state = {
        "model": {"w": tied, "b": np.float64(2), "empty": np.zeros((0, 5), "u1")},
        "more": [tied, np.arange(7), tied],
    }
    arrays = ckptfmt.open(MemoryBackend(), codec="zstd").save(state).arrays

    together = dict(arrays.items())
    assert list(together) == list(arrays) == ["model/w", "model/empty", "more/1"]
    assert len(arrays) == len(arrays.values()) == len(arrays.items()) == 3
    assert [said(info) for info in arrays.values()] == [said(arrays[p]) for p in arrays]
    assert [said(info) for info in together.values()] == [said(arrays[p]) for p in arrays]
    assert said(arrays["model/w"])[:5] == ["model/w", "F32", (3, 4), ("more/0", "more/2"), 48]
    assert said(arrays["model/empty"])[1:] == ["U8", (0, 5), (), 0, 0, 0, ()]
    assert "more/1" in arrays
    assert "more/0" not in arrays  # tied: its array is the one at model/w
