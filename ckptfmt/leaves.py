"""What a leaf of a state tree may be: the reference that stands for an array (spec §6.4), and
`Shard`, one rank's part of an array.

Exact types only: a subclass (an enum that is an int, a NamedTuple, a Counter) would come back
as its base class, which is a silent change of the caller's data.
"""

from __future__ import annotations

import collections
import datetime
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from ckptfmt.errors import UsageError

PLAIN_TYPES: Final = (type(None), bool, int, float, complex, str, bytes, datetime.datetime)
DICT_TYPES: Final = (dict, collections.OrderedDict, collections.defaultdict)
SEQUENCE_TYPES: Final = (list, tuple)

MAX_DEPTH: Final = 100  # containers around a leaf
MAX_PATH_NBYTES: Final = 8192  # UTF-8 bytes of one path
PROBE: Final = "~probe"  # first component of the paths of probe arrays; no key escapes to it


@final
class Shard:
    """One rank's part of an array that several ranks hold together: a box of it.

    Stands in a state tree where the whole array would stand. The parts of all ranks must cover
    the array exactly once; parts that are equal on several ranks (replicas) count once. In the
    target of a load it is the part to be filled.

    Args:
        array: The part, in this process' memory; may be empty.
        start: Index of its first element in the whole array, one per axis.
        global_shape: Shape of the whole array.

    Raises:
        UsageError: the part does not lie inside the whole.
    """

    __slots__ = ("array", "global_shape", "start")

    def __init__(
        self,
        array: npt.NDArray[Any],
        *,
        start: Sequence[int],
        global_shape: Sequence[int],
    ) -> None:
        self.array = array
        self.start = tuple(map(operator.index, start))
        self.global_shape = tuple(map(operator.index, global_shape))
        extent = np.shape(array)
        fits = len(extent) == len(self.start) == len(self.global_shape) and all(
            begin >= 0 and begin + n <= whole
            for begin, n, whole in zip(self.start, extent, self.global_shape, strict=True)
        )
        if not fits:
            raise UsageError(
                "a shard must lie inside its array, with one start per axis",
                start=self.start,
                shape=extent,
                global_shape=self.global_shape,
            )

    def __repr__(self) -> str:
        return (
            f"Shard(shape={np.shape(self.array)}, start={self.start},"
            f" global_shape={self.global_shape})"
        )


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
    if type(key) is str and "/" not in key and "~" not in key:  # saves a call for each array
        return key if parent is None else f"{parent}/{key}"
    return escape(key) if parent is None else f"{parent}/{escape(key)}"
