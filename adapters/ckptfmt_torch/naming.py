"""Which stored names a restore takes, and what they are called here."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class Names:
    """Which stored names are wanted, and what they are called here."""

    patterns: tuple[str, ...]
    rename: Rename

    @classmethod
    def of(
        cls, select: str | Sequence[str] | None = None, rename: Rename | None = None
    ) -> Names:
        globs = [select] if isinstance(select, str) else list(select or ())
        dotted = (g.replace("/", ".").replace("**", "*") for g in globs)
        return cls(patterns=tuple(dotted), rename=rename or {})

    def wants(self, name: str) -> bool:
        return not self.patterns or any(fnmatch.fnmatchcase(name, p) for p in self.patterns)

    def here(self, name: str) -> str:
        if not isinstance(self.rename, Mapping):
            return self.rename(name)
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            known = self.rename.get(".".join(parts[:length]))
            if known is not None:
                return ".".join(part for part in (known, *parts[length:]) if part)
        return name
