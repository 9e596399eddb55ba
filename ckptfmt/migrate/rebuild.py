"""What calls in a pickle stand for: our own functions for the few that carry data.

Exact (module, name) pairs only: whole modules hold callables that do harm. Each function takes
the arguments as they stand in the file, and trusts none of them.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.pickles import Function
from ckptfmt.migrate.source import (
    Array,
    Attributed,
    Lazy,
    Name,
    Record,
    Settable,
    check_shape,
    key_of,
    named,
)

_NUMPY_HOMES: Final = "numpy.core.multiarray", "numpy._core.multiarray", "numpy.multiarray"
MAX_PARTS: Final = 1000  # fields of one dtype, with those inside them


class NumpyType(Settable):
    """A NumPy dtype under construction."""

    __slots__ = ("fields", "order", "parts", "spec")

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.order = "="
        self.fields: Any = None
        self.parts = 1  # fields, and those inside them

    def set_state(self, state: Any) -> None:
        """Take `(version, byte order, subdtype, names, fields, …)`."""
        match state:
            case (int(), str(order), None, None | (), None, *rest) if order in (
                "<",
                ">",
                "|",
                "=",
            ):
                self.order = order
                self._take_unit(rest[3] if len(rest) > 3 else None)
            case (int(), str(order), None, tuple(names), dict(fields), *_):
                rows = [(name, *fields.get(name, ())) for name in names]
                if not all(len(row) >= 3 and isinstance(row[1], NumpyType) for row in rows):
                    raise FormatError("malformed fields of a NumPy dtype")
                self.parts = 1 + sum(row[1].parts for row in rows)
                if self.parts > MAX_PARTS:  # fields that share parts can unfold to 2^n
                    raise FormatError("too many fields in a NumPy dtype", found=self.parts)
                self.order = order
                self.fields = rows
            case _:
                raise FormatError("unexpected state of a NumPy dtype")

    def _take_unit(self, metadata: Any) -> None:
        """Take the unit of dates and durations, such as 25 microseconds."""
        match metadata:
            case (_, (bytes(unit), int(count), *_)) if self.spec[:2] in ("M8", "m8"):
                self.spec = f"{self.spec[:2]}[{count}{unit.decode('latin-1')}]"

    def __str__(self) -> str:
        return f"numpy.dtype({self.dtype()!s})"

    def dtype(self) -> np.dtype[Any]:
        """Return the dtype.

        Raises:
            FormatError: NumPy knows no such dtype.
        """
        try:
            if self.fields is not None:
                parts = {
                    "names": [row[0] for row in self.fields],
                    "formats": [row[1].dtype() for row in self.fields],
                    "offsets": [row[2] for row in self.fields],
                }
                made: np.dtype[Any] = np.dtype(parts)  # type: ignore[call-overload]  # untyped parts
                return made
            found: np.dtype[Any] = np.dtype(self.spec)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise FormatError("unknown NumPy dtype", found=self.spec) from error
        return found.newbyteorder(self.order) if self.order in "<>" else found  # type: ignore[arg-type]


def numpy_array() -> Lazy:
    """Return the array that `_reconstruct` names; its state will bring shape and data."""
    lazy = Lazy.of(np.empty(0, np.uint8))
    lazy.describe = lambda state: _describe(lazy, state)
    return lazy


def _describe(lazy: Lazy, state: Any) -> None:
    """Take `(version, shape, dtype, Fortran order, data)`."""
    match state:
        case (int(), tuple(shape), NumpyType() as kind, bool() | int() as fortran, data):
            fill(lazy, shape, kind.dtype(), bool(fortran), data)
        case _:
            raise FormatError("unexpected state of a NumPy array")


def fill(lazy: Lazy, shape: Any, dtype: np.dtype[Any], fortran: bool, data: Any) -> None:
    """Give an array its contents.

    Raises:
        FormatError: shape, dtype and data disagree.
    """
    size = math.prod(check_shape(shape, dtype.itemsize))
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != size:
            raise FormatError("an array of objects without its objects")
        lazy.fill(dtype, shape, lambda: _no_objects())
        lazy.items = data
        return
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray | memoryview) or len(raw) != size * dtype.itemsize:
        raise FormatError("shape and data of a NumPy array disagree", expected=size)
    order: Any = "F" if fortran else "C"
    array = np.frombuffer(raw, dtype, count=size).reshape(shape, order=order)
    lazy.fill(dtype, shape, lambda: array)


def _no_objects() -> Array:
    raise FormatError("an array of objects has no bytes: look at its items")


def _ordered(args: tuple[Any, ...]) -> Any:
    made = Attributed()
    match args:
        case ():
            pass
        case (list(pairs),):
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise FormatError("malformed pairs of an OrderedDict")
                made[key_of(pair[0])] = pair[1]
        case (dict(entries),):
            made.update(entries)
        case _:
            raise FormatError("malformed OrderedDict")
    return made


def _default(args: tuple[Any, ...]) -> Any:
    """`(factory[, entries])`: a dict; what makes a missing value is named in the report."""
    made = _ordered(args[1:2])
    made.attributes = {"default_factory": args[0]} if args and args[0] is not None else None
    return made


def _reconstruct(args: tuple[Any, ...]) -> Any:
    """`(class, shape, dtype)`: an array, or one of a class that adds no data to it."""
    lazy = numpy_array()
    if args and named(args[0]) != "numpy.ndarray":
        lazy.note = f"its class is left out: {named(args[0])}"
    return lazy


def _encoded(args: tuple[Any, ...]) -> Any:
    match args:
        case (str(text), "latin1" | "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError as error:
                raise FormatError("malformed bytes in a pickle") from error
    return Record("_codecs.encode", args=args)


def _dtype(args: tuple[Any, ...]) -> Any:
    match args:
        case (str(spec) | bytes(spec), *_):
            text = spec.decode("latin-1") if isinstance(spec, bytes) else spec
            if len(text) < 32:
                return NumpyType(text)
    raise FormatError("malformed NumPy dtype", found=args)


def _scalar(args: tuple[Any, ...]) -> Any:
    match args:
        case (NumpyType() as kind, str() | bytes() as data):
            dtype = kind.dtype()
            raw = data.encode("latin-1") if isinstance(data, str) else data
            if len(raw) == dtype.itemsize and not dtype.hasobject:
                return np.frombuffer(raw, dtype)[0]
    return Record("numpy.core.multiarray.scalar", args=args)


def _frombuffer(args: tuple[Any, ...]) -> Any:
    match args:
        case (
            bytes() | bytearray() as data,
            NumpyType() as kind,
            tuple(shape),
            "C" | "F" as order,
        ):
            lazy = Lazy.of(np.empty(0, np.uint8))
            fill(lazy, shape, kind.dtype(), order == "F", data)
            return lazy
    raise FormatError("malformed NumPy array of protocol 5")


def _jax(args: tuple[Any, ...]) -> Any:
    """`(fun, args, array state, weak type…)`: NumPy's own pickle inside."""
    match args:
        case (_, tuple(), tuple(state), *_):
            lazy = numpy_array()
            _describe(lazy, state)
            return lazy
    raise FormatError("malformed JAX array")


