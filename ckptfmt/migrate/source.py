"""What a foreign checkpoint looks like once its bytes are understood: inert data, lazy arrays.

A source's tree is made of dicts, lists, tuples, plain values, and four kinds of our own:
`Lazy` stands for an array, `Record` for an object whose class is not ours to build, `Name` for
a class or function that was only mentioned, `Key` for a dict key that cannot be hashed safely.
Nothing here imports, calls or builds what a file asks for.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, final

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import BackendError, CheckpointError, FormatError
from ckptfmt.leaves import join

Array: TypeAlias = npt.NDArray[Any]
Path: TypeAlias = tuple[str | int, ...]

MAX_NODES: Final = 2_000_000  # visited by one walk: objects that share parts can unfold to 2^n
MAX_DEPTH: Final = 400  # containers around a leaf; the deepest of 113 real files has 60
_HASHED: Final = frozenset({str, int, bytes, float, bool, type(None)})
MAX_AXES: Final = 64  # NumPy's own limit

# What Python and NumPy raise over bytes that make no sense. A bug of ours looks the same: the
# error that caused it is kept.
_MALFORMED: Final = (
    ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError,
    SyntaxError, EOFError, NotImplementedError, struct.error, zlib.error, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


@contextlib.contextmanager
def refusing(message: str, **where: object) -> Iterator[None]:
    """Turn what goes wrong over malformed bytes into an error of ours.

    Raises:
        FormatError: the block raised an error that malformed bytes can cause.
        BackendError: it needs more memory than there is.
    """
    try:
        yield
    except CheckpointError:
        raise
    except MemoryError as error:
        raise BackendError("not enough memory to read it", **where) from error
    except _MALFORMED as error:
        raise FormatError(message, **where, problem=type(error).__name__) from error


def check_shape(shape: Iterable[Any], itemsize: int, **where: object) -> tuple[int, ...]:
    """Return a shape that NumPy can hold, also where an axis is empty.

    Raises:
        FormatError: too many axes, an axis that is no length, or more bytes than an address.
    """
    sizes = tuple(shape)
    plain = len(sizes) <= MAX_AXES and all(type(n) is int and 0 <= n < 2**63 for n in sizes)
    if not plain or math.prod(max(n, 1) for n in sizes) * max(itemsize, 1) >= 2**63:
        raise FormatError(
            "no array has such a shape", **where, axes=len(sizes), found=sizes[:MAX_AXES]
        )
    return sizes


@final
class Lazy:
    """An array of a source: dtype and shape are known, bytes are read when asked for.

    Args:
        dtype: As in the source, including its byte order.
        load: Returns the array; where the source's file is mapped, a view of it.
        note: What a reader of the report should know (a device tag, a conversion).
        requires_grad: What the source says; None where it has no such notion.
    """

    __slots__ = ("_load", "describe", "dtype", "items", "note", "requires_grad", "shape")

    def __init__(
        self,
        dtype: npt.DTypeLike,
        shape: Iterable[int],
        load: Callable[[], Array],
        *,
        note: str | None = None,
        requires_grad: bool | None = None,
    ) -> None:
        self.items: list[Any] | None = None  # of an array of objects, which has no bytes
        self.describe: Callable[[Any], None] | None = None  # takes what a pickle says later
        self.note = note
        self.requires_grad = requires_grad
        self.fill(dtype, shape, load)

    @classmethod
    def of(cls, array: Array) -> Lazy:
        """Return one over an array that is in memory already."""
        return cls(array.dtype, array.shape, lambda: array)

    def fill(
        self, dtype: npt.DTypeLike, shape: Iterable[int], load: Callable[[], Array]
    ) -> None:
        """Say what it is; a pickle names an array before it describes it."""
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = check_shape(shape, self.dtype.itemsize)
        self._load = load

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        """Return the array.

        Raises:
            FormatError: the bytes do not give what the source declares.
        """
        with refusing("an array cannot be made of its bytes", shape=self.shape):
            array = self._load()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise FormatError(
                "the array differs from its description",
                expected=(self.dtype.str, self.shape),
                found=(array.dtype.str, array.shape),
            )
        return array

    def leave_out(self, state: Any) -> None:
        """Note what was set on the array and is not kept: hooks, attributes of its object."""
        names = [named(key) for key in state] if isinstance(state, dict) else []
        if names or (state and not isinstance(state, dict)):
            text = f"left out what was set on it: {', '.join(names[:20]) or 'a state'}"
            self.note = text if self.note is None else f"{self.note}; {text}"[:1000]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Return the array as NumPy's; called by `np.asarray(lazy)`."""
        array = self.load()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"Lazy({self.dtype}, {self.shape})"


@final
@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a file mentions: text, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def named(what: Any) -> str:
    """Return what stands for a class as short text; what it holds is never looked at."""
    if isinstance(what, Name):
        return str(what)
    return what[:200] if isinstance(what, str) else f"<{type(what).__name__}>"


@final
@dataclass(eq=False, slots=True, repr=False)
class Record:
    """An object of a class that is not built: what the file said about it, and no more."""

    cls: str  # module and name
    args: tuple[Any, ...] = ()  # what its constructor was to be given
    state: Any = None  # what was to be set on it
    items: list[Any] = field(default_factory=list)  # appended, for kinds of lists and sets
    entries: dict[Any, Any] = field(default_factory=dict)  # set, for kinds of dicts

    def __repr__(self) -> str:
        return f"Record({self.cls[:200]!r})"  # what it holds may unfold to 2^n parts


