"""What a leaf of a state tree may be, and the reference that stands for an array (spec §6.4).

Exact types only: a subclass (an enum that is an int, a NamedTuple, a Counter) would come back
as its base class, which is a silent change of the caller's data.
"""

from __future__ import annotations

import collections
import datetime
from dataclasses import dataclass
from typing import Final

PLAIN_TYPES: Final = (type(None), bool, int, float, complex, str, bytes, datetime.datetime)
DICT_TYPES: Final = (dict, collections.OrderedDict, collections.defaultdict)
SEQUENCE_TYPES: Final = (list, tuple)

MAX_DEPTH: Final = 100  # containers around a leaf
MAX_PATH_NBYTES: Final = 8192  # UTF-8 bytes of one path


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """Stands in a structure for the array in row `row` of the array table."""

    row: int


def is_unicode(text: str) -> bool:
    """Tell whether `text` can be written as UTF-8: it has no lone surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_exact(value: datetime.datetime) -> bool:
    """Tell whether a datetime's text gives back all that repr shows: also fold and zone."""
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        return False
    return repr(datetime.datetime.fromisoformat(value.isoformat())) == repr(value)


def escape(component: str | int) -> str:
    """Return one path component: `~` becomes `~0` and `/` becomes `~1` (RFC 6901)."""
    text = str(component)
    return text.replace("~", "~0").replace("/", "~1") if "~" in text or "/" in text else text


def unescape(component: str) -> str:
    """Undo `escape`; the result is the key's text."""
    return component.replace("~1", "/").replace("~0", "~") if "~" in component else component


def join(parent: str | None, key: str | int) -> str:
    """Return the path of `key` inside the container at `parent`; None is the root."""
    return escape(key) if parent is None else f"{parent}/{escape(key)}"
