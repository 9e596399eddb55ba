"""Structure → state tree; the paths in a structure, and what is at or below them."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeAlias

from ckptfmt.errors import NotFoundError
from ckptfmt.leaves import ArrayRef, escape, join, unescape

Structure: TypeAlias = dict[str | int, object]

_CONTAINERS: Final = (dict, list, tuple)
_GONE: Final = object()


def unflatten(structure: Structure, array_of: Callable[[str, int], object]) -> Structure:
    """Return the structure with `array_of(path, row)` in place of each `ArrayRef`.

    `array_of` is called once per reference, in pre-order: it decides whether tied arrays come
    back as one object. Containers are new.
    """
    return {key: _filled(node, join(None, key), array_of) for key, node in structure.items()}


def _filled(node: object, path: str, array_of: Callable[[str, int], object]) -> object:
    if isinstance(node, ArrayRef):
        return array_of(path, node.row)
    if isinstance(node, dict):
        return {key: _filled(child, join(path, key), array_of) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        children = [_filled(child, f"{path}/{i}", array_of) for i, child in enumerate(node)]
        return children if isinstance(node, list) else tuple(children)
    return node


def paths(structure: object) -> Iterator[tuple[str, object]]:
    """Yield (path, leaf) in pre-order; a leaf is a value or an `ArrayRef`.

    Empty containers have no leaves.
    """
    stack: list[tuple[str | None, Iterator[tuple[str | int, object]]]]
    stack = [(None, iter(items(structure)))]
    while stack:
        path, rest = stack[-1]
        for key, child in rest:
            below = join(path, key)
            if isinstance(child, _CONTAINERS):
                stack.append((below, iter(items(child))))
                break
            yield below, child
        else:
            stack.pop()


def items(node: object) -> Iterable[tuple[str | int, object]]:
    """Return the (key or index, child) pairs of a container; a leaf has none."""
    if isinstance(node, dict):
        return node.items()
    return enumerate(node) if isinstance(node, (list, tuple)) else ()


def lookup(structure: object, path: str) -> object:
    """Return the leaf or the container at `path`.

    Raises:
        NotFoundError: nothing is there; names the container that was reached and what in it
            has a similar name.
    """
    node, parent = structure, None
    for component in path.split("/"):
        key = find(node, component)
        if key is None:
            near = [join(parent, unescape(name)) for name in _near(node, component)]
            raise NotFoundError(
                "no such path", path=path, inside=parent or "the root", near=near
            )
        node = node[key]  # type: ignore[index]  # find() has seen that it is a container
        parent = component if parent is None else f"{parent}/{component}"
    return node


def find(node: object, component: str) -> str | int | None:
    """Return the key or index that `component` of a path stands for in a container, or None."""
    text = unescape(component)
    if escape(text) != component:
        return None
    if isinstance(node, dict) and text in node:
        return text
    digits = text.removeprefix("-")
    if not (digits.isdecimal() and len(digits) <= 20):  # what 64 bits may need
        return None
    index = int(text)
    known = index in node if isinstance(node, dict) else index in range(_length(node))
    return index if known and str(index) == text else None


def _length(node: object) -> int:
    return len(node) if isinstance(node, (list, tuple)) else 0


def _near(node: object, component: str) -> list[str]:
    wanted = component.casefold()
    names = (escape(key) for key, _ in items(node))
    # difflib takes seconds for 100,000 names: let it see those that begin alike.
    alike = heapq.nlargest(200, names, key=lambda name: _alike(name.casefold(), wanted))
    ratio = difflib.SequenceMatcher(b=wanted)
    rated = []
    for name in alike:
        ratio.set_seq1(name.casefold())
        rated.append((ratio.ratio(), name))
    return [name for found, name in heapq.nlargest(3, rated) if found >= 0.4]


def _alike(a: str, b: str) -> int:
    """Return how many characters `a` and `b` have in common at their beginning."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))


def filter(structure: Structure, keep: Callable[[str], bool]) -> Structure:
    """Return what is left when only leaves with `keep(path)` stay.

    A container that loses all it had goes too; one that was empty before counts as a leaf. A
    list or tuple that loses some elements becomes a dict from the old indexes to the rest, so
    that no element changes its path.
    """
    left = {key: _kept(node, join(None, key), keep) for key, node in structure.items()}
    return {key: node for key, node in left.items() if node is not _GONE}


def _kept(node: object, path: str, keep: Callable[[str], bool]) -> object:
    if not isinstance(node, _CONTAINERS) or not node:
        return node if keep(path) else _GONE
    pairs = [(key, _kept(child, join(path, key), keep)) for key, child in items(node)]
    left = {key: child for key, child in pairs if child is not _GONE}
    if not left:
        return _GONE
    if isinstance(node, dict) or len(left) < len(node):
        return left
    return list(left.values()) if isinstance(node, list) else tuple(left.values())
