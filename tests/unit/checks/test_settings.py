"""What frameworks' settings, accelerators and containers add to the record, and the policy."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import pytest

from ckptfmt.checks import environment, machine
from ckptfmt.checks.environment import CONTAINER, apply, compare, requirements
from ckptfmt.checks.settings import SETTINGS, grade
from ckptfmt.errors import MismatchError, UsageError


def record(torch: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**environment.capture(extra={"torch": torch}), **more}


def found(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    return {f.name: f.severity for f in compare(saved, now)}


def test_each_setting_is_graded() -> None:
    saved = record({"default_dtype": "float32", "threads": 2, "odd": 1, "seed": 1})
    now = record({"default_dtype": "float64", "threads": 4, "odd": 2, "seed": 2})

    assert found(saved, now) == {
        "torch.default_dtype": "warning",
        "torch.threads": "info",
        "torch.odd": "info",
    }
    assert found(saved, saved) == {}


def test_what_one_side_did_not_record_is_no_difference() -> None:
    saved = record({"default_dtype": "float32"})

    assert found(saved, environment.capture()) == {}
    assert found(environment.capture(), saved) == {}
    assert found({**saved, "extra": {"torch": 3}}, saved) == {}


@pytest.mark.parametrize("key", ["devices", "cudnn", "default_device", "mkldnn", "odd"])
def test_what_one_side_could_not_tell_is_no_difference(key: str) -> None:
    """CUDA that is not started yet, or a setting that the older record does not know."""
    known, unknown, absent = (
        record({key: 1, "a": 1}),
        record({key: None, "a": 1}),
        record({"a": 1}),
    )

    for other in (unknown, absent):
        assert found(known, other) == found(other, known) == {}


def test_none_that_says_something_is_compared() -> None:
    saved, now = (
        record({"cuda": "12.8", "devices": ["A"]}),
        record({"cuda": None, "devices": []}),
    )

    assert found(saved, now) == {"torch.cuda": "info", "torch.devices": "warning"}
    own = [environment.capture(extra={"mine": {"crop": crop}}) for crop in (3, None)]
    assert found(*own) == {"mine.crop": "info"}


def test_every_grade_has_a_reason() -> None:
    for section, key in SETTINGS:
        graded = grade(section, key)
        assert graded is not None
        assert graded[0] in ("info", "warning", "error")
        assert len(graded[1]) > 10
    assert grade("torch", "seed") is None


def test_accelerators_are_what_the_driver_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NVIDIA", str(tmp_path))
    assert machine.describe()["accelerator"] == {"driver": None, "devices": None}
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n"
    )
    for card in ("0000:02:00.0", "0000:01:00.0"):
        (tmp_path / "gpus" / card).mkdir(parents=True)
        (tmp_path / "gpus" / card / "information").write_text(
            "Model: \t\t NVIDIA H200\nIRQ: 1\n"
        )

    assert machine.describe()["accelerator"] == {
        "driver": "535.104.05",
        "devices": ["NVIDIA H200", "NVIDIA H200"],
    }


def test_another_form_of_the_drivers_version(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "NVIDIA", str(tmp_path))
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
    )
    accelerator: Any = machine.describe()["accelerator"]

    assert accelerator["driver"] == "570.86.15"


def test_requirements_are_pinned_and_safe() -> None:
    text = requirements(
        {
            "python": {"version": "3.11.7"},
            "variables": {CONTAINER: "sha256:0f\n--option evil"},
            "distributions": {
                "torch": "2.13.0+cpu",
                "numpy": "2.1.0",
                "-e": "1.0",
                "evil\n--option": "1.0",
                "odd": "1.0 --hash=x",
                "number": 3,
            },
        }
    )

    assert text == (
        "# python 3.11.7\n"
        "# container image sha256:0f?--option evil\n"
        "# left out, for want of a usable name or version: 4\n"
        "numpy==2.1.0\n"
        "torch==2.13.0+cpu\n"
    )
    assert requirements(None) == "# python None\n"


def test_the_policy_decides(caplog: pytest.LogCaptureFixture) -> None:
    same = record({"default_dtype": "float32", "threads": 1})
    findings = compare(same, record({"default_dtype": "float64", "threads": 2}))

    with caplog.at_level(logging.WARNING, "ckptfmt"):
        apply("off", findings, checkpoint=3)
        assert caplog.messages == []
        apply("warn", findings, checkpoint=3)
    (message,) = caplog.messages
    assert "torch.default_dtype was 'float32' when saved and is 'float64' here" in message
    with pytest.raises(MismatchError, match=r"torch\.default_dtype") as caught:
        apply("strict", findings, checkpoint=3)
    assert caught.value.where == {"checkpoint": 3, "findings": 1}
    apply("strict", [f for f in findings if f.severity == "info"], checkpoint=3)
    with pytest.raises(UsageError, match="expected the policy"):
        apply("loud", [], checkpoint=3)  # type: ignore[arg-type]
