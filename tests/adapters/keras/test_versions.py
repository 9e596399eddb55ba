"""A model goes from each release of Keras to each other one; run by `make test-keras-versions`.

CKPTFMT_OLD_KERAS names folders with one older release each, which come before the newest one on
the path of the processes that save and load.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parent / "across.py"
OLD = [one for one in os.environ.get("CKPTFMT_OLD_KERAS", "").split(os.pathsep) if one]
NOISE = 1e-6  # of outputs around 1, on one backend: a release may sum in another order

pytestmark = pytest.mark.slow


def run(folder: str, *arguments: str) -> str:
    path = os.pathsep.join([*([folder] if folder else []), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert done.returncode == 0, (folder, done.stderr)
    return done.stdout


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not OLD, reason="CKPTFMT_OLD_KERAS is not set: `make test-keras-versions`")
def test_a_model_goes_from_each_release_to_each(tmp_path: pathlib.Path) -> None:
    releases = ["", *OLD]
    folders = [str(tmp_path / str(number)) for number, _ in enumerate(releases)]
    for release, folder in zip(releases, folders, strict=True):
        run(release, "save", folder)

    answers: list[list[dict[str, Any]]] = [
        json.loads(run(release, "load", *folders).splitlines()[-1]) for release in releases
    ]

    assert len({answer[0]["keras"] for answer in answers}) == len(releases)
    for place, _ in enumerate(releases):
        own = answers[place][place]
        for answer in answers:
            other = answer[place]
            assert other["iterations"] == own["iterations"] == 3
            for name in ("predicted", "after"):
                apart = np.abs(np.array(other[name]) - np.array(own[name])).max()
                assert apart < NOISE, (own["keras"], other["keras"], name)
