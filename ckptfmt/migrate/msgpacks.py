"""MessagePack read where it lies: long bytes stay views of the file, so memory stays small.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate.cursor import Cursor
from ckptfmt.migrate.files import Span
from ckptfmt.migrate.source import MAX_NODES

MAX_DEPTH: Final = 200
MAX_TEXT: Final = 2**28
_NUMBERS: Final = {0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q",
                   0xD0: "b", 0xD1: "h", 0xD2: "i", 0xD3: "q"}  # fmt: skip
_PLAIN: Final = {0xC0: None, 0xC2: False, 0xC3: True}
# Code → what it is, and how its length is written.
_SIZED: Final = {
    0xC4: ("bytes", "B"), 0xC5: ("bytes", "H"), 0xC6: ("bytes", "I"), 0xC7: ("more", "B"),
    0xC8: ("more", "H"), 0xC9: ("more", "I"), 0xD9: ("text", "B"), 0xDA: ("text", "H"),
    0xDB: ("text", "I"), 0xDC: ("list", "H"), 0xDD: ("list", "I"), 0xDE: ("dict", "H"),
    0xDF: ("dict", "I"),
}  # fmt: skip


class Unpacker:
    """Reads one value after the other.

    Args:
        extended: Returns what an extension stands for, of its code and its bytes.
        joined: Returns what a dict stands for.
    """

    def __init__(
        self,
        span: Span,
        *,
        extended: Callable[[int, memoryview], Any],
        joined: Callable[[dict[Any, Any]], Any],
    ) -> None:
        self.at = Cursor(span, order=">")
        self._extended = extended
        self._joined = joined
        self._nodes = 0

    def value(self, depth: int = 0) -> Any:
        """Return the next value; bytes as a memoryview.

        Raises:
            FormatError: malformed, truncated, too deep, or it has too many parts.
        """
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise self._bad("nested too deep, or too many values")
        code = self.at.take(1, "a value")[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in _PLAIN:
            return _PLAIN[code]
        if code in _NUMBERS:
            return self.at.number(_NUMBERS[code], "a number")
        if code in _SIZED:
            kind, width = _SIZED[code]
            return self._sized(kind, self.at.number(width, "a length"), depth)
        if 0xD4 <= code <= 0xD8:
            return self._sized("more", 1 << code - 0xD4, depth)
        if code < 0xC0:
            kind = "dict" if code < 0x90 else "list" if code < 0xA0 else "text"
            return self._sized(kind, code & (0x1F if kind == "text" else 0x0F), depth)
        raise self._bad("unknown kind of value", found=code)

    def _sized(self, kind: str, count: int, depth: int) -> Any:
        match kind:
            case "bytes":
                return self.at.take(count, "bytes")
            case "text":
                return self._text(count)
            case "more":
                code = self.at.number("b", "an extension")
                return self._extended(code, self.at.take(count, "an extension"))
            case "list":
                self._check(count)
                return [self.value(depth + 1) for _ in range(count)]
        self._check(2 * count)
        found: dict[Any, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) not in (str, int, bool, float, type(None)) or key in found:
                raise self._bad("a key that stands twice, or cannot be one")
            found[key] = self.value(depth + 1)
        return self._joined(found)

    def _check(self, count: int) -> None:
        if count > self.at.left:
            raise self._bad("the file ends inside its values", expected=count)

    def _text(self, nbytes: int) -> str:
        if nbytes > MAX_TEXT:
            raise self._bad("too long a text", found=nbytes)
        try:
            return str(self.at.take(nbytes, "text"), "utf-8")
        except UnicodeDecodeError as error:
            raise self._bad("expected UTF-8") from error

    def _bad(self, message: str, **where: object) -> FormatError:
        return FormatError(message, file=self.at.span.name, offset=self.at.at, **where)
