"""What a test of a backend, or of code on top of one, needs. Requires pytest."""

from __future__ import annotations

# ruff: noqa: E402
import pytest

# Before the imports: otherwise a failing assertion of the suite would not show its values.
pytest.register_assert_rewrite("ckptfmt.testing._changes", "ckptfmt.testing.conformance")

from ckptfmt.testing.conformance import BackendConformance as BackendConformance
from ckptfmt.testing.faulty import Crash as Crash
from ckptfmt.testing.faulty import FaultyBackend as FaultyBackend
from ckptfmt.testing.powerloss import CrashState as CrashState
from ckptfmt.testing.powerloss import PowerLog as PowerLog
from ckptfmt.testing.powerloss import crash_states as crash_states
from ckptfmt.testing.powerloss import record as record

__all__ = [
    "BackendConformance",
    "Crash",
    "CrashState",
    "FaultyBackend",
    "PowerLog",
    "crash_states",
    "record",
]
