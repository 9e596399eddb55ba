"""Keep Python's garbage collector from running through objects that are all alive."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


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
