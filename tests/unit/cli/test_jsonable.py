"""JSON that every parser takes."""

from __future__ import annotations

import datetime
import json
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptfmt.cli import document, jsonable


def parsed(value: object) -> Any:
    """Read a document as a strict parser does, which knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(jsonable.dumps(value), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (-0.0, -0.0),
        (0.1, 0.1),
        (2**64 + 1, 2**64 + 1),
        (True, True),
        (None, None),
        (b"\x00\xff", {"base64": "AP8="}),
        (complex(1, float("nan")), {"real": 1.0, "imag": "NaN"}),
        (datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC), "2026-03-01T00:00:00+00:00"),
        (np.float32(0.5), 0.5),
        (np.int64(-(2**63)), -(2**63)),
        (np.bool_(True), True),
        (ml_dtypes.bfloat16(float("inf")), "Infinity"),
        (ml_dtypes.int4(-8), -8),
        ((1, [2]), [1, [2]]),
        (MappingProxyType({3: "x"}), {"3": "x"}),
    ],
)
def test_values_survive(value: object, expected: object) -> None:
    found = parsed(value)

    assert found == expected
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)


def test_integers_are_exact_until_no_decimal_can_be_read() -> None:
    assert parsed([-(10**3000)]) == [-(10**3000)]
    assert parsed(1 << 20_000) == {"hex": hex(1 << 20_000)}


def test_the_document_is_ascii() -> None:
    shown = jsonable.dumps({"\x1b[31m\u202e": "\x9b重"})

    assert shown.isascii()
    assert shown.replace("\n", "").isprintable()


def test_times_are_exact_and_end_with_the_calendar() -> None:
    assert document.time(1_772_352_000_000_001) == "2026-03-01T08:00:00.000001+00:00"
    assert document.time(0) == "1970-01-01T00:00:00.000000+00:00"
    assert document.time(2**63 - 1) == "9999-12-31T23:59:59.999999+00:00"
