"""LoadReport: both directions, bounded text, complete data."""

from __future__ import annotations

import json

import pytest

from ckptfmt.checks import coverage
from ckptfmt.checks.coverage import LoadReport, compare
from ckptfmt.checks.environment import Finding
from ckptfmt.errors import MismatchError

WEIGHT = ("F32", (512, 768))


def test_equal_tables_match() -> None:
    report = compare({"b": WEIGHT, "a": ("F32", ())}, {"a": ("F32", ()), "b": WEIGHT})

    assert report == LoadReport(
        matched=("a", "b"),
        missing_keys=(),
        unexpected_keys=(),
        shape_mismatches=(),
        dtype_mismatches=(),
    )
    assert report.ok
    report.raise_for_mismatch()


def test_missing_is_what_the_target_expects_and_unexpected_what_it_does_not() -> None:
    report = compare({"same": WEIGHT, "stored": WEIGHT}, {"same": WEIGHT, "wanted": WEIGHT})

    assert report.missing_keys == ("wanted",)
    assert report.unexpected_keys == ("stored",)
    assert report.matched == ("same",)
    assert not report.ok


def test_shape_and_dtype_are_reported_stored_first() -> None:
    report = compare(
        {"both": ("F32", (2, 3)), "dtype": ("BF16", (1,)), "shape": ("F32", (4,))},
        {"both": ("F64", (3, 2)), "dtype": ("F32", (1,)), "shape": ("F32", (4, 1))},
    )

    assert report.shape_mismatches == (("both", (2, 3), (3, 2)), ("shape", (4,), (4, 1)))
    assert report.dtype_mismatches == (("both", "F32", "F64"), ("dtype", "BF16", "F32"))
    assert report.matched == ()
    assert report.problems == 4


def test_same_element_count_is_not_the_same_shape() -> None:
    assert not compare({"a": ("F32", (0,))}, {"a": ("F32", ())}).ok
    assert not compare({"a": ("F32", (1,))}, {"a": ("F32", ())}).ok


def test_any_sequence_is_a_shape() -> None:
    assert compare({"a": ("F32", [2, 3])}, {"a": ("F32", (2, 3))}).ok


def test_report_is_sorted_by_path() -> None:
    report = compare(dict.fromkeys("dbca", WEIGHT), dict.fromkeys("zyxd", WEIGHT))

    assert report.unexpected_keys == ("a", "b", "c")
    assert report.missing_keys == ("x", "y", "z")


def test_a_single_problem_is_one_exact_sentence() -> None:
    stored, target = {"model/head/kernel": WEIGHT}, {"model/head/kernel": ("F32", (512, 1024))}

    with pytest.raises(MismatchError) as caught:
        compare(stored, target).raise_for_mismatch(checkpoint="0000000012")

    assert str(caught.value) == (
        "array has shape (512, 768) in the checkpoint, (512, 1024) in the target "
        "[path='model/head/kernel', checkpoint='0000000012']"
    )
    assert caught.value.where == {"path": "model/head/kernel", "checkpoint": "0000000012"}


def test_all_problems_are_in_one_message() -> None:
    stored = {"s": WEIGHT, "t": ("F32", (1,)), "u": WEIGHT}
    target = {"s": ("F32", (2,)), "t": ("BF16", (1,)), "v": WEIGHT}

    with pytest.raises(MismatchError) as caught:
        compare(stored, target).raise_for_mismatch()

    assert str(caught.value) == (
        "checkpoint and target disagree: "
        "'v' is expected by the target, absent from the checkpoint; "
        "'u' is in the checkpoint, without a place in the target; "
        "'s' has shape (512, 768) in the checkpoint, (2,) in the target; "
        "'t' has dtype F32 in the checkpoint, BF16 in the target [problems=4]"
    )


def test_message_and_table_are_bounded_and_say_so() -> None:
    extra = coverage.MAX_LISTED + 3
    report = compare({}, {f"p{i:05}": WEIGHT for i in range(extra)})

    with pytest.raises(MismatchError) as caught:
        report.raise_for_mismatch()

    assert str(caught.value).endswith("; ... and 3 more [problems=15]")
    assert str(caught.value).count("'p") == coverage.MAX_LISTED
    assert str(report).splitlines()[-1] == "  ... and 3 more"
    assert len(str(report).splitlines()) == coverage.MAX_LISTED + 2


def test_exactly_the_limit_is_shown_whole() -> None:
    report = compare({}, {f"p{i:05}": WEIGHT for i in range(coverage.MAX_LISTED)})

    assert "more" not in str(report)


def test_table_has_counts_then_aligned_rows() -> None:
    report = compare({"a": WEIGHT, "long/name": WEIGHT}, {"a": WEIGHT, "b": WEIGHT})

    assert str(report) == (
        "1 matched, 1 missing, 1 unexpected, 0 with another shape, 0 with another dtype\n"
        "  missing     b          is expected by the target, absent from the checkpoint\n"
        "  unexpected  long/name  is in the checkpoint, without a place in the target"
    )


def test_table_names_the_kind_of_each_row() -> None:
    report = compare({"a": ("F32", (1,))}, {"a": ("F16", (2,))})

    assert str(report).splitlines()[1:] == [
        "  shape       a  has shape (1,) in the checkpoint, (2,) in the target",
        "  dtype       a  has dtype F32 in the checkpoint, F16 in the target",
    ]


def test_a_hostile_path_cannot_drive_the_terminal() -> None:
    report = compare({"a\x1b[2J\nb": WEIGHT}, {})

    assert "\x1b" not in str(report)
    assert len(str(report).splitlines()) == 2
    with pytest.raises(MismatchError) as caught:
        report.raise_for_mismatch()
    assert "\x1b" not in str(caught.value)


def test_data_is_complete_and_json() -> None:
    stored = {f"p{i}": WEIGHT for i in range(40)} | {"s": WEIGHT, "d": WEIGHT, "m": WEIGHT}
    target = {"x": WEIGHT, "s": ("F32", (1,)), "d": ("F16", (512, 768)), "m": WEIGHT}

    note = Finding(severity="info", name="seed", saved=1, now=2, reason="another")
    data = compare(stored, target, findings=[note]).to_dict()

    assert json.loads(json.dumps(data)) == data
    assert data == {
        "ok": False,
        "matched": ["m"],
        "missing_keys": ["x"],
        "unexpected_keys": sorted(f"p{i}" for i in range(40)),
        "shape_mismatches": [{"path": "s", "stored": [512, 768], "target": [1]}],
        "dtype_mismatches": [{"path": "d", "stored": "F32", "target": "F16"}],
        "findings": [
            {"severity": "info", "name": "seed", "saved": 1, "now": 2, "reason": "another"}
        ],
        "replay": None,
    }


def test_findings_follow_the_table_and_are_no_problems() -> None:
    note = Finding(severity="info", name="seed\x1b", saved=1, now=2, reason="another")

    report = compare({"m": WEIGHT}, {"m": WEIGHT}, findings=[note])

    assert report.ok
    assert str(report).splitlines()[1:] == ["  info        'seed\\x1b': another"]
