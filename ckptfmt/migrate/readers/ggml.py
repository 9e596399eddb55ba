"""The formats of ggml before GGUF: told, and refused with the way out.

Each program that wrote them had a header of its own, so the bytes do not tell where arrays are.
"""

from __future__ import annotations

from typing import Final

from ckptfmt.errors import UnsupportedError
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.source import Contents

MAGICS: Final = b"lmgg", b"fmgg", b"tjgg", b"algg"  # ggml, ggmf, ggjt, ggla, little-endian


def read(place: Place) -> Contents | None:
    """Refuse a file of that kind; return None for all others.

    Raises:
        UnsupportedError: it is one.
    """
    span = place.span()
    if span is None or span.head(4) not in MAGICS:
        return None
    raise UnsupportedError(
        "ggml before GGUF: each program had a header of its own; convert it to GGUF with a "
        "script of that program, or migrate what it was made from",
        file=span.name,
    )
