"""What pickles hold beside arrays: every kind of container and value is kept, or noted."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import pprint
import types
import uuid
from typing import Any, Final, NamedTuple

import numpy as np
import pytest

from ckptfmt import migrate
from tests.migrate import corpus


class Dict(dict[str, Any]):
    """A kind of dict that carries an attribute."""


class List(list[Any]):
    """A kind of list."""


class Colour(enum.Enum):
    """A member is pickled as a call of its class."""

    RED = 1


class Pair(NamedTuple):
    """A tuple with names."""

    a: int
    b: int


@dataclasses.dataclass
class Plain:
    """An object of plain state."""

    x: int
    y: Any


class Slots:
    """An object whose state is of two parts."""

    __slots__ = ("p",)


def _with(kind: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(kind, name, value)
    return kind


def _class(of: Any, name: str | None = None) -> str:
    return f"{of.__module__}.{of.__qualname__}" if name is None else name


# What stands in a pickle, and what is stored of it.
KEPT: Final[dict[str, tuple[Any, Any]]] = {
    "set": ({7}, {"__class__": "builtins.set", "__items__": [7]}),
    "set in a tuple": (({b"x"},), ({"__class__": "builtins.set", "__items__": [b"x"]},)),
    "empty set": (set(), {"__class__": "builtins.set"}),
    "frozenset": (frozenset({"a"}), {"__class__": "builtins.frozenset", "__items__": ["a"]}),
    "bytes": (b"\0\xff", b"\0\xff"),
    "bytearray": (bytearray(b"ab"), b"ab"),
    "text": ("\ud800", {"__bytes__": b"\xed\xa0\x80"}),
    "deque": (collections.deque([1], maxlen=5),
              {"__class__": "collections.deque", "__args__": [(), 5], "__items__": [1]}),
    "counter": (collections.Counter("aa"),
                {"__class__": "collections.Counter", "__args__": [{"a": 2}]}),
    "ordered": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "default": (collections.defaultdict(list, a=[1]), {"a": [1]}),
    "chain": (collections.ChainMap({"a": 1}),
              {"__class__": "collections.ChainMap", "maps": [{"a": 1}]}),
    "names": (Pair(1, 2), {"__class__": _class(Pair), "__args__": [1, 2]}),
    "dict": (_with(Dict(a=1), more="x"),
             {"__class__": _class(Dict), "__dict__": {"a": 1}, "__state__": {"more": "x"}}),
    "list": (List([1, 2]), {"__class__": _class(List), "__items__": [1, 2]}),
    "member": (Colour.RED, {"__class__": _class(Colour), "__args__": [1]}),
    "object": (Plain(1, [2]), {"__class__": _class(Plain), "x": 1, "y": [2]}),
    "slots": (_with(Slots(), p=3), {"__class__": _class(Slots), "__state__": (None, {"p": 3})}),
    "date": (datetime.datetime(2020, 1, 2, 3, 4, 5),
             {"__class__": "datetime.datetime", "__args__": [b"\x07\xe4\1\2\3\4\5\0\0\0"]}),
    "decimal": (decimal.Decimal("1.5"), {"__class__": "decimal.Decimal", "__args__": ["1.5"]}),
    "uuid": (uuid.UUID(int=5), {"__class__": "uuid.UUID", "int": 5}),
    "range": (range(1, 9, 2), {"__class__": "builtins.range", "__args__": [1, 9, 2]}),
    "slice": (slice(1, 2), {"__class__": "builtins.slice", "__args__": [1, 2, None]}),
    "namespace": (types.SimpleNamespace(a=1), {"__class__": "types.SimpleNamespace", "a": 1}),
    "partial": (functools.partial(int, base=2),
                {"__class__": "functools.partial", "__args__": ["builtins.int"],
                 "__state__": ("builtins.int", (), {"base": 2}, None)}),
    "packed": (array.array("d", [1.0]),
               {"__class__": "array._array_reconstructor",
                "__args__": ["array.array", "d", 16, b"\0\0\0\0\0\0\xf0?"]}),
    "function": (len, "builtins.len"),
    "ellipsis": (..., "builtins.Ellipsis"),
    "complex": (1 + 2j, 1 + 2j),
    "large": (2**100, 2**100),
    "keys": ({(1, 2): "x", None: "y", frozenset({1}): "z"}, {"__pairs__": [
        [(1, 2), "x"], [None, "y"],
        [{"__class__": "builtins.frozenset", "__items__": [1]}, "z"]]}),
    "keys of one text": ({1: "a", "1": "b"}, {"__pairs__": [[1, "a"], ["1", "b"]]}),
}  # fmt: skip
_NEWER: Final = (
    "set",
    "set in a tuple",
    "empty set",
    "frozenset",
    "slots",
    "names",
    "date",
    "partial",
)  # fmt: skip
NOTED: Final = {
    "default": "default_factory",
    "ordered with more": "more",
    "matrix": "numpy.matrix",
}


def _pickled(tmp_path: pathlib.Path, value: Any, protocol: int) -> migrate.Source:
    # The array makes it a checkpoint, which a pickle without any is not.
    data = {"value": {"it": value}, "w": np.arange(3.0)}
    (tmp_path / "x").write_bytes(pickle.dumps(data, protocol))
    return migrate.open(tmp_path / "x")


@pytest.mark.parametrize("protocol", range(6))
def test_every_kind_is_kept(protocol: int, tmp_path: pathlib.Path) -> None:
    names = [name for name in KEPT if protocol > 3 or name not in _NEWER]
    source = _pickled(tmp_path, {name: KEPT[name][0] for name in names}, protocol)
    done = migrate.migrate(source, tmp_path / "store", verify=True)
    found = done.checkpoint.load()["value"]["it"]

    lost = {name for name in names if _renamed(found[name]) != _renamed(KEPT[name][1])}

    assert lost <= (set() if protocol > 2 else {"packed"})  # which is then of another form
    assert corpus.astray(done) == []
    assert None not in {item.target for item in done.report.items}


def _renamed(value: Any) -> str:
    """Return text in which Python 2's names are those of Python 3."""
    return (
        pprint.pformat(value, width=10**6)
        .replace("__builtin__", "builtins")
        .replace("xrange", "range")
    )


@pytest.mark.parametrize("name", NOTED)
def test_what_is_not_kept_is_noted(name: str, tmp_path: pathlib.Path) -> None:
    values = {
        "default": collections.defaultdict(list, a=[1]),
        "ordered with more": _with(collections.OrderedDict(a=1), more=5),
        "matrix": np.arange(4.0).reshape(2, 2).view(np.matrix),
    }

    told = _pickled(tmp_path, values[name], 4).report

    notes = [*(note.text for note in told.notes), *(item.note or "" for item in told.items)]
    assert [NOTED[name] in note for note in notes if note] == [True]
