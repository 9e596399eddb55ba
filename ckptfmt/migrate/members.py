"""An archive seen as a folder: its members are read in place, nothing is written anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from ckptfmt.errors import FormatError, NotFoundError
from ckptfmt.migrate.files import Span


@final
class Members:
    """The members of one archive, by name.

    Args:
        members: Name → what reads it, checked.
        outer: The archive, for messages.
    """

    def __init__(self, members: Mapping[str, Callable[[], Span]], outer: str) -> None:
        self.path = outer
        self._members = members

    def names(self) -> list[str]:
        """Return the members' names, in the archive's order."""
        return list(self._members)

    def others(self) -> list[str]:
        """Return nothing: `names` tells members of every folder."""
        return []

    def has(self, name: str) -> bool:
        """Tell whether there is such a member."""
        return name in self._members

    def span(self, name: str) -> Span:
        """Return one member.

        Raises:
            NotFoundError: no such member.
            FormatError: and its kinds, when it is damaged.
        """
        if name not in self._members:
            raise NotFoundError("no such member", file=self.path, member=name)
        return Span(name, self._members[name]().data)

    def inside(self, name: object, *, said_by: str) -> Span:
        """Return a member that another one names.

        Raises:
            FormatError: no member has that name.
        """
        if not isinstance(name, str) or name not in self._members:
            raise FormatError("expected the name of a member", file=said_by, found=name)
        return self.span(name)
