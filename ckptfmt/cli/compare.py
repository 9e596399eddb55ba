"""What differs between two checkpoints. Arrays are compared by digest where that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from ckptfmt import Checkpoint
from ckptfmt.cli import numeric, outline
from ckptfmt.cli.numeric import Difference
from ckptfmt.leaves import ArrayRef, join
from ckptfmt.options import Progress

Status: TypeAlias = Literal["equal", "changed", "added", "removed"]

PLAIN: Final = (
    "counters", "metrics", "hyperparameters", "architecture", "preprocessing", "artifacts",
)  # fmt: skip


class Word(str):
    """Stands for a value that is not one: a container, an array, or nothing at all."""

    __slots__ = ()


ABSENT: Final = Word("absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDiff:
    """One path that is an array in at least one of the two."""

    path: str
    status: Status
    a: tuple[str, tuple[int, ...]] | None  # dtype and shape
    b: tuple[str, tuple[int, ...]] | None
    nbytes: int
    read: bool = False  # decided by the data: chunks or digest algorithms did not match
    values: Difference | None = None  # when asked for, of arrays of one shape


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDiff:
    """Something other than an array that differs."""

    where: str  # tree, counters, metrics, ...
    path: str
    a: object  # `ABSENT` where that side has nothing
    b: object


def arrays(
    a: Checkpoint, b: Checkpoint, *, values: bool, progress: Progress
) -> list[ArrayDiff]:
    """Compare all arrays by path, bit by bit; those that only `b` has come last.

    Data is read of changed arrays if `values` are asked for, and of arrays whose chunks or
    digest algorithms differ between the two.
    """
    left, right = _rows(a), _rows(b)
    found = [
        _by_manifest(a, b, path, left.get(path), right.get(path))
        for path in [*left, *(path for path in right if path not in left)]
    ]
    todo = [
        n
        for n, diff in enumerate(found)
        if diff.read or (values and diff.status == "changed" and _alike(diff))
    ]
    total = sum(found[n].nbytes for n in todo)
    done = 0
    for n in todo:
        path, read = found[n].path, Difference(same_bits=True)
        one, other = a.lazy(path), b.lazy(path)
        for index in numeric.blocks(one.shape, max(one.dtype.itemsize, other.dtype.itemsize)):
            progress("reading", done, total)
            block = numeric.compare(one, other, index)
            read = read.merged(block)
        done += found[n].nbytes
        same = read.same_bits and found[n].a == found[n].b
        found[n] = replace(
            found[n],
            status="equal" if same else "changed",
            values=read if values and not same else None,
        )
    return found


def plain(a: Checkpoint, b: Checkpoint) -> list[ValueDiff]:
    """Compare everything but arrays and environments."""
    found = []
    for where in PLAIN:
        found += _differences(where, _flat(getattr(a, where)), _flat(getattr(b, where)))
    return found + _differences("tree", _structure(a), _structure(b))


def _rows(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the row of every array by each of its paths."""
    return {
        path: leaf.row
        for path, leaf in outline.leaves(checkpoint.structure())
        if isinstance(leaf, ArrayRef)
    }


def _by_manifest(
    a: Checkpoint, b: Checkpoint, path: str, row: int | None, other: int | None
) -> ArrayDiff:
    one = None if row is None else a.manifest.tables.array(row)
    two = None if other is None else b.manifest.tables.array(other)
    status: Status = "removed" if two is None else "added"
    unsure = False
    if row is not None and other is not None and one is not None and two is not None:
        status = "changed"
        if (one.dtype, one.shape) == (two.dtype, two.shape):
            equal = _same_digests(a, b, row, other)
            unsure = equal is None
            status = "equal" if equal else "changed"
    return ArrayDiff(
        path=path,
        status=status,
        a=None if one is None else (one.dtype.name, one.shape),
        b=None if two is None else (two.dtype.name, two.shape),
        nbytes=max(0 if one is None else one.nbytes, 0 if two is None else two.nbytes),
        read=unsure,
    )


def _same_digests(a: Checkpoint, b: Checkpoint, row: int, other: int) -> bool | None:
    """Tell whether two arrays are equal by their digests; None: these cannot be compared."""
    one, two = a.manifest.tables, b.manifest.tables
    if one.digest.name != two.digest.name:
        return None
    left = {(c.start, c.shape): c.raw_digest for c in one.chunks(row)}
    right = {(c.start, c.shape): c.raw_digest for c in two.chunks(other)}
    return left == right if left.keys() == right.keys() else None


def _alike(diff: ArrayDiff) -> bool:
    return diff.a is not None and diff.b is not None and diff.a[1] == diff.b[1]


def _structure(checkpoint: Checkpoint) -> dict[str, object]:
    """Return values, types of containers, and which arrays are tied, but no array."""
    first: dict[int, str] = {}
    found: dict[str, object] = {}
    for path, node in _flat(checkpoint.structure()).items():
        if isinstance(node, ArrayRef):
            tied = first.setdefault(node.row, path)
            found[path] = Word("array" if tied == path else f"array tied to {tied}")
        else:
            found[path] = node
    return found


def _flat(node: object, path: str | None = None) -> dict[str, object]:
    """Return each value, and what kind of container lies between, by path."""
    inside = list(outline.children(node))
    if not isinstance(node, Mapping | list | tuple) or outline.is_row(node):
        return {} if node is None and path is None else {path or "": node}
    found: dict[str, object] = {}
    if path is not None:
        found[path] = _container(node, inside)
    for key, child in inside:
        found.update(_flat(child, join(path, key)))
    return found


def _container(node: object, inside: list[tuple[str | int, object]]) -> Word:
    if not isinstance(node, Mapping):
        return Word(type(node).__name__)
    ints = [str(key) for key, _ in inside if isinstance(key, int)]
    return Word(f"dict with int keys {', '.join(ints)}" if ints else "dict")


def _differences(
    where: str, a: Mapping[str, object], b: Mapping[str, object]
) -> list[ValueDiff]:
    found = []
    for path in [*a, *(path for path in b if path not in a)]:
        one, other = a.get(path, ABSENT), b.get(path, ABSENT)
        if not _same(one, other) and not _only_array(one, other):
            found.append(ValueDiff(where=where, path=path, a=one, b=other))
    return found


def _only_array(one: object, other: object) -> bool:
    """Tell whether this is an array that one side lacks: that is told with the arrays."""
    return {type(one), type(other)} == {Word} and {str(one), str(other)} == {"array", ABSENT}


def _same(one: object, other: object) -> bool:
    """Tell whether two values are the same to the bit, types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.generic) and isinstance(other, np.generic):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, float | complex):
        return repr(one) == repr(other)  # NaN is itself, 0.0 is not -0.0
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other
