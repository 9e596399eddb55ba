"""Reading a file from its beginning to its end: each number is checked before it is used."""

from __future__ import annotations

import struct
from typing import Any, final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import wire
from ckptfmt.migrate.files import Span


@final
class Cursor:
    """A place in a file that moves on with what is read.

    Args:
        order: Byte order of numbers, `<` or `>`.
    """

    def __init__(self, span: Span, at: int = 0, *, order: str = "<") -> None:
        self.span = span
        self.at = at
        self.order = order

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.span.nbytes - self.at

    def take(self, nbytes: int, what: str) -> memoryview:
        """Return the next bytes, a view of the file.

        Raises:
            FormatError: the file ends before.
        """
        found = self.span.cut(self.at, nbytes, what)
        self.at += nbytes
        return found

    def number(self, code: str, what: str) -> Any:
        """Return the next number of one of `struct`'s kinds, such as `I`."""
        return struct.unpack(
            self.order + code, self.take(struct.calcsize(self.order + code), what)
        )[0]

    def varint(self) -> int:
        """Return the next unsigned integer of variable length."""
        value, self.at = wire.varint(self.span.data, self.at)
        return value

    def count(self, code: str, least: int, what: str) -> int:
        """Return how many parts follow.

        Args:
            least: Bytes that each of them has at least: so many parts must fit into the file.

        Raises:
            FormatError: they do not.
        """
        found = int(self.number(code, what))
        if not 0 <= found * max(least, 1) <= self.left:
            raise FormatError(
                f"the file is too short for {what}",
                file=self.span.name,
                offset=self.at,
                expected=f"at most {self.left // max(least, 1)}",
                found=found,
            )
        return found

    def text(self, code: str, what: str) -> str:
        """Return text behind its length.

        Raises:
            FormatError: it is no UTF-8, or the file ends before.
        """
        raw = self.take(self.count(code, 1, what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(
                f"expected UTF-8 in {what}", file=self.span.name, offset=self.at
            ) from error
