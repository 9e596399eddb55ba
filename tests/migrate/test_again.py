"""A migration that is killed leaves nothing that counts, and is called again."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import ckptfmt
from ckptfmt import migrate

_KILLED = """
import os, sys
from ckptfmt import migrate

seen = []

def progress(phase, done, total):
    seen.append(phase)
    if phase == sys.argv[3] and done:
        os._exit(9)

migrate.migrate(sys.argv[1], sys.argv[2], verify=True, progress=progress)
print(*dict.fromkeys(seen))
"""


def _run(source: pathlib.Path, store: pathlib.Path, phase: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(source), str(store), phase],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.split()


@pytest.mark.slow
def test_a_migration_that_was_killed_is_called_again(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(5)
    arrays = {f"layer{n}": rng.normal(size=(64, 1024)) for n in range(6)}
    np.savez(tmp_path / "x.npz", **arrays)
    status, phases = _run(tmp_path / "x.npz", tmp_path / "whole", "none")
    assert (status, phases[0], phases[-1]) == (0, "reading", "comparing")

    for phase in phases:
        assert _run(tmp_path / "x.npz", tmp_path / "store", phase)[0] == 9, phase
        with ckptfmt.open(tmp_path / "store") as store:
            # Killed while it is compared, it is there already.
            assert len(list(store)) == (phase == "comparing"), phase

    again = migrate.migrate(tmp_path / "x.npz", tmp_path / "store", verify=True)

    assert (again.new, again.verified) == (False, len(arrays))
    with ckptfmt.open(tmp_path / "store") as store:
        assert len(list(store)) == 1
    for name, array in arrays.items():
        assert np.asarray(again.checkpoint.lazy(f"model/{name}")).tobytes() == array.tobytes()
