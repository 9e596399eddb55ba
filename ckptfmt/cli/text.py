"""Values as people read them. Pure: nothing is printed here."""

from __future__ import annotations

import datetime
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ckptfmt.errors import UsageError

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_PIECE: Final = re.compile(r"[/._-]*[^/._-]+[/._-]*|[/._-]+")  # signs that begin a word stay
_NUMBER: Final = re.compile(r"[-+]?\d[\d.,]{0,23}(?:e[-+]?\d{1,3})?", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def safe(text: str) -> str:
    """Return the text with everything that could steer a terminal made visible.

    Names in a checkpoint are foreign data: control characters, escape sequences, line breaks
    and characters that reverse the direction of writing become escapes such as `\\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fold(text: str, width: int) -> list[str]:
    """Split a text into lines of at most `width` columns.

    Between words where that is possible, within long ones after `/`, `.`, `-` or `_`.
    """
    lines = [""]
    for piece in _pieces(text, width):
        if lines[-1] and cells(lines[-1]) + cells(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _pieces(text: str, width: int) -> Iterator[str]:
    for word in re.findall(r"\S+\s*|\s+", text):
        if cells(word.rstrip()) <= width:
            yield word
            continue
        for part in _PIECE.findall(word):
            if cells(part.rstrip()) <= width:
                yield part
            else:
                yield from part


def longest_piece(text: str) -> int:
    """Return the columns of the longest part of a text that `fold` would have to tear apart."""
    return max(
        (cells(part) for word in text.split() for part in _PIECE.findall(word)), default=0
    )


def longest_number(text: str) -> int:
    """Return the columns of the longest number in a text that ought to stay on one line."""
    words = (word.strip("[](),") for word in text.split())
    return max((len(w) for w in words if _NUMBER.fullmatch(w)), default=0)


def cut(text: str, width: int, ellipsis: str = "...") -> str:
    """Return the beginning of a text, with an ellipsis if something is missing."""
    if cells(text) <= width:
        return text
    room = width - cells(ellipsis)
    ends = itertools.accumulate(map(cells, text))
    kept = sum(1 for _ in itertools.takewhile(lambda end: end <= room, ends))
    return text[:kept].rstrip() + ellipsis


def nbytes(n: int) -> str:
    """Return a number of bytes in binary units: `800 B`, `16.0 MiB`."""
    if n < 1024:
        return f"{n} B"
    size, power = n / 1024, 0
    while size >= 999.95 and power < len(_UNITS) - 1:  # never five digits: take the next unit
        size, power = size / 1024, power + 1
    return f"{size:.1f} {_UNITS[power]}"


def count(n: int, noun: str, plural: str = "") -> str:
    """Return a number with separators, and its noun in the right form."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def several(items: Sequence[object]) -> str:
    """Return items with commas; of equal ones that follow each other, how many."""
    runs = ((len(list(equal)), item) for item, equal in itertools.groupby(map(str, items)))
    return ", ".join(item if n == 1 else f"{n} x {item}" for n, item in runs)


def number(value: object) -> str:
    """Return a metric, short: six significant digits, `-` when it was not measured."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def when(time: datetime.datetime) -> str:
    """Return a time in UTC, to the second."""
    return f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}"


def shape(extents: Sequence[int]) -> str:
    """Return a shape: `[512, 768]`, and `[]` of a 0-d array."""
    return "[" + ", ".join(map(str, extents)) + "]"


def value(plain: object, width: int = 200) -> str:
    """Return a plain value on one line: text in quotes, long ones cut."""
    match plain:
        case None | bool():
            return {None: "none", True: "true", False: "false"}[plain]
        case float():  # the shortest text that reads back as the same number
            return repr(plain)
        case int() if abs(plain) >= 10**40:  # Python refuses to print very long ones
            return f"int of {plain.bit_length():,} bits"
        case int() | complex():
            return str(plain)
        case str():
            return cut(_quoted(plain[: 2 * width]), width)
        case bytes():
            return count(len(plain), "byte")
        case datetime.datetime():
            return plain.isoformat()
        case np.generic():
            return str(plain)
        case dict():
            return count(len(plain), "entry", "entries")
        case list() | tuple():
            return _row(plain, width)
    return cut(str(plain), width)


def kind(plain: object) -> str:
    """Return what a plain value is: `int`, `str`, `none`, `float32 scalar`, ..."""
    if isinstance(plain, np.generic):
        return f"{plain.dtype} scalar"
    return "none" if plain is None else type(plain).__name__


def _quoted(text: str) -> str:
    return '"' + "".join("\\" + c if c in '"\\' else c for c in text) + '"'


def _row(values: Sequence[object], width: int) -> str:
    """Return as many whole items as fit."""
    left, right = "[]" if isinstance(values, list) else "()"
    shown = left
    for n, item in enumerate(values):
        more = (", " if n else "") + value(item, width)
        rest = "..." if n + 1 < len(values) else ""
        if cells(shown + more + rest + right) > width and n:
            return f"{shown}, ...{right}"
        shown += more
    return shown + right


def difference(n: float | int | None) -> str:
    """Return a numeric difference, short; None stands for "cannot be said"."""
    if n is None:
        return "-"
    if isinstance(n, int):
        return str(n)
    return "nan" if math.isnan(n) else f"{n:.3g}"


def seconds(text: str) -> float:
    """Return a duration such as `90`, `45s`, `30m`, `12h`, `7d` or `2w` in seconds.

    Raises:
        UsageError: it is no such duration.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", text.strip(), re.ASCII)
    if found is None:
        raise UsageError("expected a duration such as 45s, 30m, 12h, 7d or 2w", found=text)
    return float(found[1]) * _SECONDS[found[2]]