def _complex(args: tuple[Any, ...]) -> Any:
    match args:
        case (float() | int() as real, float() | int() as imaginary):
            return complex(real, imaginary)
    raise FormatError("malformed complex number")


def _bytes(args: tuple[Any, ...]) -> Any:
    return b"" if not args else Record("builtins.bytes", args=args)


def _bytearray(args: tuple[Any, ...]) -> Any:
    match args:
        case (bytes(data),):
            return data
        case (str(data), "latin-1"):
            return _encoded((data, "latin-1"))
    return Record("builtins.bytearray", args=args)


def _collection(name: str) -> Function:
    def make(args: tuple[Any, ...]) -> Any:
        match args:
            case ():
                return Record(name)
            case (list(items),):
                return Record(name, items=items)
        return Record(name, args=args)

    return make


def _tuple(args: tuple[Any, ...]) -> Any:
    match args:
        case (list() | tuple() as items,):
            return tuple(items)
    return Record("builtins.tuple", args=args)


def _size(args: tuple[Any, ...]) -> Any:
    match args:
        case (list() | tuple() as sizes,):
            return tuple(sizes)
    return Record("torch.Size", args=args)


def _object(args: tuple[Any, ...]) -> Any:
    """`copyreg._reconstructor(cls, base, state)` and `object.__new__`: an object of a class."""
    match args:
        case (cls, Name(module="builtins" | "__builtin__", name="object"), state):
            return Record(named(cls), args=_odd(cls), state=state)
        case (cls, _, dict(entries)):
            return Record(named(cls), args=_odd(cls), entries=entries)
        case (cls, _, list(items)):
            return Record(named(cls), args=_odd(cls), items=items)
        case (cls, *rest):
            return Record(named(cls), args=(*_odd(cls), *rest))
    raise FormatError("malformed object in a pickle")


def _odd(cls: Any) -> tuple[Any, ...]:
    """Return what stands for a class when it is more than its name: nothing of it gets lost."""
    return () if isinstance(cls, Name | str) else (cls,)


def plain_table() -> dict[tuple[str, str], Function]:
    """Return what every kind of pickle may hold: containers, bytes, NumPy, JAX."""
    table: dict[tuple[str, str], Function] = {
        ("collections", "OrderedDict"): _ordered,
        ("collections", "defaultdict"): _default,
        ("_codecs", "encode"): _encoded,
        ("numpy", "dtype"): _dtype,
        ("copy_reg", "_reconstructor"): _object,
        ("copyreg", "_reconstructor"): _object,
        ("copyreg", "__newobj__"): _object_args,
        ("torch", "Size"): _size,
        ("jax._src.array", "_reconstruct_array"): _jax,
        ("jax._src.device_array", "reconstruct_device_array"): _jax,
        ("jax.interpreters.xla", "reconstruct_device_array"): _jax,
    }
    for home in _NUMPY_HOMES:
        table[home, "_reconstruct"] = _reconstruct
        table[home, "scalar"] = _scalar
    for home in ("numpy.core.numeric", "numpy._core.numeric"):
        table[home, "_frombuffer"] = _frombuffer
    for home in ("builtins", "__builtin__"):
        table[home, "complex"] = _complex
        table[home, "bytes"] = _bytes
        table[home, "bytearray"] = _bytearray
        table[home, "tuple"] = _tuple
        table[home, "set"] = _collection("builtins.set")
        table[home, "frozenset"] = _collection("builtins.frozenset")
    return table


def _object_args(args: tuple[Any, ...]) -> Any:
    match args:
        case (cls, *rest):
            return Record(named(cls), args=(*_odd(cls), *rest))
    raise FormatError("malformed object in a pickle")
