"""Memory is bounded by the largest array, whatever the source holds in all."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Final

import numpy as np
import pytest

import ckptfmt

ARRAYS: Final = 16
NBYTES: Final = 32 * 2**20
LIMIT: Final = 10 * NBYTES  # of private memory, the interpreter and its libraries included

PROGRAM: Final = """
import resource, sys
from ckptfmt import migrate
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]), int(sys.argv[3])))
migrate.migrate(sys.argv[1], sys.argv[2], verify=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
@pytest.mark.parametrize("packed", [True, False])
def test_a_source_larger_than_memory_is_migrated(packed: bool, tmp_path: pathlib.Path) -> None:
    arrays = {f"a{n}": np.full(NBYTES, n, np.uint8) for n in range(ARRAYS)}
    (np.savez_compressed if packed else np.savez)(tmp_path / "x.npz", **arrays)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "x.npz", tmp_path / "store", str(LIMIT)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    checkpoint = ckptfmt.open(tmp_path / "store").latest()
    assert np.asarray(checkpoint.lazy("model/a5")).tobytes() == arrays["a5"].tobytes()
