"""TensorFlow's checkpoints: V2 (`x.index`, `x.data-…`), V1 (one table a shard), SavedModels.

Protocols: tensorflow/core/protobuf/tensor_bundle.proto and saved_tensor_slice.proto. Names are
kept as they stand; the graph of a SavedModel is not looked at.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, IntegrityError, UnsupportedError, UsageError
from ckptfmt.migrate import sstable, wire
from ckptfmt.migrate.boxes import Slice, joined
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.source import Array, Contents, Lazy

INDEX: Final = ".index"
VARIABLES: Final = "variables/variables.index"
STRING: Final = 7
TYPES: Final[dict[int, Any]] = {
    1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 8: "c8", 9: "i8", 10: "?", 11: "i1",
    12: "u1", 13: "i4", 14: ml_dtypes.bfloat16, 15: "i2", 16: "u2", 17: "u2", 18: "c16",
    19: "f2", 22: "u4", 23: "u8", 24: ml_dtypes.float8_e5m2, 25: ml_dtypes.float8_e4m3fn,
}  # fmt: skip
# Of a TensorProto: field → how its values stand there.
_VALUES: Final = {5: "<f4", 6: "<f8", 9: "<c8", 12: "<c16"}
_INTEGERS: Final = 7, 10, 11, 13, 16, 17
_PART: Final = re.compile(r"(?P<stem>.*)\.data-\d{5}-of-\d{5}", re.S)
_SHARD: Final = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})", re.S)
# Names that optimizers of TensorFlow 1 and 2 give to their slots.
_SLOT: Final = re.compile(
    r"(^|/)(optimizer|\.OPTIMIZER_SLOT)/|/(Adam|RMSProp|Momentum|Adagrad|Adadelta|Ftrl)(_\d+)?$"
    r"|(^|/)beta[12]_power(_\d+)?$"
)

_SLICED: Final = b"\0"  # begins the key of a slice; its name ends with _END
_END: Final = b"\0\1"


def read(place: Place) -> Contents | None:
    """Return the variables of one checkpoint, named itself or by any of its files, or None."""
    folder = place.folder
    if place.name is None:
        name = _index_in(folder)
    else:
        part = _PART.fullmatch(place.name)
        name = (
            f"{part['stem']}{INDEX}"
            if part and folder.has(f"{part['stem']}{INDEX}")
            else (place.name)
        )
    if name is None:
        return None
    span = folder.span(name)
    if not sstable.is_table(span):
        return None
    rows = dict(sstable.rows(span))
    head = wire.message(rows.get(b"", memoryview(b"")))
    first = head.get(1, [1])[0]
    if isinstance(first, memoryview):
        return _first_version(folder, name)
    return _Bundle(folder, name, rows, head).contents()


def _index_in(folder: Names) -> str | None:
    """Return the index in a folder, or in the folder of a SavedModel's variables."""
    names = [n for n in folder.names() if sstable.is_table(folder.span(n))]
    stems = {found["stem"] if (found := _SHARD.fullmatch(n)) else n: n for n in names}
    if len(stems) > 1:
        raise UsageError("several checkpoints in one folder: name one", found=sorted(stems))
    if stems:
        return next(iter(stems.values()))
    return VARIABLES if folder.has(VARIABLES) else None


