"""The only import of msgpack, with all its options and their reasons."""

from __future__ import annotations

from collections.abc import Container, Mapping
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


class Packed(bytes):
    """One value in its msgpack form, decoded when it is asked for."""

    __slots__ = ()


def pack_fields(fields: Mapping[str, object]) -> bytes:
    """Encode a map; its `Packed` values go in as they are."""
    parts: list[bytes] = [msgpack.Packer().pack_map_header(len(fields))]
    for name, value in fields.items():
        parts += pack(name), value if isinstance(value, Packed) else pack(value)
    return b"".join(parts)


def unpack(data: bytes | memoryview, at: str) -> Any:
    """Decode one msgpack value that fills `data` exactly.

    Raises:
        FormatError: not msgpack, bytes after the value, ext types, or a length that lies.
        IntegrityError: the value is cut short.
    """
    try:
        # Limits default to len(data), so a length that lies cannot allocate.
        return msgpack.unpackb(data, **_OPTIONS)
    except msgpack.OutOfData as error:
        raise IntegrityError("msgpack value is cut short", at=at, nbytes=len(data)) from error
    except _REFUSED as error:
        raise FormatError(f"not a msgpack value: {error}", at=at, nbytes=len(data)) from error


def unpack_fields(data: bytes, at: str, packed: Container[str]) -> dict[str, Any]:
    """Decode a map that fills `data` exactly; values named in `packed` stay as they are.

    Of those only the extent is known: `unpack` says what else may be wrong with them.

    Raises:
        FormatError: as in `unpack`, or it is no map with distinct str as keys.
    """
    reader = msgpack.Unpacker(max_buffer_size=len(data), **_OPTIONS)
    pairs: list[tuple[Any, Any]] = []
    try:
        reader.feed(data)
        for _ in range(reader.read_map_header()):
            name = reader.unpack()
            if type(name) is str and name in packed:
                begin = reader.tell()
                reader.skip()
                pairs.append((name, Packed(data[begin : reader.tell()])))
            else:
                pairs.append((name, reader.unpack()))
        if reader.tell() != len(data):
            raise ValueError("bytes after the value")
        return _unique(pairs)
    except (msgpack.OutOfData, *_REFUSED) as error:
        raise FormatError(f"not a msgpack map: {error}", at=at, nbytes=len(data)) from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Build a map; a key that is no str or comes twice has no one meaning."""
    found = dict(pairs)
    if len(found) != len(pairs) or not _KEYS.issuperset(map(type, found)):
        raise ValueError("map keys must be distinct str")
    return found


def _no_ext(code: int, data: bytes) -> object:
    raise ValueError(f"ext type {code} of {len(data)} bytes is not part of the format")


# raw=False: str must be UTF-8. strict_map_key=True: keys are str or bytes, so no hash-collision
# attack by integers. No timestamp or ext type is part of the format.
_OPTIONS: Final[dict[str, Any]] = {
    "raw": False,
    "strict_map_key": True,
    "use_list": True,
    "ext_hook": _no_ext,
    "object_pairs_hook": _unique,
}
_REFUSED: Final = (
    msgpack.ExtraData,
    msgpack.FormatError,
    msgpack.StackError,
    ValueError,
    TypeError,
    RecursionError,
)
