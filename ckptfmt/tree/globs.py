"""Glob patterns over paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def matches(patterns: str | Sequence[str], path: str) -> bool:
    """Whether any of the patterns selects `path`. For many paths, ask `matcher` once."""
    return matcher(patterns)(path)


def matcher(patterns: str | Sequence[str]) -> Callable[[str], bool]:
    """Return the test whether any of the patterns selects a path.

    `*` is any text within a component, `?` one character of it, and the component `**` any
    number of components, also none. A pattern that is, letter by letter, the path of a
    container selects everything below it. Patterns see escaped paths: `/` and `~` in a key
    are `~1` and `~0`. The time for one test is polynomial in the path, for any pattern.
    """
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    exact = frozenset(globs)
    wild = [
        re.compile(_regex(glob), re.DOTALL).match for glob in globs if set(glob) & set("*?")
    ]

    def test(path: str) -> bool:
        if path in exact or any(match(f"{path}/") for match in wild):
            return True
        cut = path.rfind("/")
        while cut >= 0:
            if path[:cut] in exact:
                return True
            cut = path.rfind("/", 0, cut)
        return False

    return test


def _regex(glob: str) -> str:
    """Translate a glob; the subject is `path/`, so that every component ends in a slash."""
    runs = [""]  # of components between one `**` and the next
    for component in glob.split("/"):
        if component == "**":
            runs.append("")
        else:
            runs[-1] += _component(component) + "/"
    if len(runs) == 1:
        return rf"{runs[0]}\Z"
    # Where a run fits first is as good as where it fits later: an atomic group commits to it,
    # so that many `**` in a row cannot make a match take exponential time.
    middle = "".join(f"(?>(?:[^/]*/)*?{run})" for run in runs[1:-1] if run)
    return rf"{runs[0]}{middle}(?:[^/]*/)*{runs[-1]}\Z"


def _component(component: str) -> str:
    pieces = [re.escape(p).replace(r"\?", "[^/]") for p in re.split(r"\*+", component)]
    if len(pieces) == 1:
        return pieces[0]
    middle = "".join(f"(?>[^/]*?{piece})" for piece in pieces[1:-1])
    return f"{pieces[0]}{middle}[^/]*{pieces[-1]}"
