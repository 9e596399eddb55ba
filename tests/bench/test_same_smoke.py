"""The measurements of environment and probe still run, and tell a missed target."""

from __future__ import annotations

import pytest

from tests.bench import same


def test_capture_and_report() -> None:
    samples = same.captured(10)

    assert samples.keys() == {
        "environment, first",
        "environment, later",
        "environment, compared",
    }
    assert all(seconds > 0 for values in samples.values() for seconds in values)
    slow = {**samples, "environment, later": [2 * same.TARGET_SECONDS]}
    quick = {**samples, "environment, later": [same.TARGET_SECONDS / 2]}
    assert (same.met(slow), same.met(quick)) == (False, True)
    assert "MISSED" in same.report(slow)
    assert same.report(quick).endswith("met")


def test_what_a_probe_costs_is_measured() -> None:
    pytest.importorskip("torch", reason="probes are measured with PyTorch")
    samples = same.probed(1)

    assert {len(values) for values in samples.values()} == {1}
    assert "restore with replay" in samples
