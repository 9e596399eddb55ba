"""What to store instead of a value that cannot be stored."""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import datetime
import enum
import functools
import numbers
import os
import random
from typing import Final

import numpy as np


@functools.cache
def _by_type() -> tuple[tuple[type | tuple[type, ...], str], ...]:
    """Return types with their advice; the first fit counts.

    A function: NumPy imports `numpy.ma` and `numpy.random` when they are first named, which
    takes as long as all else in this package.
    """
    return (
        (np.ma.MaskedArray, "store value.data and value.mask"),
        (np.recarray, "store each field as an array of its own"),
        (np.ndarray, "use numpy.asarray(value)"),
        (
            (np.random.Generator, np.random.RandomState, np.random.BitGenerator),
            "use ckptfmt.rng",
        ),
        (random.Random, "store value.getstate()"),
        (enum.Enum, "store value.name or value.value"),
        ((set, frozenset), "store a sorted list"),
        (range, "store list(value), or start, stop and step"),
        (datetime.datetime, "use a plain datetime.datetime"),
        ((datetime.date, datetime.time), "store value.isoformat()"),
        (datetime.timedelta, "store value.total_seconds()"),
        (os.PathLike, "use os.fspath(value)"),
        (type, "store its name"),
        (bool, "use bool(value)"),
        (int, "use int(value)"),
        (float, "use float(value)"),
        (complex, "use complex(value)"),
        (numbers.Number, "use str(value) or float(value)"),
        (str, "use str(value)"),
        ((bytes, bytearray, memoryview), "use bytes(value)"),
        (abc.Mapping, "use dict(value)"),
        (list, "use list(value)"),
        (tuple, "use tuple(value)"),
        ((abc.Set, abc.Sequence, abc.Iterator, abc.ValuesView), "use list(value)"),
    )


_BY_ATTRIBUTE: Final = (  # of the type: looking at the value could run its code
    ("_asdict", "use value._asdict(), or tuple(value)"),
    ("__dlpack__", "use an adapter's capture(), or convert it with .numpy()"),
    ("state_dict", "store value.state_dict()"),
    ("__array__", "use numpy.asarray(value)"),
)

_BY_KIND: Final = {  # of a NumPy scalar's dtype
    "U": "use str(value)",
    "S": "use bytes(value)",
    "M": "store value.item(), or value.view('int64') and the unit",
    "m": "store value.item().total_seconds(), or value.view('int64') and the unit",
    "V": "store each field, or value.tobytes()",
    "f": "use float(value); longer floats are not portable",
    "c": "use complex(value); longer floats are not portable",
}


def way_out(value: object) -> str:
    """Return the end of a sentence: how to make `value` storable."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return "use dataclasses.asdict(value)"
    if hasattr(kind, "_asdict"):
        return _BY_ATTRIBUTE[0][1]
    if issubclass(kind, np.generic):
        if kind.__module__ == "ml_dtypes":
            return "use int(value) or float(value)"
        return _BY_KIND.get(np.dtype(kind).kind, "use value.item()")
    for types, advice in _by_type():
        if issubclass(kind, types):
            return advice
    for attribute, advice in _BY_ATTRIBUTE:
        if hasattr(kind, attribute):
            return advice
    if callable(value):
        return "store its name, and its arguments as data"
    return "convert it to dict, list, str or an array, or leave it out"


def kind_of(value: object) -> str:
    """Return the full name of a value's type, for messages."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
