"""PyTorch's older files (0.1.10 to 1.5): pickles in a row, then the raw storages."""

from __future__ import annotations

import functools
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.pickles import Machine
from ckptfmt.migrate.source import Contents, named
from ckptfmt.migrate.tensors import Storage, Tensors

NUMBER: Final = 0x1950A86A20F9469CFC6C
_NUMBER: Final = b"\x8a\n" + NUMBER.to_bytes(10, "little") + b"."
_FRAME: Final = b"\x95" + len(_NUMBER).to_bytes(8, "little")
MAGICS: Final = b"\x80\2" + _NUMBER, b"\x80\3" + _NUMBER, b"\x80\4" + _FRAME + _NUMBER
PROTOCOL: Final = 1001


def read(place: Place) -> Contents | None:
    """Return what one file holds, or None."""
    span = place.span()
    if span is None or not any(span.head(len(magic)) == magic for magic in MAGICS):
        return None
    root = load(span)
    lightning = isinstance(root, dict) and "pytorch-lightning_version" in root
    version = named(root["pytorch-lightning_version"])[:40] if lightning else ""
    return Contents(
        format="lightning-legacy" if lightning else "torch-legacy",
        root=root,
        files=(span.name,),
        producer=f"PyTorch Lightning {version}" if lightning else "PyTorch before 1.6",
    )


def load(span: Span) -> Any:
    """Return the object in a stream.

    Raises:
        FormatError: malformed or truncated.
    """
    tensors = Tensors(span.name)
    machine = Machine(
        span.data, table=tensors.table(), persistent=tensors.persistent, file=span.name
    )
    if machine.load() != NUMBER or machine.load() != PROTOCOL:
        raise FormatError("unknown version of PyTorch's stream", file=span.name)
    match machine.load():
        case {"little_endian": bool(little), **_rest}:
            tensors.big_endian = not little
        case _:
            raise FormatError("malformed description of the system", file=span.name)
    root = machine.load()
    keys = machine.load()
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise FormatError("malformed list of storages", file=span.name)
    at = machine.at
    for key in map(str, keys):
        storage = tensors.storages.get(key)
        if storage is None:
            raise FormatError("a storage that nothing uses", file=span.name, storage=key)
        count = int.from_bytes(
            span.cut(at, 8, "a storage"), "big" if tensors.big_endian else "little"
        )
        if count != storage.count:
            raise FormatError(
                "a storage is longer or shorter than the pickle says",
                file=span.name,
                offset=at,
                expected=storage.count,
                found=count,
            )
        storage.load = functools.partial(_cut, span, at + 8, storage)
        storage.load()  # the file must reach so far
        at += 8 + storage.nbytes
    if at != span.nbytes:
        raise FormatError("bytes behind the last storage", file=span.name, offset=at)
    tensors.check()
    return root


def _cut(span: Span, at: int, storage: Storage) -> memoryview:
    return span.cut(at, storage.nbytes, f"storage {storage.key}")
