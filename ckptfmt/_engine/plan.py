"""Decide which bytes to move. Pure: leaves and manifests in, plans out; no I/O."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ckptfmt.format import codec, datafile, layout
from ckptfmt.format.tables import ArrayRow, Chunk, Tables
from ckptfmt.leaves import unescape
from ckptfmt.tree import Leaf

MIN_CHUNK_NBYTES: Final = 16 * 2**20
MAX_CHUNKS: Final = 100_000  # aimed at; what a manifest holds without pain
MAX_FILE_ENTRIES: Final = 200_000  # keeps a safetensors header below its limit
MISC_NBYTES: Final = 2**20  # smaller sections share one file
REUSE_LIMIT: Final = 100  # saves after which unchanged bytes are written afresh


class Piece(NamedTuple):
    """One box of one leaf: what becomes a chunk."""

    leaf: int  # index into the leaves
    nth: int  # of the chunks of its array
    start: tuple[int, ...]
    shape: tuple[int, ...]
    nbytes: int  # decoded


PLACE: Final = operator.itemgetter(0, 1)  # of a piece: leaf and nth, as in keys of chunks
NBYTES: Final = operator.itemgetter(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """A data file of raw pieces; its header is known before a byte is written."""

    key: str
    header: bytes  # length prefix and padded JSON
    pieces: Sequence[Piece]  # in the order of their bytes
    nbytes: int  # whole file


class Group(NamedTuple):
    """Pieces that go into files of their own."""

    section: str  # for the file's name
    pieces: tuple[Piece, ...]
    shared: bool  # several sections: entry names carry the full path


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One request to the backend that serves one or more chunks of the same file."""

    file: int
    offset: int
    nbytes: int
    parts: tuple[tuple[int, Chunk], ...]  # (row, chunk), sorted by offset, all inside


def chunk_nbytes(total: int, previous: int | None) -> int:
    """Return the chunk size for `total` bytes, the previous one where it still fits.

    Chunks keep their boundaries from save to save only if the size stays: reuse needs that.
    """
    fitting = max(MIN_CHUNK_NBYTES, math.ceil(total / MAX_CHUNKS))
    return previous if previous and fitting <= 2 * previous else fitting


