"""No space left, on a file system that is really full, and under a limit on file sizes.

Nothing committed is lost, nothing half-committed is visible, and when there is room again the
next save succeeds and takes away what the failed ones left.
"""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import BackendError
from ckptfmt.format import layout
from ckptfmt.testing.strategies import assert_same

MEGABYTE = 2**20
DISK_NBYTES = 16 * MEGABYTE


def state(seed: int, megabytes: float = 3.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    n = int(megabytes * MEGABYTE / 8)
    return {"model": {"w": rng.standard_normal(n)}, "optimizer": {"m": rng.standard_normal(n)}}


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Mount a file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root: run the tests as root once")
    how = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES}", "tmpfs", str(folder)]
    done = subprocess.run(how, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: pathlib.Path, leave: int) -> pathlib.Path:
    """Fill the disk up to `leave` bytes; prove that it is full."""
    filler = folder / "filler"
    space = os.statvfs(folder)
    filler.write_bytes(bytes(space.f_bavail * space.f_frsize - leave))
    with pytest.raises(OSError, match="No space") as caught:
        (folder / "proof").write_bytes(bytes(leave + MEGABYTE))
    assert caught.value.errno == errno.ENOSPC
    (folder / "proof").unlink()
    return filler


@pytest.mark.parametrize("background", [False, True], ids=["save", "save_async"])
@pytest.mark.parametrize("leave", [0, 5000, MEGABYTE, 4 * MEGABYTE])
def test_a_full_disk_costs_only_the_save(
    small_disk: pathlib.Path, leave: int, background: bool
) -> None:
    store = ckptfmt.open(small_disk / "store")
    store.save(state(1))
    filler = fill(small_disk, leave)
    before = every_file(small_disk)

    for seed in (2, 3):
        with pytest.raises(BackendError) as caught:
            store.save_async(state(seed)).wait() if background else store.save(state(seed))
        assert caught.value.errno == errno.ENOSPC
        assert every_file(small_disk) == before, "its bytes are still in the way"
        again = ckptfmt.open(small_disk / "store")
        assert len(again) == 1
        assert_same(again.latest().load(), state(1))

    filler.unlink()
    saved = store.save(state(4))
    assert saved.number == 2
    assert_same(ckptfmt.open(small_disk / "store").latest().load(), state(4))
    check_tidy(store)


def every_file(folder: pathlib.Path) -> set[pathlib.Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def check_tidy(store: ckptfmt.Store) -> None:
    used = {file.key for found in store for file in found.manifest.tables.files}
    assert set(store.backend.list(layout.DATA)) == used
    assert store.backend.list(layout.INTENTS) == {}


@pytest.mark.parametrize("leave", range(0, 30_000, 2_500))
def test_every_object_of_a_save_may_be_the_one_without_room(
    small_disk: pathlib.Path, leave: int
) -> None:
    """Lease, data, manifest: with less and less room another one fails."""
    store = ckptfmt.open(small_disk / "store")
    store.save(state(1, 0.01))
    filler = fill(small_disk, leave)
    failed: BackendError | None = None
    try:
        store.save(state(2, 0.01))
    except BackendError as error:
        failed = error
    filler.unlink()

    assert failed is None or failed.errno == errno.ENOSPC or "unknown" in str(failed)
    committed = failed is None

    again = ckptfmt.open(small_disk / "store")
    assert (2 in again) == committed
    for checkpoint in again:
        assert_same(checkpoint.load(), state(checkpoint.number, 0.01))
    assert store.save(state(3, 0.01)).number == 2 + committed
    check_tidy(store)


def test_retention_frees_a_full_disk(small_disk: pathlib.Path) -> None:
    """Deleting needs a little room, too; without it the error says so and nothing is lost."""
    store = ckptfmt.open(small_disk / "store")
    store.save(state(1, 2))
    store.save(state(2, 2))
    filler = fill(small_disk, 0)
    with pytest.raises(BackendError, match="No space"):
        store.delete(1)
    assert_same(ckptfmt.open(small_disk / "store")[2].load(), state(2, 2))
    filler.unlink()
    store = ckptfmt.open(small_disk / "store", keep=ckptfmt.keep(last=1))
    store.latest().load()
    for seed in range(3, 9):  # 24 MB through a disk of 16
        store.save(state(seed, 2))
    assert_same(store.latest().load(), state(8, 2))
    assert len(store) == 1


LIMITED = """
    import errno, resource, signal, sys
    import numpy as np
    import ckptfmt
    from ckptfmt.errors import BackendError

    folder, limit = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    proof = open(folder + "/proof", "wb", buffering=0)
    try:
        proof.write(bytes(limit))
        proof.write(b"1")
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    else:
        sys.exit("the limit does not limit")

    store = ckptfmt.open(folder + "/store")
    try:
        store.save({"model": {"w": np.arange(200_000.0)}})
    except BackendError as error:
        print(error.errno == errno.EFBIG or "unknown" in str(error), error)
    else:
        print("saved")
    print([checkpoint.number for checkpoint in store])
    print(store.backend.list("data").keys())
"""


@pytest.mark.parametrize("limit", [100, 600, 4096, 2**20])
def test_a_limit_on_file_sizes_is_an_error_like_others(
    tmp_path: pathlib.Path, limit: int
) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save({"model": {"w": np.arange(10.0)}})
    before = store.backend.list(layout.DATA)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")
    assert "[1]" in done.stdout
    assert store.backend.list(layout.DATA) == before
    assert_same(store.latest().load(), {"model": {"w": np.arange(10.0)}})
    assert store.save({"model": {"w": np.arange(200_000.0)}}).number == 2
