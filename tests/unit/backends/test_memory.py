"""What is particular to the backend in memory."""

from __future__ import annotations

import pytest

from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import ConflictError


def test_the_clock_is_that_of_the_storage() -> None:
    ticks = iter([1.0, 2.0, 3.0])
    backend = MemoryBackend(clock=lambda: next(ticks))

    backend.create("a/1", b"1")
    backend.write("a/2", [b"2"], nbytes=1)
    assert [entry.modified for entry in backend.list("a").values()] == [1.0, 2.0]
    backend.replace("a/1", b"1")

    assert backend.list("a")["a/1"].modified == 3.0


def test_reads_and_maps_share_the_stored_bytes() -> None:
    backend = MemoryBackend()
    backend.create("a/1", b"12345")

    assert backend.map("a/1", 0, 5).obj is backend.map("a/1", 1, 2).obj


def test_a_taken_key_is_found_out_before_the_first_block() -> None:
    backend = MemoryBackend()
    backend.create("a/1", b"1")

    with pytest.raises(ConflictError):
        backend.write("a/1", (pytest.fail("asked for a block") for _ in range(1)), nbytes=1)
