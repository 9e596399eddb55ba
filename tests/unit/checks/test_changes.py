"""The table of known changes and the small version comparison under it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from ckptfmt.checks.changes import KNOWN_CHANGES, KnownChange, lookup, normalised, parse_version

# PEP 440, "Summary of permitted suffixes and relative ordering", and more of the kind.
ASCENDING = [
    "0.9",
    "1.dev0",
    "1.0.dev456",
    "1.0a0.dev1",
    "1.0a1",
    "1.0a2.dev456",
    "1.0a12.dev456",
    "1.0a12",
    "1.0b1.dev456",
    "1.0b2",
    "1.0b2.post345.dev456",
    "1.0b2.post345",
    "1.0rc1.dev456",
    "1.0rc1",
    "1.0",
    "1.0.post0",
    "1.0.post456.dev34",
    "1.0.post456",
    "1.0.15",
    "1.1.dev1",
    "1.1",
    "1.10",
    "2",
    "2023.10.1",
    "1!0.1",
]


@pytest.mark.parametrize(("low", "high"), list(itertools.combinations(ASCENDING, 2)))
def test_versions_order_as_pep_440_does(low: str, high: str) -> None:
    lower, higher = parse_version(low), parse_version(high)

    assert lower is not None
    assert higher is not None
    assert lower < higher


@pytest.mark.parametrize(
    "spellings",
    [
        ["1.0", "1", "1.0.0", "v1.0", " 1.0\n", "1.0+cu121", "1.0+git.7f2", "0!1"],
        ["1.0rc1", "1.0c1", "1.0.RC.1", "1.0-pre1", "1.0_preview_1"],
        ["1.0a0", "1.0alpha", "1.0-a"],
        ["1.0b0", "1.0beta", "1.0.B"],
        ["0", "0.0", "0.0.0"],
        ["1.0.post2", "1.0-2", "1.0rev2", "1.0.r2"],
        ["1.0.dev0", "1.0dev"],
    ],
)
def test_spellings_of_one_version_are_equal(spellings: list[str]) -> None:
    assert len({parse_version(text) for text in spellings}) == 1
    assert parse_version(spellings[0]) is not None


def test_a_release_is_never_empty() -> None:
    version = parse_version("0.0")

    assert version is not None
    assert version.release == (0,)


@pytest.mark.parametrize(
    "text", ["", "abc", "1..0", "1.0x", "1.0 2", "-1", "nightly", "9" * 5000]
)
def test_what_is_no_version_is_none(text: str) -> None:
    assert parse_version(text) is None


@pytest.mark.parametrize("name", ["Ml.Dtypes", "ml_dtypes", "ML--dtypes", "ml-_.dtypes"])
def test_names_have_one_spelling(name: str) -> None:
    assert normalised(name) == "ml-dtypes"


def areas(library: str, old: str, new: str) -> list[str]:
    return [change.area for change in lookup(library, old, new)]


@pytest.mark.parametrize(
    ("library", "old", "new", "found"),
    [
        ("numpy", "1.25.2", "2.0.0", ["loading", "numerics", "defaults"]),
        (
            "numpy",
            "1.26.4",
            "2.1.3",
            ["numerics", "defaults"],
        ),  # 1.26.1 and later read pickles of 2.x
        ("numpy", "1.26.1", "2.0.0", ["numerics", "defaults"]),
        ("numpy", "1.26.0", "2.0.0", ["loading", "numerics", "defaults"]),
        ("numpy", "1.24.0", "1.26.4", []),
        ("numpy", "2.0.0", "2.4.6", []),
        ("NumPy", "2.0.0rc1", "2.0.0", ["numerics", "defaults"]),
        ("torch", "2.0.1+cu118", "2.1.0+cu121", ["rng"]),
        ("torch", "2.5.1", "2.6.0", ["loading"]),
        ("torch", "1.13.1", "2.7.0", ["numerics", "rng", "loading", "loading"]),
        ("torch", "2.1.0", "2.5.1", []),
        ("torch", "2.6.0", "2.6.0", []),
        ("tensorflow", "2.8.0", "2.10.1", ["numerics"]),
        ("tensorflow", "2.15.1", "2.18.0", ["defaults"]),
        ("jax", "0.4.38", "0.5.0", ["rng"]),
        ("keras", "2.15.0", "3.0.5", ["defaults", "numerics"]),
        ("tensorflow", "2.3.4", "2.4.0", ["numerics"]),
        ("jax", "0.4.30", "0.4.31", ["numerics"]),
        ("torch", "1.11.0", "1.12.1", ["numerics"]),
        ("scipy", "1.0", "99", []),
        ("numpy", "unknown", "2.0.0", []),
        ("numpy", "1.0", "", []),
    ],
)
def test_lookup_finds_what_lies_between_in_both_directions(
    library: str, old: str, new: str, found: list[str]
) -> None:
    assert areas(library, old, new) == found
    assert areas(library, new, old) == found


@pytest.mark.parametrize(
    "change", KNOWN_CHANGES, ids=lambda c: f"{c.library}-{c.after}-{c.area}"
)
def test_every_row_is_usable_and_sourced(change: KnownChange) -> None:
    before, after = parse_version(change.before), parse_version(change.after)

    assert before is not None
    assert after is not None
    assert before <= after
    assert change.library == normalised(change.library)
    assert change.area in ("loading", "rng", "numerics", "defaults")
    assert change.severity in ("info", "warning", "error")
    assert all(len(text) > 10 for text in (change.what, change.action, change.source))
    assert change in lookup(change.library, "0.0.1", "999")


def test_rows_are_in_order_and_no_row_is_there_twice() -> None:
    rows = [(c.library, parse_version(c.after), c.area) for c in KNOWN_CHANGES]

    assert [row[:1] for row in rows] == sorted(row[:1] for row in rows)
    for _, own in itertools.groupby(rows, key=lambda row: row[0]):
        after = [row[1] for row in own]
        assert after == sorted(after, key=lambda version: version or parse_version("0"))
    assert len(set(rows)) == len(rows)


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KNOWN_CHANGES[0].after = "3"  # type: ignore[misc]
