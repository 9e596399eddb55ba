"""Check and normalise what a caller wants saved, before anything is written."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ckptfmt import tree
from ckptfmt.errors import FormatError, StateError, UsageError
from ckptfmt.format.manifest import check_artifact_name
from ckptfmt.format.summary import Number
from ckptfmt.leaves import PROBE, is_unicode
from ckptfmt.options import expect
from ckptfmt.pause import gc_paused
from ckptfmt.training.record import segments_in
from ckptfmt.tree import Flat, Leaf

MAX_TAG_NBYTES: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """Arrays that the caller says have not changed since the last save through the store."""

    patterns: tuple[str, ...] = ()
    verify: bool = False  # whether they are digested nevertheless

    def rows(self, leaves: Sequence[Leaf]) -> frozenset[int]:
        """Return the rows of the arrays meant, by any of their paths."""
        if not self.patterns:
            return frozenset()
        meant = tree.matcher(self.patterns)
        return frozenset(
            row
            for row, leaf in enumerate(leaves)
            if any(map(meant, (leaf.path, *leaf.aliases)))
            and not leaf.path.startswith(f"{PROBE}/")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A checked checkpoint, not yet bound to a store."""

    flat: Flat
    counters: Mapping[str, Any]
    metrics: Mapping[str, Number]
    tags: tuple[str, ...]
    metadata: Mapping[str, Any]
    artifacts: tuple[tuple[str, bytes], ...]
    frozen: Frozen = Frozen()


def payload(
    state: Mapping[str, Any],
    *,
    counters: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    tags: Iterable[str],
    artifacts: Mapping[str, bytes | os.PathLike[str]] | None,
    metadata: dict[str, Any],
    probe: Mapping[str, Any] | None = None,
    shards: bool = False,
    frozen: Iterable[str] = (),
    verify_frozen: bool = False,
) -> Payload:
    """Flatten and check everything a save was given.

    Args:
        shards: Other ranks may hold the rest of an array.

    Raises:
        StateError: a value cannot be stored exactly; names its path and the way out.
        UsageError: a tag, metric, artifact or pattern is malformed.
    """
    for name, given in (("counters", counters), ("metrics", metrics), ("artifacts", artifacts)):
        expect(name, given, Mapping, type(None))
        _check_names(name, given or {})
    expect("tags", tags, Iterable)
    with gc_paused():
        flat = tree.flatten(state, probe)
    if not shards and (part := next((one for one in flat.leaves if one.shard), None)):
        raise StateError(
            "a shard is only a part of an array: save it with the group of all ranks, or in a"
            " single process store the whole array",
            path=part.path,
            start=part.start,
            global_shape=part.shape,
        )
    known = {"segments": segments_in(counters or {})}  # of the run's progress, if it has one
    return Payload(
        flat=flat,
        counters=_counters(counters),
        metrics={name: number(name, v) for name, v in (metrics or {}).items()},
        tags=tuple(dict.fromkeys(check_tag(tag) for tag in _tags(tags))),
        metadata={name: plain(name, value) for name, value in (known | metadata).items()},
        artifacts=tuple((n, artifact(n, v)) for n, v in (artifacts or {}).items()),
        frozen=_frozen(frozen, verify_frozen),
    )


def _check_names(argument: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if isinstance(name, str) and not is_unicode(name):
            raise StateError(
                "a name is not Unicode: remove the lone surrogates",
                argument=argument,
                found=name,
            )


def _frozen(patterns: Iterable[str], verify: bool) -> Frozen:
    expect("frozen", patterns, Iterable)
    expect("verify_frozen", verify, bool)
    found = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in found:
        expect("frozen", pattern, str)
    return Frozen(patterns=found, verify=verify)


def number(name: object, value: Any) -> Number:
    """Return a metric's value as a plain number; NumPy scalars are widened exactly.

    Raises:
        StateError: it is no number, or `name` is no name.
    """
    if not isinstance(name, str) or not name:
        raise StateError("a metric's name must be a str, and not empty", found=name)
    if isinstance(value, np.floating | np.integer) and value.dtype.itemsize <= 8:
        value = value.item()
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise StateError("a metric must fit 64 bits", metric=name, found=value)
    if value is not None and type(value) not in (int, float):
        raise StateError(
            "a metric must be an int or a float: call float() on it",
            metric=name,
            found=type(value).__name__,
        )
    result: Number = value
    return result


def check_tag(tag: object) -> str:
    """Return a tag when it is a short, printable, non-empty str.

    Raises:
        UsageError: it is not.
    """
    if (
        not isinstance(tag, str)
        or not tag.isprintable()
        or not tag.strip()
        or (len(tag.encode()) > MAX_TAG_NBYTES)
    ):
        raise UsageError("a tag is a short printable str", found=tag)
    return tag


def _tags(tags: Iterable[str]) -> Iterable[str]:
    return [tags] if isinstance(tags, str) else tags


def _counters(counters: Mapping[str, Any] | None) -> dict[str, Any]:
    named = _named("counters", counters)
    if "seen" in named:
        named["seen"] = _seen(named["seen"])
    return named


def _seen(value: Any) -> int:
    """Return the counter that is the clock (spec 6.8.2) as an int; NumPy's widen exactly."""
    seen = value.item() if isinstance(value, np.integer) else value
    if type(seen) is not int or not 0 <= seen < 2**63:
        raise StateError(
            "the counter 'seen' is the number of examples shown: a whole number from 0 to"
            " 2**63 - 1, or leave it out",
            found=value,
        )
    return seen


def _named(what: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if not isinstance(name, str):
            raise StateError(f"names in {what} must be str", found=name)
        found[name] = plain(f"{what}/{name}", value)
    return found


def plain(what: str, value: Any) -> Any:
    """Return a value without arrays as a checkpoint would give it back.

    Raises:
        StateError: it cannot be stored exactly; names the path and the way out.
    """
    try:
        return tree.plain(value)
    except StateError as error:
        raise StateError(error.message, argument=what) from error


def artifact(name: object, value: bytes | os.PathLike[str]) -> bytes:
    """Return the content of an artifact: bytes, or what a file holds.

    Raises:
        UsageError: the name is no plain file name, or the file cannot be read.
    """
    if not isinstance(name, str):
        raise UsageError("an artifact's name must be a str", found=name)
    try:
        check_artifact_name(name)
    except FormatError as error:
        raise UsageError(error.message) from error
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return pathlib.Path(value).read_bytes()
    except (OSError, TypeError, ValueError) as error:  # no file, no path, a NUL in it
        raise UsageError(
            "artifact cannot be read: pass bytes, or the path of a file",
            artifact=name,
            found=value,
        ) from error


def with_leaves(of: Payload, leaves: Sequence[Leaf]) -> Payload:
    """Return the payload with other memory behind its arrays."""
    return dataclasses.replace(of, flat=dataclasses.replace(of.flat, leaves=tuple(leaves)))


def annotation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check fields that are to be attached to a checkpoint.

    Raises:
        UsageError: there is none, or a name is malformed.
        StateError: a value is not plain.
    """
    if not fields:
        raise UsageError("nothing to attach")
    checked: dict[str, Any] = {}
    for name, value in fields.items():
        kind, _, rest = check_tag(name).partition(".")
        if kind == "metrics" and value is not None:
            value = number(rest, value)
        elif kind == "tags" and value not in (True, None):
            raise UsageError("a tag is set with True or removed with None", found=value)
        checked[name] = plain(name, value)
    return checked
