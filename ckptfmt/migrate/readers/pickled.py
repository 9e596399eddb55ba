"""Plain pickles: of NumPy or JAX arrays, of settings, of whatever was at hand."""

from __future__ import annotations

from typing import Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate import joblibs
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.source import Contents, Lazy, walk

BEGINS: Final = tuple(bytes([0x80, protocol]) for protocol in (2, 3, 4, 5))
OLD: Final = (b"(dp", b"(lp", b"cnumpy", b"ccopy_reg", b"(i", b"c__", b"}q", b"]q", b"(tp")
# What the classes in it begin with → format, producer.
_KINDS: Final = (
    (("joblib.numpy_pickle.",), "joblib", "joblib"),
    (("jax.", "jaxlib."), "jax-pickle", "JAX"),
)


def read(place: Place) -> Contents | None:
    """Return what one pickle holds, or None; one without an array is no checkpoint.

    Raises:
        FormatError: malformed, or bytes follow it.
    """
    span = place.span()
    if span is None or not span.head(16).startswith((*BEGINS, *OLD)):
        return None
    machine = joblibs.machine(span)
    root = machine.load()
    if machine.at != span.nbytes:
        raise FormatError("bytes behind the pickle", file=span.name, offset=machine.at)
    arrays = any(isinstance(leaf, Lazy | np.generic) for _, leaf in walk(root))
    if not arrays:
        return None
    kind, producer = next(
        (row[1:] for row in _KINDS if any(name.startswith(row[0]) for name in machine.names)),
        ("numpy-pickle", "Python"),
    )
    return Contents(format=kind, root=root, files=(span.name,), producer=producer)
