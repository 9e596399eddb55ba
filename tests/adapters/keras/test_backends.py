"""A model saved on each backend is the same model on each other one."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import BACKENDS

SCRIPT = pathlib.Path(__file__).parent / "across.py"
NOISE = 1e-5  # of outputs around 1: backends sum in other orders


def run(backend: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(900)
def test_a_model_goes_from_each_backend_to_each(tmp_path: pathlib.Path) -> None:
    folders = [str(tmp_path / backend) for backend in BACKENDS]
    for backend, folder in zip(BACKENDS, folders, strict=True):
        run(backend, "save", folder)

    answers: dict[str, list[dict[str, Any]]] = {
        backend: json.loads(run(backend, "load", *folders).splitlines()[-1])
        for backend in BACKENDS
    }

    for place, _ in enumerate(BACKENDS):
        own = answers[BACKENDS[place]][place]
        for backend in BACKENDS:
            other = answers[backend][place]
            assert other["iterations"] == own["iterations"] == 3
            for name in ("predicted", "after"):
                apart = np.abs(np.array(other[name]) - np.array(own[name])).max()
                assert apart < NOISE, (BACKENDS[place], backend, name)
