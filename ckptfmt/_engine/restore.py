"""Verified bytes → a state tree: new memory, or the caller's own arrays (spec §12.1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptfmt import tree
from ckptfmt._engine.boxes import Box
from ckptfmt._engine.read import Reader
from ckptfmt.checks import coverage
from ckptfmt.checks.coverage import LoadReport
from ckptfmt.dtypes import by_numpy
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError
from ckptfmt.format.tables import Tables
from ckptfmt.leaves import ArrayRef, Shard
from ckptfmt.options import expect
from ckptfmt.pause import gc_paused
from ckptfmt.tree.overlap import elements_of, extent, folds, overlaps, start_of

Array: TypeAlias = npt.NDArray[Any]
Patterns: TypeAlias = str | Sequence[str]
Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]
Progress: TypeAlias = Callable[[str, int, int], None]
Place: TypeAlias = Array | Shard | Callable[[Array], None]


def choose(structure: Any, select: Patterns | None, rename: Rename | None) -> Any:
    """Return the structure a load is about.

    Raises:
        NotFoundError: one of the patterns in `select` matches nothing.
        UsageError: `rename` gives two leaves one path, or an argument is of the wrong type.
    """
    if select is not None:
        patterns = patterns_of(select)
        chosen = tree.filter(structure, tree.matcher(patterns))
        # A misspelt pattern beside others would be a silent half load.
        dead = [
            one
            for one in patterns
            if not chosen or (len(patterns) > 1 and not tree.filter(chosen, tree.matcher(one)))
        ]
        if dead or not chosen:
            raise NotFoundError("nothing in the checkpoint matches", select=dead or select)
        structure = chosen
    if rename is None:
        return structure
    if not callable(rename):
        expect("rename", rename, Mapping)
        for name in itertools.chain.from_iterable(rename.items()):
            expect("rename", name, str)
    return tree.rename(structure, rename)


def patterns_of(select: Patterns | None) -> list[str]:
    """Return the patterns of a `select` argument; none for None.

    Raises:
        UsageError: it is no str and no sequence of them.
    """
    if select is None:
        return []
    expect("select", select, str, list, tuple, set, frozenset)
    patterns = [select] if isinstance(select, str) else list(select)
    for one in patterns:
        expect("select", one, str)
    return patterns


def arrays_of(structure: Any) -> dict[str, int]:
    """Return the row of each array reference, by path."""
    return {p: ref.row for p, ref in tree.paths(structure) if isinstance(ref, ArrayRef)}


def compare(chosen: Any, tables: Tables, target: Mapping[str, Any]) -> LoadReport:
    """Compare the arrays of a structure with those of a target tree; reads no data.

    Raises:
        StateError: the target holds what no state tree can.
    """
    return _compare(arrays_of(chosen), tables, tree.flatten(target).leaves)


def _compare(
    rows: Mapping[str, int], tables: Tables, leaves: Iterable[tree.Leaf]
) -> LoadReport:
    wanted = {
        path: (leaf.dtype.name, leaf.shape)
        for leaf in leaves
        for path in (leaf.path, *leaf.aliases)
    }
    return coverage.compare(_stored(rows, tables), wanted)


def _stored(rows: Mapping[str, int], tables: Tables) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype name and shape of stored arrays, by path."""
    found = tables.rows(list(rows.values()))
    kinds = {row: (array.dtype.name, array.shape) for row, array, _ in found}
    return {path: kinds[row] for path, row in rows.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """How one load goes."""

    reader: Reader
    verify: bool
    progress: Progress | None

    def fresh(self, chosen: Any, *, mmap: bool) -> Any:
        """Return the state tree in new memory, or over the stored bytes with `mmap`."""
        rows = arrays_of(chosen)
        wanted = list(dict.fromkeys(rows.values()))
        arrays: dict[int, Array] = {}
        if mmap:
            arrays = self.reader.views(wanted, verify=self.verify)
        rest = [row for row in wanted if row not in arrays]
        loaded = self.reader.load(rest, verify=self.verify, progress=self.progress)
        arrays.update(loaded)
        with gc_paused():  # one object per row: tied arrays come back tied
            return tree.unflatten(chosen, lambda _, row: arrays[row])

    def into(self, chosen: Any, target: Mapping[str, Any], *, checkpoint: str) -> Any:
        """Fill the arrays of `target` in place and return the state tree around them.

        Raises:
            MismatchError: paths, shapes, dtypes or ties disagree, arrays overlap, or one is
                read-only; nothing was changed.
            IntegrityError: data is damaged; says whether something was changed.
        """
        rows, leaves = arrays_of(chosen), tree.flatten(target).leaves
        report = _compare(rows, self.reader.tables, leaves)
        report.raise_for_mismatch(checkpoint=checkpoint)
        places = {
            path: leaf.shard or leaf.array
            for leaf in leaves
            for path in (leaf.path, *leaf.aliases)
        }
        self._fill(rows, places)
        return tree.unflatten(chosen, lambda path, _: places[path])

    def fill(
        self, rows: Mapping[str, int], places: Mapping[str, Place], *, checkpoint: str
    ) -> None:
        """Read single arrays to where they belong, checked as by `into`.

        Args:
            rows: Row of each stored path.
        """
        arrays = {path: place for path, place in places.items() if not callable(place)}
        wanted = {
            path: (by_numpy(_array(place).dtype, path=path).name, _shape(place))
            for path, place in arrays.items()
        }
        known = {path: rows[path] for path in arrays.keys() & rows.keys()}
        report = coverage.compare(_stored(known, self.reader.tables), wanted)
        report.raise_for_mismatch(checkpoint=checkpoint)
        if unknown := sorted(places.keys() - rows.keys()):
            raise NotFoundError("no such array in the checkpoint", paths=unknown)
        self._fill(rows, places)

    def _fill(self, rows: Mapping[str, int], places: Mapping[str, Place]) -> None:
        """Read arrays to where they belong; paths, shapes and dtypes are known to agree.

        Where storage maps files, all of them are verified before the first place is touched.

        Args:
            rows: Row of each path.
            places: Arrays and shards to fill in place, and functions that take an array each:
                those are called last, one array in memory at a time.
        """
        arrays = {path: place for path, place in places.items() if not callable(place)}
        memory = {path: _array(place) for path, place in arrays.items()}
        asked = {path: (rows[path], _box(place)) for path, place in places.items()}
        for one, other in _check_places(asked, memory, self.reader.tables):
            self._check_pair(rows, {path: memory[path] for path in (one, other)})
        in_advance = self.verify and self.reader.backend.capabilities.maps
        for some in _passes(asked.values()) if in_advance else ():
            boxes = {row: box for row, box in some.items() if box is not None}
            self.reader.check(some, boxes=boxes)
        verify = self.verify and not in_advance
        first: dict[tuple[int, Box | None], Array] = {}
        for path, array in memory.items():
            first.setdefault(asked[path], array)
        try:
            for some in _passes(first):
                self.reader.load(
                    some,
                    targets={row: first[row, box] for row, box in some.items()},
                    boxes={row: box for row, box in some.items() if box is not None},
                    verify=verify,
                    progress=self.progress,
                )
            for path, array in memory.items():
                if array is not first[asked[path]]:
                    array[...] = first[asked[path]]
            for path, place in places.items():
                if callable(place):
                    row = rows[path]
                    place(self.reader.load([row], verify=verify)[row])
        except IntegrityError as error:
            raise IntegrityError(
                f"{error.message}; the arrays of the target are now partly overwritten:"
                " restore them from another checkpoint"
            ) from error

    def _check_pair(self, rows: Mapping[str, int], pair: Mapping[str, Array]) -> None:
        """Refuse two overlapping arrays if what is stored for them cannot be there at once."""
        ends = {path: extent(array) for path, array in pair.items()}
        low = min(begin for begin, _ in ends.values())
        memory = np.zeros(max(end for _, end in ends.values()) - low, np.uint8)
        stored = self.reader.load(list({rows[path] for path in pair}), verify=self.verify)
        copies = {
            path: np.ndarray(a.shape, a.dtype, memory, start_of(a) - low, a.strides)
            for path, a in pair.items()
            if a.shape == stored[rows[path]].shape  # not of shards
        }
        for path, copy in copies.items():
            copy[...] = stored[rows[path]]
        if len(copies) < len(pair) or any(
            copy.tobytes() != stored[rows[path]].tobytes() for path, copy in copies.items()
        ):
            raise MismatchError(
                "two arrays of the target overlap in memory and what is stored differs there,"
                " so that one would overwrite the other: give each memory of its own",
                paths=tuple(pair),
            )


def _array(place: Array | Shard) -> Array:
    return place.array if isinstance(place, Shard) else place


def _shape(place: Array | Shard) -> tuple[int, ...]:
    return place.global_shape if isinstance(place, Shard) else place.shape


def _box(place: Place) -> Box | None:
    """Return which box of the stored array a place takes; None for the whole."""
    return (place.start, place.array.shape) if isinstance(place, Shard) else None


def _passes(asked: Iterable[tuple[int, Box | None]]) -> list[dict[int, Box | None]]:
    """Distribute (row, box) over as few mappings as possible; nearly always over one."""
    passes: list[dict[int, Box | None]] = []
    for row, box in dict.fromkeys(asked):
        free = next((one for one in passes if row not in one), None)
        if free is None:
            passes.append(free := {})
        free[row] = box
    return passes


def _check_places(
    asked: Mapping[str, tuple[int, Box | None]], places: Mapping[str, Array], tables: Tables
) -> list[tuple[str, str]]:
    """Refuse targets that could not hold what is stored; return pairs that overlap.

    Args:
        asked: What each path takes: a row, and which box of it.
    """
    owner: dict[object, str] = {}  # elements → the first path with them
    own: list[Array] = []  # the first array of each memory, and its path
    paths: list[str] = []
    for path, array in places.items():
        if not array.flags.writeable:
            raise MismatchError("array of the target is read-only", path=path)
        if array.size == 0:
            continue
        if folds(array):
            raise MismatchError(
                "elements of the target's array share memory, so that one would overwrite"
                " another: give it memory of its own",
                path=path,
            )
        known = owner.setdefault(elements_of(array), path)
        if asked[known] != asked[path]:
            raise MismatchError(
                "the target has one array where the checkpoint has two: untie them, or load"
                " without `into`",
                path=path,
                tied_with=known,
                stored=[tables.paths[asked[one][0]] for one in (known, path)],
            )
        if known == path:
            own.append(array)
            paths.append(path)
    found = overlaps(own, [start_of(array) for array in own])
    return [(paths[one], paths[other]) for one, other in found]
