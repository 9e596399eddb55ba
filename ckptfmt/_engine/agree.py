"""What the ranks of one save hold → one tree, and who writes which box. Pure (spec §8.7).

Each rank says which leaves it has and which box of each array (`share`); rank 0 merges that
(`merge`), and has every box written once (`assign`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from ckptfmt import dtypes, tree
from ckptfmt._engine import plan
from ckptfmt._engine.plan import Piece
from ckptfmt.errors import FormatError, MismatchError, NotFoundError, StateError
from ckptfmt.format.parts import message, read_message
from ckptfmt.format.tables import ArrayRow, Tables
from ckptfmt.format.tiling import check_tiling
from ckptfmt.format.values import decode, encode, encode_plain
from ckptfmt.leaves import PROBE, ArrayRef, join
from ckptfmt.tree import Flat, Structure

RANK_LOCAL: Final = "rank_local"  # what only one rank needs, below its number
MAX_UNIT: Final = 1.5  # times an even share: more of replicated bytes is not kept together

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # start, extent


class Holder(NamedTuple):
    """One rank's copy of a box."""

    rank: int
    leaf: int  # its index among the leaves of that rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One array of all ranks."""

    array: ArrayRow
    aliases: tuple[str, ...]
    boxes: Mapping[Box, Sequence[Holder]]  # in order of their starts; they tile the array


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """One state tree of all ranks."""

    structure: Structure
    probe: Structure | None  # that of rank 0
    rows: Sequence[Row]


@dataclass(slots=True)
class _Known:
    """What the ranks so far have said of one path with an array."""

    dtype: str
    shape: tuple[int, ...]
    rank: int  # the first that has it
    tied: tuple[str, ...] | None = None  # all paths of the same memory; None: nobody has bytes
    tied_by: int = 0


def share(flat: Flat) -> dict[str, Any]:
    """Return what a rank tells rank 0 of its state; no values of arrays."""
    alike = tree.unflatten(flat.structure, lambda path, row: ArrayRef(0))
    probe = flat.probe and tree.unflatten(flat.probe, lambda path, row: ArrayRef(0))
    return {
        # Packed by section: what many ranks have alike is taken apart only once.
        "tree": {str(key): message(encode({key: node})) for key, node in alike.items()},
        "probe": None if probe is None else message(encode(probe)),
        "arrays": [
            [
                leaf.path, list(leaf.aliases), leaf.dtype.name, list(leaf.shape),
                list(leaf.start), list(leaf.array.shape),
            ]
            for leaf in flat.leaves
        ],
    }  # fmt: skip


def merge(shares: Sequence[Mapping[str, Any]]) -> Merged:
    """Merge what `share` returned on each rank, in the order of ranks.

    Raises:
        MismatchError: two ranks disagree about one path: its shape, dtype, ties or value; or
            the boxes of an array do not cover it exactly once. Names the path and the ranks.
        StateError: a rank has something below the number of another rank in `rank_local`.
    """
    structure = _merged_trees([one["tree"] for one in shares])
    known: dict[str, _Known] = {}
    boxes: dict[tuple[str, ...], dict[Box, list[Holder]]] = {}
    for rank, one in enumerate(shares):
        for leaf, (path, aliases, dtype, shape, start, extent) in enumerate(one["arrays"]):
            tied = tuple(sorted((path, *aliases)))
            for name in tied:
                _enter(
                    known, name, dtype, tuple(shape), rank, tied if 0 not in extent else None
                )
            if 0 not in extent:
                held = boxes.setdefault(tied, {})
                held.setdefault((tuple(start), tuple(extent)), []).append(Holder(rank, leaf))
    rows: dict[tuple[str, ...], int] = {}
    names: list[list[str]] = []

    def number(path: str, _: int) -> ArrayRef:
        tied = known[path].tied or (path,)
        row = rows.setdefault(tied, len(names))
        if row == len(names):
            names.append([])
        names[row].append(path)
        return ArrayRef(row)

    numbered = tree.unflatten(structure, number)
    packed = shares[0]["probe"]
    probe = packed and tree.unflatten(
        _decoded(packed), lambda path, row: number(f"{PROBE}/{path}", row)
    )
    merged = [
        _row(known[paths[0]], paths, boxes.get(tied, {}))
        for tied, paths in zip(rows, names, strict=True)
    ]
    return Merged(structure=numbered, probe=probe, rows=merged)