class _Bundle:
    """Version 2."""

    def __init__(
        self,
        folder: Names,
        name: str,
        rows: dict[bytes, memoryview],
        head: dict[int, list[Any]],
    ) -> None:
        self._folder = folder
        self._name = name
        self._rows = rows
        self._sliced: dict[bytes, list[memoryview]] | None = None
        self._shards = wire.integer(head, 1, 1)
        self._order = ">" if wire.integer(head, 2) == 1 else "<"
        if not 1 <= self._shards <= 99999:
            raise FormatError("malformed number of shards", file=name, found=self._shards)

    def contents(self) -> Contents:
        """Return all variables by name."""
        root: dict[str, Any] = {}
        for key, value in self._rows.items():
            if key and not key.startswith(_SLICED):
                name = _decoded(key, self._name)
                root[name] = self._entry(name, wire.message(value))
        files = [self._file(n) for n in range(self._shards)]
        return Contents(
            format="tf-v2",
            root=root,
            files=(self._name, *files),
            producer="TensorFlow",
            roles=_roles(root),
        )

    def _file(self, shard: int) -> str:
        stem = self._name.removesuffix(INDEX)
        return f"{stem}.data-{shard:05d}-of-{self._shards:05d}"

    def _entry(self, name: str, found: dict[int, list[Any]]) -> Any:
        if 7 in found:
            return self._partitioned(name, found)
        shard = wire.integer(found, 3)
        if shard >= self._shards:
            raise FormatError("no such shard", file=self._name, path=name, found=shard)
        span = self._folder.inside(self._file(shard), said_by=self._name)
        shape = _shape(found.get(2, [memoryview(b"")])[-1])
        nbytes = wire.integer(found, 5)
        data = span.cut(wire.integer(found, 4), nbytes, name)
        kind = wire.integer(found, 1)
        if kind == STRING:
            return _strings(data, shape)
        dtype = _dtype(kind, name)
        if self._order == ">" and dtype.itemsize > 1:
            if dtype.kind == "V":
                raise UnsupportedError("big-endian bfloat16", file=self._name, path=name)
            dtype = dtype.newbyteorder(">")
        if math.prod(shape) * dtype.itemsize != nbytes:
            raise FormatError("shape and length disagree", file=self._name, path=name)
        crc = wire.integer(found, 6)

        def load() -> Array:
            if sstable.masked(sstable.crc32c(data)) != crc:
                raise IntegrityError("a variable's CRC is wrong", file=span.name, path=name)
            return np.frombuffer(data, dtype).reshape(shape)

        return Lazy(dtype, shape, load)

    def _partitioned(self, name: str, found: dict[int, list[Any]]) -> Lazy:
        """Return a variable that is stored in slices, each as an entry of its own.

        Keys of slices begin with the name and sort as their (start, length) do, so that order
        alone tells which is which; shapes must agree.
        """
        shape = _shape(found.get(2, [memoryview(b"")])[-1])
        places = sorted(_extents(one, len(shape), name) for one in found[7])
        rows = self._parts().get(name.encode(), [])
        if len(rows) != len(places):
            raise FormatError(
                "slices of a variable are missing",
                path=name,
                expected=len(places),
                found=len(rows),
            )
        slices = []
        for place, row in zip(places, rows, strict=True):
            start = tuple(begin for begin, _ in place)
            size = tuple(
                n if length < 0 else length for n, (_, length) in zip(shape, place, strict=True)
            )
            inner = wire.message(row)
            array = None if 7 in inner else self._entry(name, inner)
            if not isinstance(array, Lazy) or array.shape != size:
                raise FormatError("a slice has another shape", file=self._name, path=name)
            slices.append(Slice(start, array))
        return joined(name, shape, slices)

    def _parts(self) -> dict[bytes, list[memoryview]]:
        """Return the entries of slices by the name of their variable, in order."""
        if self._sliced is None:
            self._sliced = {}
            for key, value in self._rows.items():
                if key.startswith(_SLICED):
                    name = key[1 : max(key.find(_END, 1), 1)]
                    self._sliced.setdefault(name, []).append(value)
        return self._sliced


def _extents(proto: Any, axes: int, name: str) -> tuple[tuple[int, int], ...]:
    """Return (start, length) of a slice on each axis; a length of -1 is the whole axis."""
    rows = [wire.message(extent) for extent in wire.message(proto).get(1, [])]
    if len(rows) != axes:
        raise FormatError("slice and shape disagree", path=name, expected=axes, found=len(rows))
    return tuple((wire.integer(row, 1), wire.integer(row, 2, -1)) for row in rows)


def _first_version(folder: Names, name: str) -> Contents:
    """Return the variables of all shards of version 1."""
    found = _SHARD.fullmatch(name)
    files = [name]
    if found:
        count = int(found["count"])
        files = [f"{found['stem']}-{n:05d}-of-{count:05d}" for n in range(min(count, 99999))]
    slices: dict[str, list[Any]] = {}
    shapes: dict[str, Any] = {}
    for file in files:
        span = folder.inside(file, said_by=name)
        if not sstable.is_table(span):
            raise FormatError("a shard is no table", file=file)
        rows = dict(sstable.rows(span))
        head = wire.message(rows.pop(b"", memoryview(b"")))
        described = wire.message(head.get(1, [memoryview(b"")])[-1])
        shapes |= _described(described.get(1, []))
        for value in rows.values():
            for slice_ in wire.message(value).get(2, []):
                _put(slices, wire.message(slice_), shapes, file)
    if missing := shapes.keys() - slices.keys():
        raise FormatError("variables without values", file=name, first=min(missing))
    root = {
        key: parts if shapes[key][0] == STRING else joined(key, shapes[key][1], parts)
        for key, parts in slices.items()
    }
    return Contents(
        format="tf-v1", root=root, files=tuple(files), producer="TensorFlow", roles=_roles(root)
    )


