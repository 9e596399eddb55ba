"""The benchmark of a bucket still runs and still judges. No figure of this run is looked at."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from tests.bench import remote
from tests.bench.remote_acts import DCP, DOWN, INTO, LIST, OURS, SETTINGS, TORCH, UP, WAYS

ROOT = pathlib.Path(__file__).parents[2]
CLIENT = next(iter(SETTINGS))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


def test_everybody_moves_the_state_there_and_back(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    names, file = [OURS, CLIENT, LIST], tmp_path / "run.json"
    line = [
        sys.executable, "-m", "tests.bench.remote", "--quick",
        "--rounds", "2", "--repeats", "1",
        "--only", ",".join(names), "--folder", str(tmp_path), "--json", str(file),
    ]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    samples = json.loads(file.read_text())["samples"]
    assert len(samples.pop(LIST)[LIST]) == 2
    assert {n: [len(ways[way]) for way in WAYS] for n, ways in samples.items()} == {
        OURS: [2, 2, 2],
        CLIENT: [2, 2, 0],
    }
    assert remote.report(json.loads(file.read_text())) == done.stdout.rstrip("\n")


@pytest.mark.parametrize(
    ("seconds", "missed"),
    [(1.1, []), (1.2, ["0.83"]), (2.1, ["0.48", "1.90", "1.90", "2.10"])],
)
def test_targets_are_judged_by_medians(seconds: float, missed: list[str]) -> None:
    def three(median: float) -> list[dict[str, float]]:
        every = (median, median / 3, median * 5)
        return [{"seconds": s, "client": 1.0, "server": 1.0, "others": 0.1} for s in every]

    def ways(up: float, down: float | None, into: float | None) -> dict[str, object]:
        return {
            way: [] if s is None else three(s)
            for way, s in zip((UP, DOWN, INTO), (up, down, into), strict=True)
        }

    run = {
        "nbytes": 10**9, "listed": 1000, "quick": False, "load": [[1.0], [2.0]],
        "versions": {}, "machine": {},
        "samples": {
            OURS: ways(seconds, 1.0, 1.0),
            CLIENT: ways(1.0, 1.0, None),
            list(SETTINGS)[1]: ways(1.5, 0.95, None),
            TORCH: ways(4.0, 4.0, None),
            DCP: ways(4.0, None, 4.0),
            LIST: {LIST: three(seconds)},
        },
    }  # fmt: skip
    lines = remote.report(run).splitlines()

    verdicts = [line.split(": ")[1:] for line in lines if " at " in line]
    assert len(verdicts) == len(remote.TARGETS) + 1
    assert [v[0].split()[0] for v in verdicts if v[1] == "**missed**"] == missed
