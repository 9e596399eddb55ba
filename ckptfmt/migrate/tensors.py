"""Tensors of PyTorch's pickles: storages, and views of them. No torch needed.

A pickle names a storage by a persistent id; a tensor is `(storage, offset, size, stride)` in
elements. Tensors that share a storage become views of the same memory, and so stay tied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate.pickles import Function, Table
from ckptfmt.migrate.rebuild import plain_table
from ckptfmt.migrate.source import Array, Lazy, Name, Record, check_shape, named

# Elements of a storage by the name of its class.
STORAGES: Final[dict[str, Any]] = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
    "ComplexFloatStorage": "<c8", "ComplexDoubleStorage": "<c16", "QInt8Storage": "i1",
    "QUInt8Storage": "u1", "QInt32Storage": "<i4", "QUInt4x2Storage": "u1",
    "QUInt2x4Storage": "u1", "UntypedStorage": "u1",
}  # fmt: skip

# By the name of torch's dtype, as tensors of newer dtypes carry it.
TYPES: Final[dict[str, Any]] = {
    "float32": "<f4", "float": "<f4", "float64": "<f8", "double": "<f8", "float16": "<f2",
    "half": "<f2", "bfloat16": ml_dtypes.bfloat16, "int64": "<i8", "long": "<i8",
    "int32": "<i4", "int": "<i4", "int16": "<i2", "short": "<i2", "int8": "i1", "uint8": "u1",
    "bool": "?", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8", "complex64": "<c8",
    "complex128": "<c16", "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2, "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip
if hasattr(ml_dtypes, "float8_e8m0fnu"):
    TYPES["float8_e8m0fnu"] = ml_dtypes.float8_e8m0fnu

MAX_EXPANSION: Final = 64  # a stride of zero repeats elements: so much larger may a view be
MIN_EXPANSION_NBYTES: Final = 2**26  # … or at least so large


def storage_dtype(kind: Name) -> np.dtype[Any]:
    """Return what a storage of this class holds.

    Raises:
        UnsupportedError: no such class is known.
    """
    if kind.name not in STORAGES:
        raise UnsupportedError("unknown kind of storage", found=str(kind))
    dtype: np.dtype[Any] = np.dtype(STORAGES[kind.name])
    return dtype


@dataclass(slots=True)
class Storage:
    """A run of elements somewhere in the file; `load` is set once that is known."""

    key: str
    dtype: np.dtype[Any]
    count: int  # elements
    location: str
    load: Callable[[], memoryview] | None = None

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.count * self.dtype.itemsize


# Storage, offset, size, strides in bytes, dtype: tensors that are tied have all in common.
_View: TypeAlias = tuple[str, int, tuple[int, ...], tuple[int, ...], np.dtype[Any]]


class Tensors:
    """The storages of one file, and the functions that make tensors of them.

    Args:
        file: For messages.
        big_endian: The bytes in the file are big-endian.
    """

    def __init__(self, file: str, *, big_endian: bool = False) -> None:
        self.storages: dict[str, Storage] = {}
        self.big_endian = big_endian
        self._file = file
        self._by_record: dict[int, tuple[Record, Storage, int]] = {}  # with a view's offset
        self._views: dict[_View, int] = {}  # with its length in bytes

    def table(self) -> Table:
        """Return what calls in a pickle of PyTorch stand for."""
        table: dict[tuple[str, str], Function] = plain_table()
        for home in ("torch._utils", "torch._tensor"):
            table[home, "_rebuild_tensor"] = self._tensor_v2
            table[home, "_rebuild_tensor_v2"] = self._tensor_v2
            table[home, "_rebuild_tensor_v3"] = self._tensor_v3
            table[home, "_rebuild_parameter"] = self._parameter
            table[home, "_rebuild_parameter_with_state"] = self._parameter
            table[home, "_rebuild_qtensor"] = self._quantized
            table[home, "_rebuild_sparse_tensor"] = _sparse
            table[home, "_rebuild_device_tensor_from_numpy"] = _from_numpy
            table[home, "_rebuild_from_type_v2"] = self._from_type
        for home in ("torch.nn.parameter", "torch.autograd.variable"):
            for name in ("Parameter", "Variable", "Buffer"):
                table[home, name] = self._variable
        for name in ("LongTensor", "FloatTensor", "DoubleTensor", "ByteTensor", "HalfTensor",
                     "IntTensor", "ShortTensor", "CharTensor"):  # fmt: skip
            table["torch", name] = self._old_tensor
            table["torch.cuda", name] = self._old_tensor
        return table

    # ---- storages

    def persistent(self, identity: Any) -> Any:
        """Return what a persistent id stands for.

        Raises:
            FormatError: neither a storage nor a module's source.
        """
        match identity:
            case (
                "storage",
                Name() as kind,
                str() | int() as key,
                str(place),
                int(count),
                *rest,
            ):
                return self.storage(kind, str(key), place, count, rest[0] if rest else None)
            case ("storage", None | Record(), *_):
                raise UnsupportedError("a storage of an unknown class", file=self._file)
            case ("module", Name() as kind, *_):
                return kind  # source text of the class follows; it is not looked at
        raise FormatError("unexpected persistent id", file=self._file, found=identity)

    def storage(self, kind: Name, key: str, place: str, count: int, view: Any = None) -> Record:
        """Return what stands for a storage in the tree.

        Args:
            view: Of old files: `(key, offset, count)` when it is a part of storage `key`.
        """
        dtype = storage_dtype(kind)
        if count < 0:
            raise FormatError("a storage of negative length", file=self._file, storage=key)
        known = self.storages.setdefault(key, Storage(key, dtype, count, place))
        if known.dtype != dtype or known.count != count:
            raise FormatError(
                "one storage is described in two ways", file=self._file, storage=key
            )
        begin, length = 0, count
        if view is not None:
            match view:
                case (_, int(begin), int(length)) if 0 <= begin <= begin + length <= count:
                    pass
                case _:
                    raise FormatError(
                        "malformed view of a storage", file=self._file, found=view
                    )
        lazy = self._lazy(known, begin, (length,), (1,), dtype)
        record = Record(str(kind), state={"values": lazy})
        self._by_record[id(record)] = (record, known, begin)
        return record

    def check(self) -> None:
        """Compare every tensor with its storage, now that all lengths are known.

        Raises:
            FormatError: a tensor reaches beyond its storage, or has no bytes at all.
        """
        stored = sum(storage.nbytes for storage in self.storages.values())
        most = stored + max(MIN_EXPANSION_NBYTES, stored * MAX_EXPANSION)
        if sum(self._views.values()) > most:
            raise FormatError(
                "tensors repeat their storages too often",
                file=self._file,
                expected=most,
                found=sum(self._views.values()),
            )
        missing = [s.key for s in self.storages.values() if s.load is None]
        if missing:
            raise FormatError(
                "storages without bytes", file=self._file, count=len(missing), first=missing[0]
            )

    # ---- tensors

    def view(
        self,
        of: Any,
        offset: Any,
        size: Any,
        stride: Any,
        dtype: Any = None,
        requires_grad: Any = None,
    ) -> Lazy:
        """Return a tensor; offset and stride count elements.

        Raises:
            FormatError: it does not lie inside its storage.
        """
        row = self._by_record.get(id(of))
        numbers = (
            type(offset) is int
            and isinstance(size, tuple)
            and isinstance(stride, tuple)
            and len(size) == len(stride) <= 64
            and all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
        )
        if row is None or not numbers:
            raise FormatError("malformed tensor", file=self._file, found=(offset, size, stride))
        _, storage, begin = row
        kind = storage.dtype if dtype is None else np.dtype(dtype)
        start = begin * storage.dtype.itemsize + offset * kind.itemsize
        lazy = self._lazy(storage, start, size, stride, kind)
        lazy.requires_grad = requires_grad if type(requires_grad) is bool else None
        return lazy

    def _lazy(
        self,
        storage: Storage,
        begin: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> Lazy:
        check_shape(size, dtype.itemsize, file=self._file, storage=storage.key)
        strides = tuple(n * dtype.itemsize for n in stride)
        reach = sum((n - 1) * s for n, s in zip(size, strides, strict=True))
        nbytes = math.prod(size) * dtype.itemsize
        if nbytes and begin + reach + dtype.itemsize > storage.nbytes:
            raise FormatError(
                "a tensor reaches beyond its storage",
                file=self._file,
                storage=storage.key,
                expected=storage.nbytes,
                found=begin + reach + dtype.itemsize,
            )
        if nbytes > max(MIN_EXPANSION_NBYTES, storage.nbytes * MAX_EXPANSION):
            raise FormatError(
                "a tensor repeats its storage too often",
                file=self._file,
                storage=storage.key,
                found=nbytes,
            )
        self._views[storage.key, begin, size, strides, dtype] = nbytes
        note = None if storage.location in ("cpu", "") else f"was on {storage.location}"

        def load() -> Array:
            if storage.load is None:
                raise FormatError("a storage without bytes", storage=storage.key)
            if not nbytes:
                return np.empty(size, dtype)
            return _strided(storage.load(), dtype, size, begin, strides, self.big_endian)

        return Lazy(dtype, size, load, note=note)

    def _tensor_v2(self, args: tuple[Any, ...]) -> Any:
        """`(storage, offset, size, stride, requires_grad, hooks[, metadata])`."""
        storage, offset, size, stride, *rest = _at_least(args, 4)
        lazy = self.view(storage, offset, size, stride, None, rest[0] if rest else None)
        flags = rest[2] if len(rest) > 2 else None
        return _flagged(lazy, flags) if isinstance(flags, dict) and flags else lazy

    def _tensor_v3(self, args: tuple[Any, ...]) -> Any:
        """`(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])`."""
        storage, offset, size, stride, grad, _, dtype, *_ = _at_least(args, 7)
        spec = TYPES.get(dtype.name) if isinstance(dtype, Name) else None
        if spec is None:
            raise UnsupportedError(
                "unknown dtype of a tensor", file=self._file, found=named(dtype)
            )
        return self.view(storage, offset, size, stride, spec, grad)

    def _parameter(self, args: tuple[Any, ...]) -> Any:
        """`(data, requires_grad, hooks[, state])`."""
        data, grad, *rest = _at_least(args, 2)
        if isinstance(data, Lazy) and type(grad) is bool:
            data.requires_grad = grad
        if isinstance(data, Lazy) and len(rest) > 1:
            data.leave_out(rest[1])
        return data

    def _quantized(self, args: tuple[Any, ...]) -> Any:
        """`(storage, offset, size, stride, quantizer, requires_grad, hooks)`."""
        storage, offset, size, stride, quantizer, *_ = _at_least(args, 5)
        integers = self.view(storage, offset, size, stride)
        return Record("torch.quantized", state={"int_repr": integers, "quantizer": quantizer})

    def _from_type(self, args: tuple[Any, ...]) -> Any:
        """`(function, type, arguments, state)` of a subclass: its data, and what it adds."""
        function, kind, inner, state, *_ = _at_least(args, 4)
        ours = None
        if isinstance(function, Name) and function.name != "_rebuild_from_type_v2":
            ours = self.table().get((function.module, function.name))
        if ours is None or not isinstance(inner, tuple):
            return Record(named(kind), args=args)
        made = ours(inner)
        return made if not state else Record(named(kind), args=(made,), state=state)

    def _variable(self, args: tuple[Any, ...]) -> Any:
        """A Variable or Parameter of 0.1 to 0.3: its tensor comes as state."""
        lazy = Lazy.of(np.empty(0, np.float32))

        def describe(state: Any) -> None:
            match state:
                case (Lazy() as data, *rest) if data is not lazy:
                    lazy.fill(data.dtype, data.shape, data.load)
                    lazy.note = data.note
                    flags = [value for value in rest if type(value) is bool]
                    lazy.requires_grad = flags[0] if flags else None
                case tuple() if args and isinstance(args[0], Lazy):
                    pass  # its flags only: the tensor came with the call
                case _:
                    raise FormatError("unexpected state of a parameter", file=self._file)

        lazy.describe = describe
        if args and isinstance(args[0], Lazy):
            describe(args)
        return lazy

    def _old_tensor(self, args: tuple[Any, ...]) -> Any:
        """A tensor that pickled itself: `(storage, offset, size, stride)` comes as state."""
        lazy = Lazy.of(np.empty(0, np.float32))

        def describe(state: Any) -> None:
            made = self._tensor_v2(state if isinstance(state, tuple) else ())
            lazy.fill(made.dtype, made.shape, made.load)

        lazy.describe = describe
        return lazy


def _strided(
    data: memoryview,
    dtype: np.dtype[Any],
    size: tuple[int, ...],
    begin: int,
    strides: tuple[int, ...],
    big_endian: bool,
) -> Array:
    if not big_endian or dtype.itemsize == 1:
        return np.ndarray(size, dtype, buffer=data, offset=begin, strides=strides)
    part = 8 if dtype.kind == "c" and dtype.itemsize == 16 else min(4, dtype.itemsize)
    part = dtype.itemsize if dtype.kind != "c" else part
    words = np.frombuffer(data, np.dtype(f">u{part}")).astype(f"<u{part}")
    return np.ndarray(size, dtype, buffer=words.data.cast("B"), offset=begin, strides=strides)


def _flagged(lazy: Lazy, flags: dict[Any, Any]) -> Lazy:
    """Return a tensor with its lazy conjugation and sign carried out."""
    conjugated, negated = bool(flags.get("conj")), bool(flags.get("neg"))
    if negated and lazy.dtype.kind == "b":
        raise FormatError("a pending sign of truth values")

    def load() -> Array:
        array = lazy.load()
        array = np.conjugate(array) if conjugated else array
        return np.negative(array) if negated else array

    note = "a pending conjugation or sign was carried out"
    return Lazy(lazy.dtype, lazy.shape, load, note=note, requires_grad=lazy.requires_grad)


def _sparse(args: tuple[Any, ...]) -> Any:
    """`(layout, (indices, values, size[, is_coalesced]))`, or the compressed layouts' five."""
    match args:
        case (layout, (indices, Lazy() as values, tuple() as size, *coalesced)):
            state = {"indices": indices, "values": values, "size": size}
            if coalesced:
                state["is_coalesced"] = coalesced[0]
        case (layout, (compressed, plain, Lazy() as values, tuple() as size)):
            state = {"compressed": compressed, "plain": plain, "values": values, "size": size}
        case _:
            return Record("torch.sparse", args=args)
    return Record(f"torch.sparse.{named(layout)}", state=state)


def _from_numpy(args: tuple[Any, ...]) -> Any:
    """`(array, dtype, device, requires_grad)`."""
    data, *_ = _at_least(args, 1)
    return data


def _at_least(args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(args) < count:
        raise FormatError("too few arguments for a tensor", expected=count, found=len(args))
    return args
