"""The only import of msgpack, with all its options and their reasons."""

from __future__ import annotations

from typing import Any, Final

import msgpack

from ckptfmt.errors import FormatError, IntegrityError

_KEYS: Final = frozenset({str})


def pack(value: object) -> bytes:
    """Encode plain values: None, bool, int64/uint64, float, str, bytes, list, tuple, dict."""
    # use_bin_type: str and bytes stay apart. strict_types is off because tuples are written as
    # arrays on purpose (nodes are built as tuples); subclasses were refused at flatten.
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes | memoryview, at: str) -> Any:
    """Decode one msgpack value that fills `data` exactly.

    Raises:
        FormatError: not msgpack, bytes after the value, ext types, or a length that lies.
        IntegrityError: the value is cut short.
    """
    try:
        # raw=False: str must be UTF-8. strict_map_key=True: keys are str or bytes, so no
        # hash-collision attack by integers. No timestamp or ext type is part of the format.
        # Limits default to len(data), so a length that lies cannot allocate.
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=True,
            ext_hook=_no_ext,
            object_pairs_hook=_unique,
        )
    except msgpack.OutOfData as error:
        raise IntegrityError("msgpack value is cut short", at=at, nbytes=len(data)) from error
    except (
        msgpack.ExtraData,
        msgpack.FormatError,
        msgpack.StackError,
        ValueError,
        RecursionError,
    ) as error:
        raise FormatError(f"not a msgpack value: {error}", at=at, nbytes=len(data)) from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Build a map; a key that is no str or comes twice has no one meaning."""
    found = dict(pairs)
    if len(found) != len(pairs) or not _KEYS.issuperset(map(type, found)):
        raise ValueError("map keys must be distinct str")
    return found


def _no_ext(code: int, data: bytes) -> object:
    raise ValueError(f"ext type {code} of {len(data)} bytes is not part of the format")