def _described(rows: Iterable[Any]) -> Iterable[tuple[str, tuple[int, Any]]]:
    for row in rows:
        found = wire.message(row)
        shape = _shape(found.get(2, [memoryview(b"")])[-1])
        yield wire.text(found, 1), (wire.integer(found, 3), shape)


def _put(
    slices: dict[str, list[Any]], found: dict[int, list[Any]], shapes: dict[str, Any], file: str
) -> None:
    name = wire.text(found, 1)
    if name not in shapes:
        raise FormatError("a variable that is not described", file=file, path=name)
    kind, shape = shapes[name]
    extents = wire.message(found.get(2, [memoryview(b"")])[-1]).get(1, [])
    if extents and len(extents) != len(shape):
        raise FormatError("slice and shape disagree", file=file, path=name)
    parts = [wire.message(extent) for extent in extents] or [{} for _ in shape]
    start = tuple(wire.integer(part, 1) for part in parts)
    size = tuple(wire.integer(part, 2, n) for part, n in zip(parts, shape, strict=True))
    proto = wire.message(found.get(3, [memoryview(b"")])[-1])
    if kind == STRING:
        slices.setdefault(name, []).extend(bytes(item) for item in proto.get(8, []))
        return
    array = _values(proto, _dtype(kind, name), math.prod(size), name)
    slices.setdefault(name, []).append(Slice(start, Lazy.of(array.reshape(size))))


def _values(proto: dict[int, list[Any]], dtype: np.dtype[Any], size: int, name: str) -> Array:
    """Return the values of a TensorProto, which stand in one of many fields."""
    if 4 in proto:
        raw = proto[4][-1]
        if not isinstance(raw, memoryview) or len(raw) != size * dtype.itemsize:
            raise FormatError("shape and length disagree", path=name)
        return np.frombuffer(raw, dtype.newbyteorder("<"))
    for field, spec in _VALUES.items():
        if field in proto:
            raw = b"".join(bytes(part) for part in proto[field])
            return _fitting(np.frombuffer(raw, spec).astype(dtype), size, name)
    for field in _INTEGERS:
        if field in proto:
            numbers = [n for part in proto[field] for n in _numbers(part)]
            words = np.array(numbers, np.uint64)
            if dtype.kind == "f" or (dtype.itemsize == 2 and dtype.kind == "V"):
                return _fitting(words.astype(np.uint16).view(dtype), size, name)
            return _fitting(words.astype(dtype), size, name)
    raise FormatError("a variable without values", path=name)


def _numbers(part: Any) -> Iterable[int]:
    if isinstance(part, int):
        yield part
        return
    at = 0
    while at < len(part):
        value, at = wire.varint(part, at)
        yield value


def _fitting(values: Array, size: int, name: str) -> Array:
    if len(values) != size:
        raise FormatError(
            "shape and number of values disagree", path=name, expected=size, found=len(values)
        )
    return values


def _strings(data: memoryview, shape: tuple[int, ...]) -> Any:
    """Return a variable of byte strings: lengths, four bytes of CRC, the bytes."""
    count = math.prod(shape)
    if count > len(data):
        raise FormatError("more strings than bytes", found=count)
    at, lengths = 0, []
    for _ in range(count):
        length, at = wire.varint(data, at)
        lengths.append(length)
    at += 4
    if at + sum(lengths) != len(data):
        raise FormatError("strings and their lengths disagree")
    found = []
    for length in lengths:
        found.append(bytes(data[at : at + length]))
        at += length
    return found if shape else found[0]


def _shape(data: Any) -> tuple[int, ...]:
    found = wire.message(data)
    sizes = tuple(wire.integer(wire.message(dim), 1) for dim in found.get(2, []))
    if len(sizes) > 64 or any(n >= 2**62 for n in sizes):
        raise FormatError("malformed shape", found=sizes)
    return sizes


def _dtype(kind: int, name: str) -> np.dtype[Any]:
    if kind not in TYPES:
        raise UnsupportedError("a variable of a type without values", path=name, found=kind)
    dtype: np.dtype[Any] = np.dtype(TYPES[kind])
    return dtype


def _decoded(key: bytes, file: str) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise UnsupportedError("a part of a partitioned variable", file=file) from error


def _roles(root: dict[str, Any]) -> dict[str, str]:
    return {
        name: "optimizer" if _SLOT.search(name) else "model"
        for name, value in root.items()
        if isinstance(value, Lazy)
    }
