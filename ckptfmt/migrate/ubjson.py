"""Universal Binary JSON, as XGBoost writes it: typed lists of numbers become arrays.

Format: https://ubjson.org, draft 12; numbers are big-endian.
"""

from __future__ import annotations

from typing import Any, Final, final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Span
from ckptfmt.migrate.source import MAX_NODES, Lazy

MAX_DEPTH: Final = 200
_INTEGERS: Final = {0x69: "b", 0x55: "B", 0x49: "h", 0x6C: "i", 0x4C: "q"}  # i U I l L
_NUMBERS: Final = {**_INTEGERS, 0x64: "f", 0x44: "d"}
_DTYPES: Final = {"b": "i1", "B": "u1", "h": ">i2", "i": ">i4", "q": ">i8", "f": ">f4",
                  "d": ">f8"}  # fmt: skip
_PLAIN: Final = {0x5A: None, 0x54: True, 0x46: False}  # Z T F
_TYPE, _COUNT, _NOTHING = 0x24, 0x23, 0x4E


def parse(span: Span) -> Any:
    """Return what a file holds.

    Raises:
        FormatError: malformed, nested too deep, or bytes follow.
    """
    parser = _Parser(span)
    found = parser.value(parser.marker(), 0)
    if parser.at.left:
        raise FormatError("bytes behind the value", file=span.name, offset=parser.at.at)
    return found


@final
class _Parser:
    def __init__(self, span: Span) -> None:
        self.at = Cursor(span, order=">")
        self._nodes = 0

    def marker(self) -> int:
        while (code := self.at.take(1, "a value")[0]) == _NOTHING:
            pass
        return code

    def value(self, code: int, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise self._bad("nested too deep, or too many values")
        if code in _NUMBERS:
            return self.at.number(_NUMBERS[code], "a number")
        if code in _PLAIN:
            return _PLAIN[code]
        match chr(code):
            case "S" | "H":
                return self._text(self.marker())
            case "C":
                return chr(self.at.take(1, "a character")[0])
            case "[":
                return self._list(depth)
            case "{":
                return self._object(depth)
        raise self._bad("unknown kind of value", found=code)

    def _bad(self, message: str, **where: object) -> FormatError:
        return FormatError(message, file=self.at.span.name, offset=self.at.at, **where)

    def _length(self, code: int) -> int:
        if code not in _INTEGERS:
            raise self._bad("expected a length", found=code)
        found = int(self.at.number(_INTEGERS[code], "a length"))
        if found < 0:
            raise self._bad("a negative length", found=found)
        return found

    def _text(self, code: int) -> str:
        raw = self.at.take(self._length(code), "text")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise self._bad("expected UTF-8") from error

    def _begin(self) -> tuple[int, int | None, int | None]:
        """Return the next marker, and type and count of all values, where they are told."""
        code, kind, count = self.marker(), None, None
        if code == _TYPE:
            kind, code = self.at.take(1, "a type")[0], self.marker()
            if code != _COUNT:
                raise self._bad("a type without a count")
        if code == _COUNT:
            count = self._length(self.marker())
            if (kind is None or kind not in _PLAIN) and count > self.at.left:
                raise self._bad("the file is too short for its values", found=count)
            if count > MAX_NODES and kind not in _NUMBERS:
                raise self._bad("too many values", found=count)
        return code, kind, count

    def _list(self, depth: int) -> Any:
        code, kind, count = self._begin()
        if count is None:
            items = []
            while code != 0x5D:
                items.append(self.value(code, depth + 1))
                code = self.marker()
            return items
        if kind in _NUMBERS:
            dtype = np.dtype(_DTYPES[_NUMBERS[kind]])
            data = self.at.take(count * dtype.itemsize, "numbers")
            return Lazy(dtype, (count,), lambda: np.frombuffer(data, dtype))
        return [
            self.value(self.marker() if kind is None else kind, depth + 1) for _ in range(count)
        ]

    def _object(self, depth: int) -> dict[str, Any]:
        code, kind, count = self._begin()
        found: dict[str, Any] = {}
        done = 0
        while code != 0x7D if count is None else done < count:
            if count is not None:
                code = self.marker()
            key = self._text(code)
            if key in found:
                raise self._bad("a key stands twice", found=key[:100])
            found[key] = self.value(self.marker() if kind is None else kind, depth + 1)
            done += 1
            if count is None:
                code = self.marker()
        return found
