"""What saves leave behind and what restores need, measured in processes of their own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
SCRIPT = pathlib.Path(__file__).parent / "measuring.py"


def measured(*options: str | pathlib.Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("options", [(), ("--background",)])
def test_a_hundred_saves_keep_no_memory_threads_or_files(
    tmp_path: pathlib.Path, options: tuple[str, ...]
) -> None:
    grown = measured("saves", tmp_path / "run", *options)

    # One kept state has 4 MB, the manifests of 100 saves have as much; one may be on its way.
    assert grown["memory"] < 2**20
    assert grown["threads"] < 5
    assert grown["files"] < 5


def test_a_restore_holds_no_second_copy(tmp_path: pathlib.Path) -> None:
    peaks = measured("restores", tmp_path / "run")

    # Of 210 MB; the largest tensor has 4 MB.
    assert {kind: peak for kind, peak in peaks.items() if peak > 2**25} == {}
    assert peaks.keys() == {"plain", "transposed", "cast"}