def _enter(
    known: dict[str, _Known],
    path: str,
    dtype: str,
    shape: tuple[int, ...],
    rank: int,
    tied: tuple[str, ...] | None,
) -> None:
    """Compare what one more rank says of a path with what is known."""
    has = known.setdefault(path, _Known(dtype, shape, rank))
    if (has.dtype, has.shape) != (dtype, shape):
        raise MismatchError(
            "ranks disagree about an array: give it the same dtype and global shape everywhere,"
            " or keep it below rank_local",
            path=path,
            ranks=(has.rank, rank),
            first=(has.dtype, has.shape),
            other=(dtype, shape),
        )
    if tied is None:
        return
    if has.tied is None:
        has.tied, has.tied_by = tied, rank
    elif has.tied != tied:
        raise MismatchError(
            "ranks disagree about which arrays are tied",
            path=path,
            ranks=(has.tied_by, rank),
            first=has.tied,
            other=tied,
        )


def _row(known: _Known, paths: Sequence[str], held: Mapping[Box, Sequence[Holder]]) -> Row:
    shape = known.shape
    boxes = dict(sorted(held.items()))
    if 0 not in shape and list(boxes) != [((0,) * len(shape), shape)]:
        starts = np.array([start for start, _ in boxes], np.int64).reshape(-1, len(shape))
        extents = np.array([extent for _, extent in boxes], np.int64).reshape(starts.shape)
        try:
            if boxes:
                check_tiling(starts, extents, shape, path=paths[0])
            problem = None if boxes else FormatError("no rank has a part of it")
        except FormatError as error:
            problem = error
        if problem is not None:
            raise MismatchError(
                "the parts that the ranks have do not cover the array exactly once",
                path=paths[0],
                global_shape=shape,
                ranks=sorted({holder.rank for own in boxes.values() for holder in own}),
                boxes=list(boxes),
            ) from problem
    array = ArrayRow(paths[0], dtypes.by_name(known.dtype), shape)
    return Row(array=array, aliases=tuple(paths[1:]), boxes=boxes)


# ---- trees


def _merged_trees(trees: Sequence[Mapping[str, bytes]]) -> Structure:
    result: Structure = {}
    seen: dict[tuple[str, bytes], int] = {}
    structures: list[tuple[int, Structure]] = []  # distinct ones, with the first rank
    for rank, sections in enumerate(trees):
        for name, data in sections.items():
            if seen.setdefault((name, data), rank) != rank:
                continue
            part = _decoded(data)
            if name == RANK_LOCAL:
                _check_local(part[RANK_LOCAL], rank)
            result = _joined(result, part, None, rank, structures)
            structures.append((rank, part))
    return result


def _decoded(data: bytes) -> Structure:
    """Return a structure whose references all are `ArrayRef(0)`."""
    return decode(read_message(data), arrays=1)


def _check_local(node: object, rank: int) -> None:
    if isinstance(node, dict) and all(
        type(key) is int and key == rank and isinstance(value, dict)
        for key, value in node.items()
    ):
        return
    raise StateError(
        "a rank keeps what only it needs in a dict below its own number:"
        " {'rank_local': {group.rank: {...}}}",
        path=RANK_LOCAL,
        rank=rank,
    )


