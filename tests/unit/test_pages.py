"""Fresh memory: aligned, and there before storage fills it."""

from __future__ import annotations

import os
import pathlib
import sys

import numpy as np
import pytest

from ckptfmt._engine import pages

NBYTES = 2**26


@pytest.mark.parametrize("offset", [0, 1, 63, 64, 4097])
def test_memory_is_aligned_as_its_offset(offset: int) -> None:
    found = pages.aligned(1000, offset)

    assert found.nbytes == 1000
    assert (found.ctypes.data - offset) % pages.ALIGNMENT == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_page_is_there_afterwards() -> None:
    memory = np.empty(NBYTES, np.uint8)
    before = _resident()

    pages.provide(memory.data)

    assert _resident() - before > 0.95 * NBYTES


def _resident() -> int:
    count = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return count * os.sysconf("SC_PAGE_SIZE")