def boxes(
    shape: tuple[int, ...],
    itemsize: int,
    limit: int,
    start: tuple[int, ...] | None = None,
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a C-ordered array, or one box of it, along leading axes, at most `limit` bytes each.

    Each part is one contiguous byte range of what is cut. It is larger than `limit` only when
    one element is. Cuts lie where they would lie in the whole array: boxes of other ranks, or
    of another number of ranks, then have parts in common, which reuse needs.

    Args:
        start: First element of the box in its array; None: the array itself.

    Yields:
        (start, extent) of each part, in order of memory.
    """
    inner = itemsize * math.prod(shape)
    if inner == 0:
        return
    origin = start or (0,) * len(shape)
    if inner <= limit or not shape:
        yield origin, shape
        return
    axis = -1
    while inner > limit and axis < len(shape) - 1:
        axis += 1
        inner //= shape[axis]
    step = max(1, limit // inner)
    end = origin[axis] + shape[axis]
    leads = (range(b, b + n) for b, n in zip(origin[:axis], shape[:axis], strict=True))
    for lead in itertools.product(*leads):
        begin = origin[axis]
        while begin < end:
            stop = min(end, (begin // step + 1) * step)
            extent = (*(1 for _ in lead), stop - begin, *shape[axis + 1 :])
            yield (*lead, begin, *origin[axis + 1 :]), extent
            begin = stop


def pieces(leaves: Sequence[Leaf], limit: int) -> Iterator[Piece]:
    """Cut all leaves; empty arrays have no piece."""
    for n, leaf in enumerate(leaves):
        shape, item, nbytes = leaf.array.shape, leaf.dtype.itemsize, leaf.array.nbytes
        if 0 < nbytes <= limit:
            yield Piece(n, 0, (0,) * len(shape), shape, nbytes)
            continue
        for index, (start, extent) in enumerate(boxes(shape, item, limit)):
            yield Piece(n, index, start, extent, item * math.prod(extent))


def candidates(
    leaves: Sequence[Leaf | ArrayRow],
    cut: Iterable[Piece],
    base: Tables,
    *,
    number: int,
    intact: Container[str],
) -> dict[tuple[int, int], Chunk]:
    """Return the chunks of the base that may hold the same bytes: same path, dtype and box.

    Chunks of files older than `REUSE_LIMIT` saves are left out: bytes that were written once
    and never read again are refreshed before too much depends on one copy. So are those of
    files that are not `intact`.
    """
    rows = {path: row for row, path in enumerate(base.paths)}
    young = [number - f.number < REUSE_LIMIT and f.key in intact for f in base.files]
    found: dict[tuple[int, int], Chunk] = {}
    for n, group in itertools.groupby(cut, key=lambda p: p.leaf):
        leaf = leaves[n]
        row = rows.get(leaf.path)
        if row is None or base.dtypes[base.dtype[row]].name != leaf.dtype.name:
            continue
        if base.shape_of(row) != leaf.shape:
            continue
        by_box = {(c.start, c.shape): c for c in base.chunks(row)}
        for piece in group:
            chunk = by_box.get((piece.start, piece.shape))
            if chunk is not None and young[chunk.file]:
                found[n, piece.nth] = chunk
    return found


def worth_reusing(
    same: Mapping[tuple[int, int], Chunk], base: Tables
) -> dict[tuple[int, int], Chunk]:
    """Drop the matches whose file would be less than half alive (space ≤ 2x, spec §7.3)."""
    alive = [0] * len(base.files)
    for chunk in same.values():
        alive[chunk.file] += chunk.nbytes
    keep = [2 * alive[i] >= f.nbytes - 8 - f.header_nbytes for i, f in enumerate(base.files)]
    return {key: chunk for key, chunk in same.items() if keep[chunk.file]}


def group(
    leaves: Sequence[Leaf],
    todo: Iterable[Piece],
    *,
    stable: frozenset[tuple[int, int]],
    max_file_nbytes: int,
) -> list[Group]:
    """Distribute pieces over files: by section, and unchanged ones apart from changed ones.

    Bytes that did not change last time will probably not change next time either; in a file of
    their own they stay reusable as a whole.
    """
    by: dict[tuple[str, bool], list[Piece]] = {}
    section, inside, last = "", "", -1
    for piece in todo:
        if piece.leaf != last:  # neighbours: one look per array, and mostly a short one
            path, last = leaves[piece.leaf].path, piece.leaf
            if not (inside and path.startswith(inside)):
                section, inside = section_of(path), path[: path.find("/") + 1]
        key = section, bool(stable) and (piece.leaf, piece.nth) in stable
        by.setdefault(key, []).append(piece)
    small = [key for key, own in by.items() if sum(map(NBYTES, own)) < MISC_NBYTES]
    shared: dict[tuple[str, bool], list[Piece]] = {}
    if len(small) > 1:
        for key in small:
            shared.setdefault(("misc", key[1]), []).extend(by.pop(key))
    groups: list[Group] = []
    for bucket, is_shared in ((by, False), (shared, True)):
        for (section, _), own in bucket.items():
            # Larger items first keeps all of them aligned; stable: tree order stays.
            own.sort(key=lambda p: -leaves[p.leaf].dtype.itemsize)
            groups.extend(
                Group(section, tuple(part), is_shared)
                for part in _bounded(own, max_file_nbytes)
            )
    return groups


def _bounded(own: list[Piece], limit: int) -> Iterator[list[Piece]]:
    part: list[Piece] = []
    nbytes = 0
    for piece in own:
        if part and (nbytes + piece.nbytes > limit or len(part) >= MAX_FILE_ENTRIES):
            yield part
            part, nbytes = [], 0
        part.append(piece)
        nbytes += piece.nbytes
    if part:
        yield part


def section_of(path: str) -> str:
    """Return the top-level key a path lies under, or `""` for a top-level leaf."""
    head, slash, _ = path.partition("/")
    return unescape(head) if slash else ""


def natural_name(path: str, *, full: bool) -> str:
    """Return the safetensors name of a whole array: its keys joined by dots (spec §5.3).

    Args:
        full: Keep the section, for files that several sections share.
    """
    _, slash, rest = path.partition("/")
    own = rest if slash and not full else path
    if "~" not in own:
        return own.replace("/", ".")
    return ".".join(map(unescape, own.split("/")))


def file_plan(leaves: Sequence[Leaf], own: Group, key: str) -> FilePlan:
    """Lay out one data file of raw pieces."""
    names = EntryNames()
    entries: list[datafile.Entry] = []
    offset = 0
    for first, nbytes in _runs(own.pieces):
        leaf = leaves[first.leaf]
        natural = natural_name(leaf.path, full=own.shared)
        shape = leaf.shape
        if leaf.dtype.natural and (first.shape == shape or nbytes == leaf.nbytes):
            kind, name = leaf.dtype.name, names.whole(natural)
        else:
            kind, shape, name = "U8", (nbytes,), names.part(natural, first.nth)
        entries.append(datafile.Entry(name, kind, shape, offset, nbytes))
        offset += nbytes
    header = datafile.build(entries)
    return FilePlan(key=key, header=header, pieces=own.pieces, nbytes=len(header) + offset)


def _runs(own: Iterable[Piece]) -> Iterator[tuple[Piece, int]]:
    """Yield (first piece, bytes) of neighbours in one leaf whose indexes follow each other.

    They form one safetensors entry.
    """
    first: Piece | None = None
    leaf = nth = nbytes = -1
    for piece in own:
        if first is not None and piece.leaf == leaf and piece.nth == nth + 1:
            nbytes += piece.nbytes
        else:
            if first is not None:
                yield first, nbytes
            first, leaf, nbytes = piece, piece.leaf, piece.nbytes
        nth = piece.nth
    if first is not None:
        yield first, nbytes


class EntryNames:
    """Hands out the entry names of one file, each once (spec §5.3)."""

    def __init__(self) -> None:
        self._taken = {datafile.METADATA, ""}

    def whole(self, natural: str) -> str:
        """Return the natural name, or a substitute when it is taken, empty or reserved."""
        if natural in self._taken:
            return self._free(natural)
        self._taken.add(natural)
        return natural

    def part(self, natural: str, index: int) -> str:
        """Return the name of an entry that is a part, encoded, or of an unnamed dtype."""
        return self._free(f"{natural}#{index}")

    def _free(self, name: str) -> str:
        if name not in self._taken:
            self._taken.add(name)
            return name
        free = name
        for n in itertools.count():
            if free not in self._taken:
                break
            free = f"{name}#~{n}"
        self._taken.add(free)
        return free


def coalesce(
    chunks: Iterable[tuple[int, Chunk]], *, max_gap: int, max_nbytes: int
) -> list[Fetch]:
    """Merge neighbouring chunks into fewer, larger reads.

    Object stores charge latency per request, not per byte, and small local reads cost a system
    call each: reading a small gap and throwing it away is cheaper than a second round trip.

    Args:
        chunks: (row, chunk) in any order, from any number of files.
        max_gap: Largest hole, in bytes, that is read and discarded.
        max_nbytes: Largest merged read, in bytes. A single larger chunk stays whole.

    Returns:
        Fetches sorted by (file, offset) that cover every chunk exactly once.
    """
    fetches: list[Fetch] = []
    parts: list[tuple[int, Chunk]] = []
    file, begin, end = -1, 0, 0
    for row, chunk in sorted(chunks, key=lambda rc: (rc[1].file, rc[1].offset)):
        stop = chunk.offset + chunk.nbytes
        fits = chunk.offset - end <= max_gap and stop - begin <= max_nbytes
        if parts and chunk.file == file and fits:
            parts.append((row, chunk))
            end = max(end, stop)
            continue
        if parts:
            fetches.append(_fetch(file, begin, end, parts))
        file, begin, end, parts = chunk.file, chunk.offset, stop, [(row, chunk)]
    if parts:
        fetches.append(_fetch(file, begin, end, parts))
    return fetches


def _fetch(file: int, begin: int, end: int, parts: list[tuple[int, Chunk]]) -> Fetch:
    return Fetch(file=file, offset=begin, nbytes=end - begin, parts=tuple(parts))


def needed_keys(tables: Tables, rows: Iterable[int]) -> set[str]:
    """Return the data files that hold the arrays in `rows`."""
    used = {chunk.file for row in rows for chunk in tables.chunks(row)}
    return {tables.files[i].key for i in used}


def file_key(save_id: str, own: Group, n: int) -> str:
    """Return the name of the n-th data file of a save."""
    return layout.data_key(save_id, own.section, n)


def is_raw(name: str) -> bool:
    """Tell whether chunks under codec `name` are the array's own bytes."""
    return name == codec.RAW
