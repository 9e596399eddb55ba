"""A save to a bucket needs its byte budget, however large the state is."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ckptfmt
from tests.remote.bucket import ROOT, Bucket

MIB = 2**20
FEW = 64 * MIB


def save(
    bucket: Bucket,
    folder: pathlib.Path,
    *,
    nbytes: int,
    limit: int,
    policy: dict[str, Any],
    transposed: bool = False,
) -> tuple[pathlib.Path, str, int]:
    file, url = folder / "arrays", f"s3://b/memory-{nbytes}-{limit}-{transposed}"
    block = np.random.default_rng(0).integers(0, 256, 16 * MIB, np.uint8)
    with file.open("wb") as out:
        for n in range(nbytes // block.nbytes):
            block[:8] = np.frombuffer(n.to_bytes(8, "little"), np.uint8)
            out.write(block)
    how = {
        "url": url, "options": bucket.options, "policy": policy, "file": str(file),
        "arrays": nbytes // (64 * MIB), "limit": limit, "transposed": transposed,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.remote.save_within", json.dumps(how)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    number, added, seconds = json.loads(done.stdout)
    assert number == 2
    print(f"{nbytes / MIB:.0f} MiB saved in {seconds:.1f} s with {added / MIB:.0f} MiB added")
    return file, url, added


def test_a_save_needs_less_memory_than_it_saves(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    policy = {"part_nbytes": 4 * MIB, "in_flight": 4}
    file, url, added = save(bucket, tmp_path, nbytes=256 * MIB, limit=128 * MIB, policy=policy)

    assert added <= FEW  # parts are sent from where the arrays lie
    loaded = ckptfmt.open(url, storage_options=bucket.options).latest().load()
    want = np.memmap(file, np.uint8, mode="r").reshape(4, -1)
    assert all(loaded[f"w{n}"].tobytes() == want[n].tobytes() for n in range(4))


def test_copies_of_what_is_not_contiguous_are_bounded(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    """A part on its way holds the chunks it touches; some more wait for their turn."""
    policy = {"part_nbytes": 4 * MIB, "in_flight": 4}
    _, url, added = save(
        bucket, tmp_path, nbytes=256 * MIB, limit=256 * MIB, policy=policy, transposed=True
    )

    assert 16 * MIB < added <= 160 * MIB
    assert ckptfmt.open(url, storage_options=bucket.options).latest().verify().ok


@pytest.mark.slow
def test_four_gibibytes_are_saved_within_half_a_gibibyte(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    _, url, added = save(bucket, tmp_path, nbytes=4096 * MIB, limit=512 * MIB, policy={})

    assert added <= FEW
    assert ckptfmt.open(url, storage_options=bucket.options).latest().verify().ok
