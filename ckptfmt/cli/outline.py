"""A state tree as indented lines; none of its data is read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ckptfmt.cli import text
from ckptfmt.leaves import ArrayRef, join
from ckptfmt.reports import ArrayInfo

MAX_LINES: Final = 200  # shown unasked; of a larger tree only the upper levels are


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One container, array or value."""

    path: str
    depth: int  # 0: a section or another key of the root
    kind: str  # dtype, or type of a value or container
    detail: str  # shape, value, or what is inside
    nbytes: int | None  # of arrays, those below included; None: no arrays here
    arrays: int  # here and below; tied ones count once
    branch: bool  # a container with something in it

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2] or '""'


@dataclass(frozen=True, slots=True, kw_only=True)
class Outliner:
    """What every line needs to know."""

    arrays: Sequence[ArrayInfo]  # by row
    keep: Callable[[str], bool]  # which leaves are shown, by path
    width: int  # of a value; longer ones are cut

    def lines(self, structure: object) -> list[Line]:
        """Return the lines of a state tree, in its order."""
        return [
            line
            for key, child in children(structure)
            for line in self._below(child, join(None, key), 0)
        ]

    def _below(self, node: object, path: str, depth: int) -> list[Line]:
        if not isinstance(node, dict | list | tuple) or is_row(node):
            kept = any(map(self.keep, names(node, path)))
            return [self._leaf(node, path, depth)] if kept else []
        inside: list[Line] = []
        for key, child in children(node):
            inside.extend(self._below(child, join(path, key), depth + 1))
        if not inside and (node or not self.keep(path)):
            return []
        arrays = sum(line.arrays for line in inside if not line.branch)
        sizes = [line.nbytes for line in inside if not line.branch and line.nbytes is not None]
        own = Line(
            path=path,
            depth=depth,
            kind=type(node).__name__,
            detail=text.count(arrays, "array") if arrays else _entries(node),
            nbytes=sum(sizes) if sizes else None,
            arrays=arrays,
            branch=bool(node),
        )
        return [own, *inside]

    def _leaf(self, node: object, path: str, depth: int) -> Line:
        detail, nbytes, arrays = "", None, 0
        if isinstance(node, ArrayRef):
            info = self.arrays[node.row]
            kind, detail = info.dtype, text.shape(info.shape)
            if path == info.path:
                nbytes, arrays = info.nbytes, 1
            else:
                detail += f" tied to {info.path}"
        else:
            kind, detail = text.kind(node), text.value(node, self.width)
        return Line(
            path=path,
            depth=depth,
            kind=kind,
            detail=detail,
            nbytes=nbytes,
            arrays=arrays,
            branch=False,
        )


def children(node: object) -> Iterable[tuple[str | int, object]]:
    """Return the (key or index, child) pairs of a container; a leaf has none."""
    if isinstance(node, Mapping):
        return node.items()
    return enumerate(node) if isinstance(node, list | tuple) else ()


def is_row(node: object) -> bool:
    """Tell whether a node is a list or tuple of plain values: that counts as one value.

    The state of a random generator is a tuple of 625 numbers, and `betas` is one of two.
    """
    inside = node if isinstance(node, list | tuple) else ()
    return bool(inside) and not any(
        isinstance(item, Mapping | list | tuple | ArrayRef) for item in inside
    )


def names(node: object, path: str) -> Iterator[str]:
    """Yield the paths by which a value, or what is in a row, may be selected."""
    yield path
    for index, _ in children(node):
        yield join(path, index)


def leaves(plain: object, parent: str | None = None) -> Iterator[tuple[str, object]]:
    """Yield (path, value) of nested values; rows and empty containers are values."""
    inside = list(children(plain))
    if not inside or is_row(plain):
        yield parent or "", plain
        return
    for key, child in inside:
        yield from leaves(child, join(parent, key))


def levels(lines: Sequence[Line], limit: int = MAX_LINES) -> int:
    """Return how many levels of a tree fit into `limit` lines; at least one."""
    depths = [line.depth for line in lines]
    deepest = max(depths, default=0) + 1
    fitting = (n for n in range(deepest, 1, -1) if sum(d < n for d in depths) <= limit)
    return next(fitting, 1)


def _entries(node: dict[object, object] | Sequence[object]) -> str:
    return text.count(len(node), "entry", "entries") if node else "empty"
