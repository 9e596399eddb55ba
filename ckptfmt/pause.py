"""Keep Python's garbage collector from running through objects that are all alive."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Final

SELDOM: Final = 50_000  # new containers between two looks of the collector

_LOCK: Final = threading.Lock()
_HELD: Final[list[int]] = []  # what the threshold was, for each who is within `gc_seldom`


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Switch the collector off for a short piece of pure computation.

    Making a hundred thousand small tuples triggers it again and again, for nothing: a third of
    the time of a save with many arrays. Never held over I/O, so that the rest of the program
    does not go without. Nested and concurrent use is harmless: whoever found it on switches it
    on again.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def gc_seldom() -> Iterator[None]:
    """Have the collector look after many new objects instead of some hundred.

    For work that waits for storage and keeps what it makes, such as a listing: a tenth of its
    processor time went into objects that were all alive. Garbage of the rest of the program
    still goes. Nested and concurrent use is harmless; a threshold that somebody else sets
    meanwhile stays.
    """
    with _LOCK:
        own, *others = gc.get_threshold()
        if not _HELD and 0 < own < SELDOM:
            gc.set_threshold(SELDOM, *others)
        _HELD.append(own)
    try:
        yield
    finally:
        with _LOCK:
            first = _HELD[0]
            _HELD.pop()
            own, *others = gc.get_threshold()
            if not _HELD and own == SELDOM:
                gc.set_threshold(first, *others)
