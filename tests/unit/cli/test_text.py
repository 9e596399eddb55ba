"""Values as people read them."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pytest

from ckptfmt.cli import text
from ckptfmt.errors import UsageError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model/fc1.weight", "model/fc1.weight"),
        ("größe/重み", "größe/重み"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\u202eesrever", "\\u202eesrever"),  # turns the direction of writing around
        ("\x9b31m", "\\x9b31m"),  # the one-byte form of the escape sequence
        ("a\u200bb", "a\\u200bb"),  # no width at all
    ],
)
def test_what_could_steer_a_terminal_is_made_visible(name: str, shown: str) -> None:
    assert text.safe(name) == shown
    assert text.safe(name).isprintable()


def test_times_are_utc_to_the_second() -> None:
    east = datetime.timezone(datetime.timedelta(hours=2))

    shown = text.when(datetime.datetime(2026, 3, 1, 8, 0, 59, 999_999, tzinfo=east))

    assert shown == "2026-03-01 06:00:59"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "none"), (1, "int"), (True, "bool"), (np.float32(1), "float32 scalar")],
)
def test_kinds_of_values(value: object, kind: str) -> None:
    assert text.kind(value) == kind


def test_shapes() -> None:
    assert (text.shape((512, 768)), text.shape(())) == ("[512, 768]", "[]")


@pytest.mark.parametrize(
    ("shown", "columns"), [("abc", 3), ("重み", 4), ("e\u0301", 1), ("", 0), ("ß", 1)]
)
def test_columns_are_those_of_a_terminal(shown: str, columns: int) -> None:
    assert text.cells(shown) == columns


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_023_948, "999.9 KiB"),
        (1_023_949, "1.0 MiB"),  # not 1000.0 KiB
        (16 * 2**20, "16.0 MiB"),
        (3 * 2**50, "3.0 PiB"),
        (2**80, "1048576.0 EiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(n: int, shown: str) -> None:
    assert text.nbytes(n) == shown


def test_nouns_follow_their_number() -> None:
    assert text.count(1, "array") == "1 array"
    assert text.count(0, "array") == "0 arrays"
    assert text.count(12_345, "entry", "entries") == "12,345 entries"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (3, "3"),
        (1 / 3, "0.333333"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (1e-9, "1e-09"),
    ],
)
def test_metrics_are_short(value: object, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "none"),
        (True, "true"),
        (1, "1"),
        (0.1 + 0.2, "0.30000000000000004"),
        (10**50, "int of 167 bits"),
        (1 + 2j, "(1+2j)"),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        (b"abc", "3 bytes"),
        (datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC), "2026-03-01T00:00:00+00:00"),
        (np.float32(0.5), "0.5"),
        ({"a": 1}, "1 entry"),
        ([1, "a", None], '[1, "a", none]'),
        ((0.9, 0.999), "(0.9, 0.999)"),
    ],
)
def test_values_are_shown_on_one_line(value: object, shown: str) -> None:
    assert text.value(value) == shown


def test_long_values_are_cut_and_say_so() -> None:
    assert text.value("x" * 100, 20) == '"' + "x" * 16 + "..."
    assert text.value(tuple(range(1000)), 20) == "(0, 1, 2, 3, 4, ...)"
    assert text.cut("重み" * 10, 8) == "重み..."
    assert text.cut("fits", 4) == "fits"


@pytest.mark.parametrize("width", [1, 5, 12, 40])
def test_folding_loses_nothing_and_never_exceeds_the_width(width: int) -> None:
    chance = random.Random(width)
    for _ in range(200):
        words = ["".join(chance.choices("ab重/._-", k=chance.randrange(1, 30)))] * 3
        whole = " ".join(words)

        lines = text.fold(whole, max(2, width))

        assert "".join(lines).replace(" ", "") == whole.replace(" ", "")
        assert all(text.cells(line) <= max(2, width) for line in lines)


def test_folding_prefers_the_ends_of_words_then_of_path_components() -> None:
    assert text.fold("digest mismatch in", 10) == ["digest", "mismatch", "in"]
    assert text.fold("optimizer/state/layer.weight", 16) == ["optimizer/state/", "layer.weight"]
    assert text.fold("--xla_cpu_fast=false --b", 12) == ["--xla_cpu_", "fast=false", "--b"]


def test_what_folding_keeps_whole_is_known() -> None:
    assert text.longest_piece("CUBLAS_WORKSPACE_CONFIG was PYTHONHASHSEED") == 14
    assert text.longest_piece("--flag") == 6
    assert text.longest_piece("") == 0


def test_equal_items_are_counted() -> None:
    assert text.several(["NVIDIA A100"] * 8 + ["B", "A100", "A100"]) == (
        "8 x NVIDIA A100, B, 2 x A100"
    )
    assert text.several([]) == ""


@pytest.mark.parametrize(
    ("shown", "columns"),
    [("0.25", 4), ("F32 [5000, 96]", 4), ("model/h.1000000", 0), ("4.99e-05 of 2", 8)],
)
def test_numbers_stay_on_one_line(shown: str, columns: int) -> None:
    assert text.longest_number(shown) == columns


@pytest.mark.parametrize(
    ("age", "seconds"),
    [
        ("90", 90),
        ("45s", 45),
        ("30m", 1800),
        ("1.5h", 5400),
        ("7d", 604_800),
        (" 2w ", 1_209_600),
    ],
)
def test_durations_are_parsed(age: str, seconds: float) -> None:
    assert text.seconds(age) == seconds


@pytest.mark.parametrize("age", ["", "d", "-1d", "7 days", "1e3", "٣d", "nan"])
def test_other_durations_are_refused(age: str) -> None:
    with pytest.raises(UsageError, match="expected a duration"):
        text.seconds(age)