@final
@dataclass(eq=False, slots=True, frozen=True, repr=False)
class Key:
    """A dict key of a kind that is not hashed: its hash could be made to overflow a stack."""

    value: Any

    def __repr__(self) -> str:
        return f"Key(<{type(self.value).__name__}>)"


def key_of(value: Any) -> Any:
    """Return what stands for a key in a dict: itself, when hashing it is safe."""
    if _is_hashed(value) or isinstance(value, Name | Record | Key):
        return value
    if type(value) is tuple and all(map(_is_hashed, value)):
        return value
    return Key(value)


def _is_hashed(value: Any) -> bool:
    """Tell whether a key is plain; integers beyond a word can be made to share one hash."""
    return type(value) in _HASHED and not (type(value) is int and value.bit_length() > 64)


class Settable:
    """Something of ours that a pickle names first and describes later; in a tree it is text."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Take the description.

        Raises:
            FormatError: not one that this can have.
        """
        raise NotImplementedError


@final
class Attributed(dict[Any, Any]):
    """A dict that carries attributes, as torch's state dicts carry `_metadata`."""

    __slots__ = ("attributes",)

    def __init__(self, entries: Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__(entries)
        self.attributes: Any = None

    def __repr__(self) -> str:
        return f"<dict of {len(self)} items>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a reader left out or changed, and why."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a reader makes of a source."""

    format: str  # name of the format, such as torch-zip
    root: Any  # the tree
    files: tuple[str, ...]  # names of the files it reads, relative to the folder
    producer: str | None = None  # program and version that wrote it, where the bytes tell
    notes: tuple[Note, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)  # top-level key → section


CONTAINERS: Final = (dict, list, tuple, Record)


def children(node: Any) -> list[tuple[Any, Any]]:
    """Return the (key, child) pairs of a container, in the source's order; leaves have none."""
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list | tuple):
        return list(enumerate(node))
    if isinstance(node, Lazy) and node.items is not None:
        return list(enumerate(node.items))
    if not isinstance(node, Record):
        return []
    parts: list[tuple[Any, Any]] = [("__args__", node.args)] if node.args else []
    if node.state is not None:
        parts.append(("__state__", node.state))
    if node.items:
        parts.append(("__items__", node.items))
    if node.entries:
        parts.append(("__dict__", node.entries))
    return parts


def text_of(key: Any) -> str | int:
    """Return a key as one component of a path; never fails, never long."""
    if type(key) is int:
        return key if key.bit_length() <= 64 else f"<int of {key.bit_length()} bits>"
    if type(key) is str:
        return key
    if isinstance(key, Record):
        return f"<{key.cls}>"
    if isinstance(key, tuple) and all(type(part) in (str, int) for part in key):
        return str(tuple(map(text_of, key)))[:200]
    return str(key)[:200] if type(key) in (bool, float, bytes, type(None)) else "<key>"


def _texts(parts: list[tuple[Any, Any]]) -> Iterator[tuple[str | int, Any]]:
    """Yield (text of the key, child): no two of one container have the same text."""
    taken: set[str | int] | None = None
    for number, (key, child) in enumerate(parts):
        text = text_of(key)
        if text is not key:  # it stands for another kind of key, or for a part of it
            if taken is None:
                taken = {other for other, _ in parts if type(other) in (str, int)}
            if text in taken or type(key) is Key:
                text = f"{text} #{number}"
            while text in taken:  # somebody's own key
                text = f"{text}'"
            taken.add(text)
        yield text, child


def walk(root: Any) -> Iterator[tuple[Path, Any]]:
    """Yield (path, leaf) in the source's order; an empty container is a leaf.

    A container inside itself is yielded as a leaf where it repeats.

    Raises:
        FormatError: deeper than `MAX_DEPTH`, or more than `MAX_NODES` leaves and containers.
    """
    stack: list[tuple[Path, Any, Iterator[tuple[Any, Any]]]] = []
    first = children(root)
    if not first:
        yield (), root
        return
    stack.append(((), root, _texts(first)))
    inside = {id(root)}
    seen = 0
    while stack:
        path, node, rest = stack[-1]
        for text, child in rest:
            seen += 1
            if seen > MAX_NODES:
                raise FormatError(
                    f"unfolds to more than {MAX_NODES} values: objects share parts too often",
                    path=dotted(path),
                )
            below = (*path, text)
            parts = children(child)
            if not parts or id(child) in inside:
                yield below, child
                continue
            if len(stack) > MAX_DEPTH:
                raise FormatError(
                    f"nested more than {MAX_DEPTH} levels deep", path=dotted(below)[:200]
                )
            inside.add(id(child))
            stack.append((below, child, _texts(parts)))
            break
        else:
            inside.discard(id(node))
            stack.pop()


def left_out(root: Any) -> Iterator[Note]:
    """Yield a note for each dict whose attributes are not kept, at the first place it has."""
    todo: list[tuple[Path, Any]] = [((), root)]
    seen: set[int] = set()
    while todo:
        path, node = todo.pop()
        if id(node) in seen or len(path) > MAX_DEPTH:
            continue
        seen.add(id(node))
        if isinstance(node, Attributed) and node.attributes:
            names = node.attributes if isinstance(node.attributes, dict) else ["a state"]
            text = ", ".join([named(key) for key in names][:20])
            yield Note(path=dotted(path), text=f"left out the attributes of this dict: {text}")
        below = [
            (key, part)
            for key, part in children(node)
            if children(part) or isinstance(part, dict)
        ]
        todo += [((*path, text_of(key)), part) for key, part in reversed(below)]


def dotted(path: Path) -> str:
    """Return a path as text: components escaped and joined by `/`."""
    text: str | None = None
    for component in path:
        text = join(text, component)
    return text or ""
