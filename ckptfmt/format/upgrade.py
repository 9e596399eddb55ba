"""Older versions of the format: their manifests are brought to the present form when read.

header ─► version ─► summary, body ─► a step for each version in between ─► checked as today's

A file is never rewritten for it, and keeps its identity (spec §9.1.3). Before version 1 none
was published, so there is no step yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ckptfmt.format.features import FORMAT_VERSION

Fields: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How manifests of one version become those of the next.

    Both functions get decoded fields, not yet checked, and return new ones. Of the body,
    fields that are decoded late (`manifest._LATE`) are msgpack still.
    """

    summary: Callable[[Fields], Fields]
    body: Callable[[Fields], Fields]


STEPS: Final[dict[int, Step]] = {}  # version → the step to the next one


def reads(version: int) -> bool:
    """Tell whether a version is the present one, or steps lead from it to there."""
    return version <= FORMAT_VERSION and all(v in STEPS for v in range(version, FORMAT_VERSION))


def summary(version: int, fields: Fields) -> Fields:
    """Return the fields of a summary in the present form."""
    for old in range(version, FORMAT_VERSION):
        fields = STEPS[old].summary(fields)
    return fields


def body(version: int, fields: Fields) -> Fields:
    """Return the fields of a body in the present form."""
    for old in range(version, FORMAT_VERSION):
        fields = STEPS[old].body(fields)
    return fields