def _joined(
    a: Any, b: Any, path: str | None, rank: int, before: list[tuple[int, Structure]]
) -> Any:
    """Return what two ranks have at one path, together."""
    if isinstance(a, dict) and isinstance(b, dict):
        out = dict(a)
        texts = {str(key): key for key in a}
        for key, child in b.items():
            below = join(path, key)
            if key in out:
                out[key] = _joined(out[key], child, below, rank, before)
            elif str(key) in texts:
                raise _different(below, rank, before, "the keys")
            else:
                out[key] = child
        return out
    if type(a) is type(b) and isinstance(a, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        both = [_joined(x, y, join(path, n), rank, before) for n, (x, y) in pairs]
        return both if isinstance(a, list) else tuple(both)
    if isinstance(a, ArrayRef) and isinstance(b, ArrayRef):
        return a
    plain = not any(isinstance(x, (dict, list, tuple, ArrayRef)) for x in (a, b))
    if plain and message(encode_plain(a)) == message(encode_plain(b)):
        return a
    raise _different(path or "", rank, before, "the values" if plain else "what is")


def _different(
    path: str, rank: int, before: list[tuple[int, Structure]], what: str
) -> MismatchError:
    first = rank
    for other, structure in before:
        try:
            tree.lookup(structure, path)
        except NotFoundError:
            continue
        first = other
        break
    return MismatchError(
        f"ranks disagree about {what} at a path: what differs belongs below rank_local",
        path=path,
        ranks=(first, rank),
    )


# ---- who writes what


def cut(rows: Sequence[Row], limit: int) -> list[tuple[Piece, Sequence[Holder]]]:
    """Return every chunk-to-be, with the ranks that have its bytes."""
    pieces: list[tuple[Piece, Sequence[Holder]]] = []
    for n, row in enumerate(rows):
        item, nth = row.array.dtype.itemsize, 0
        for (start, extent), holders in row.boxes.items():
            for begin, shape in plan.boxes(extent, item, limit, start):
                nbytes = item * math.prod(shape)
                pieces.append((Piece(n, nth, begin, shape, nbytes), holders))
                nth += 1
    return pieces


def assign(
    rows: Sequence[Row],
    pieces: Sequence[tuple[Piece, Sequence[Holder]]],
    world: int,
    base: Tables | None,
) -> list[list[tuple[Piece, int]]]:
    """Choose for each piece one of the ranks that have it; evenly by bytes.

    Replicated pieces that lie in one file of the base, or in one array, stay together as far
    as that is even: who rewrites a file or reuses it should see all of it.

    Returns:
        Per rank the pieces that it writes, in order, each with the index of its leaf there.
    """
    load = [0] * world
    chosen: dict[tuple[int, int], int] = {}  # piece → rank
    shared: dict[tuple[int, ...], int] = {}  # ranks → bytes that all of them have
    units: dict[tuple[tuple[int, ...], object], list[Piece]] = {}
    places = {} if base is None else _files(rows, [piece for piece, _ in pieces], base)
    for piece, holders in pieces:
        ranks = tuple(holder.rank for holder in holders)
        if len(ranks) == 1:
            chosen[piece.leaf, piece.nth] = ranks[0]
            load[ranks[0]] += piece.nbytes
            continue
        shared[ranks] = shared.get(ranks, 0) + piece.nbytes
        place = places.get((piece.leaf, piece.nth), (piece.leaf,))
        units.setdefault((ranks, place), []).append(piece)
    todo: list[tuple[int, tuple[int, ...], list[Piece]]] = []
    for (ranks, _), own in units.items():
        nbytes = sum(piece.nbytes for piece in own)
        if nbytes <= MAX_UNIT * shared[ranks] / len(ranks):
            todo.append((nbytes, ranks, own))
        else:
            todo += [(piece.nbytes, ranks, [piece]) for piece in own]
    heaps: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for nbytes, ranks, own in sorted(todo, key=lambda unit: -unit[0]):  # the largest first
        rank = _least(heaps.setdefault(ranks, [(0, rank) for rank in ranks]), load)
        load[rank] += nbytes
        chosen |= {(piece.leaf, piece.nth): rank for piece in own}
    orders: list[list[tuple[Piece, int]]] = [[] for _ in range(world)]
    for piece, holders in pieces:
        rank = chosen[piece.leaf, piece.nth]
        orders[rank].append((piece, next(h.leaf for h in holders if h.rank == rank)))
    return orders


def _files(
    rows: Sequence[Row], pieces: Sequence[Piece], base: Tables
) -> dict[tuple[int, int], object]:
    """Return the file in which the base has the same box, for each piece that may be there."""
    keys = {file.key for file in base.files}
    found = plan.candidates([row.array for row in rows], pieces, base, number=0, intact=keys)
    return {name: chunk.file for name, chunk in found.items()}


def _least(heap: list[tuple[int, int]], load: Sequence[int]) -> int:
    """Return the rank of a heap of (load, rank) with the least load; loads only grow."""
    while heap[0][0] != load[heap[0][1]]:
        rank = heap[0][1]
        heapq.heapreplace(heap, (load[rank], rank))
    return heap[0][1]
