"""Rename the paths of a structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ckptfmt.errors import UsageError
from ckptfmt.leaves import (
    MAX_DEPTH,
    MAX_PATH_NBYTES,
    escape,
    is_unicode,
    join,
    unescape,
)
from ckptfmt.tree.structure import Structure, find, items


def rename(structure: Structure, names: Mapping[str, str] | Callable[[str], str]) -> Structure:
    """Return the structure with other paths; the order of leaves stays.

    A container that moves as a whole stays what it is. One that gains, loses or renames
    children comes back as a dict, new keys as str.

    Args:
        names: From the old path of a leaf or container to its new path, where the longest old
            path wins and `""` as new path removes the prefix; or a function from the old path
            of a leaf (or empty container) to its new path.

    Raises:
        UsageError: two leaves get one path, a leaf would have children, a new path is not a
            path, or an old path names nothing.
    """
    unused = set() if callable(names) else set(names)
    move = names if callable(names) else _by_prefix(names, unused)
    pieces = [
        piece
        for key, node in structure.items()
        for piece in _pieces(node, join(None, key), move)
    ]
    if unused:
        raise UsageError("the old paths of a rename name nothing", paths=sorted(unused))
    result: Structure = {}
    own = {id(result)}
    for path, node in pieces:
        _insert(result, path.split("/"), node, path, own)
    return result


def _by_prefix(names: Mapping[str, str], unused: set[str]) -> Callable[[str], str]:
    def move(path: str) -> str:
        new, cut = None, len(path)
        while cut >= 0:
            old = path[:cut]
            if old in names:
                unused.discard(old)
                if new is None:  # the longest old path wins; the shorter ones are used too
                    new = _replace(path, old, names[old])
            cut = path.rfind("/", 0, cut)
        return path if new is None else new

    return move


def _replace(path: str, old: str, new: str) -> str:
    if new != "":
        return f"{new}{path[len(old) :]}"
    if path == old:
        raise UsageError("a leaf cannot lose its whole path", path=path)
    return path[len(old) + 1 :]


def _pieces(node: object, path: str, move: Callable[[str], str]) -> list[tuple[str, object]]:
    """Return (new path, part) for the largest parts of `node` that move as a whole."""
    if not isinstance(node, (dict, list, tuple)) or not node:
        return [(_checked(move(path)), node)]
    parts = [(key, child, _pieces(child, join(path, key), move)) for key, child in items(node)]
    homes = set()
    for key, child, pieces in parts:
        new, part = pieces[0]
        home, slash, name = new.rpartition("/")
        homes.add(home if part is child and slash and name == escape(key) else None)
    if len(homes) == 1 and (home_of_all := homes.pop()) is not None:
        return [(home_of_all, node)]
    return [piece for _, _, pieces in parts for piece in pieces]


def _checked(path: object) -> str:
    if not isinstance(path, str):
        raise UsageError("expected a path as the new name", found=path)
    if path.count("/") >= MAX_DEPTH or len(path.encode(errors="replace")) > MAX_PATH_NBYTES:
        raise UsageError("new path is too deep or too long", path=f"{path[:200]}…")
    if "~" in path and any(escape(unescape(name)) != name for name in path.split("/")):
        raise UsageError("new path has a '~' that is not '~0' or '~1'", path=path)
    if not is_unicode(path):
        raise UsageError("new path is not Unicode: remove the lone surrogates", path=path)
    return path


def _insert(
    into: Structure, components: list[str], node: object, path: str, own: set[int]
) -> None:
    """Put `node` at the path `components` below `into`, which is ours to change."""
    name, *rest = components
    key = find(into, name)
    if key is None:
        for component in reversed(rest):
            node = {unescape(component): node}
            own.add(id(node))
        into[unescape(name)] = node
        return
    there = into[key]
    if not isinstance(there, dict) or not (rest or isinstance(node, dict)):
        raise UsageError("two leaves get the same path, or one inside the other", path=path)
    if id(there) not in own:
        there = into[key] = dict(there)
        own.add(id(there))
    if rest:
        _insert(there, rest, node, path, own)
        return
    for child_key, child in items(node):
        _insert(there, [escape(child_key)], child, f"{path}/{escape(child_key)}", own)
