"""Fresh memory: at a wanted alignment, and provided by the kernel before it is filled."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

ALIGNMENT: Final = 64  # a cache line, and more than any dtype asks for
PAGE_NBYTES: Final = 4096  # the smallest of any machine that matters; larger ones cost nothing


def aligned(nbytes: int, offset: int = 0) -> npt.NDArray[np.uint8]:
    """Return fresh bytes whose address is aligned as `offset` is."""
    memory: npt.NDArray[np.uint8] = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = (offset - memory.ctypes.data) % ALIGNMENT
    return memory[skip : skip + nbytes]


def provide(memory: memoryview) -> None:
    """Write to each page of fresh memory, so that the kernel makes it now and in this thread.

    A client of storage that fills it later does so for all requests in one thread, holding the
    GIL: there, every page that the kernel had to make would stop all the others.
    """
    np.frombuffer(memory, np.uint8)[::PAGE_NBYTES].fill(0)
