"""What the operating system forbids: unreadable and read-only folders, links, strange files.

A process without rights is a forked child that has become `nobody`; each test first proves
that a plain write, or read, fails there. What may not be read is an error of storage: never
"no checkpoint", never "damaged", and never an older checkpoint instead.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.errors import BackendError, CheckpointError
from ckptfmt.format import layout
from ckptfmt.testing.strategies import assert_same

NOBODY = 65534

needs_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0,
    reason="becoming another user needs root: run the tests as root once",
)


def state(seed: int) -> dict[str, Any]:
    return {"model": {"w": np.full((50, 5), float(seed))}, "optimizer": {"m": np.arange(9.0)}}


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """Return a store of two checkpoints that belongs to us and that everybody can read."""
    # Not `tmp_path`: the folders above it are closed to other users.
    above = pathlib.Path(tempfile.mkdtemp())
    above.chmod(0o755)
    before = os.umask(0o022)
    try:
        store = ckptfmt.open(above / "store")
        store.save(state(1))
        store.save(state(2))
        store.annotate(2, {"notes": "second"})
        yield above / "store"
    finally:
        os.umask(before)
        shutil.rmtree(above)


def as_nobody(act: Callable[[], object]) -> Any:
    """Return what `act` returns in a child process without rights."""
    import numpy.core  # noqa: F401  what is imported later may lie where nobody can read

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, json.dumps(act()).encode())
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, said.decode()
    return json.loads(said)


def refused(act: Callable[[], object]) -> list[Any]:
    """Return [errno, type] of the failure of a call of ours."""
    try:
        act()
    except CheckpointError as error:
        return [getattr(error, "errno", None), type(error).__name__]
    return [None, "no error"]


DENIED = [errno.EACCES, "BackendError"]


def may_write(path: pathlib.Path) -> bool:
    try:
        path.write_bytes(b"x")
    except PermissionError:
        return False
    return True


def may_read(path: pathlib.Path) -> bool:
    try:
        path.read_bytes() if path.is_file() else os.listdir(path)
    except PermissionError:
        return False
    return True


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@needs_root
def test_a_folder_that_is_read_only_can_be_read(folder: pathlib.Path) -> None:
    def look() -> object:
        assert not may_write(folder / "proof")
        store = ckptfmt.open(folder)
        assert_same(store.latest().load(), state(2))
        assert_same(store[1].load(mmap=True), state(1))
        assert store.latest().verify().ok
        assert dict(store[2].notes) == {"notes": "second"}
        return [row.status for row in store.entries()]

    assert as_nobody(look) == ["ok", "ok"]


CHANGES: dict[str, Callable[[ckptfmt.Store], object]] = {
    "save": lambda store: store.save(state(3)),
    "save_async": lambda store: store.save_async(state(3)).wait(),
    "delete": lambda store: store.delete(1),
    "collect": lambda store: store.collect(),
    "annotate": lambda store: store.annotate(1, {"notes": "x"}),
}


@needs_root
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change_is_made_in_a_read_only_folder(
    folder: pathlib.Path, change: Callable[[ckptfmt.Store], object]
) -> None:
    before = contents(folder)

    def attempt() -> object:
        assert not may_write(folder / "intents" / "proof")
        return refused(lambda: change(ckptfmt.open(folder)))

    assert as_nobody(attempt) == DENIED
    assert contents(folder) == before


@needs_root
@pytest.mark.parametrize("part", ["intents", "data", "manifests"])
def test_a_save_that_may_not_write_everywhere_leaves_nothing(
    folder: pathlib.Path, part: str
) -> None:
    before = contents(folder)
    for name in ("intents", "data", "manifests"):
        (folder / name).chmod(0o755 if name == part else 0o777)

    def attempt() -> object:
        assert not may_write(folder / part / "proof")
        return refused(lambda: ckptfmt.open(folder).save(state(3)))

    number, kind = as_nobody(attempt)
    assert (number, kind) == (errno.EACCES, "BackendError") or part == "manifests"
    assert [c.number for c in ckptfmt.open(folder)] == [1, 2]
    assert_same(ckptfmt.open(folder).latest().load(), state(2))
    if part != "manifests":  # else the outcome is unknown, and data and lease stay
        assert contents(folder) == before
    assert ckptfmt.open(folder).save(state(4)).number == 3
    assert ckptfmt.open(folder).collect().blocked == ()
    assert os.listdir(folder / "intents") == []


@needs_root
def test_a_new_store_where_nothing_may_be_created(folder: pathlib.Path) -> None:
    def attempt() -> object:
        assert not may_write(folder.parent / "proof")
        return refused(lambda: ckptfmt.open(folder.parent / "new").save(state(1)))

    assert as_nobody(attempt) == DENIED
    assert not (folder.parent / "new").exists()


READS: dict[str, Callable[[ckptfmt.Store], object]] = {
    "latest": lambda store: store.latest().load(),
    "number": lambda store: store[2].load(),
    "list": lambda store: list(store),
    "len": len,
    "entries": lambda store: store.entries(),
    "best": lambda store: store.best("loss"),
}


@needs_root
@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("part", ["manifests", "manifests/0000000002-000.ckpt"])
def test_a_manifest_that_may_not_be_read_is_not_a_missing_one(
    folder: pathlib.Path, part: str, read: Callable[[ckptfmt.Store], object]
) -> None:
    (folder / part).chmod(0)

    def attempt() -> object:
        assert not may_read(folder / part)
        return refused(lambda: read(ckptfmt.open(folder)))

    assert as_nobody(attempt) == DENIED


@needs_root
@pytest.mark.parametrize("way", ["load", "mmap", "into", "slice", "verify"])
def test_data_that_may_not_be_read_is_not_damaged(folder: pathlib.Path, way: str) -> None:
    for file in (folder / "data").iterdir():
        file.chmod(0)
    reads: dict[str, Callable[[ckptfmt.Checkpoint], object]] = {
        "load": lambda checkpoint: checkpoint.load(),
        "mmap": lambda checkpoint: checkpoint.load(mmap=True),
        "into": lambda checkpoint: checkpoint.load(into=state(0)),
        "slice": lambda checkpoint: checkpoint["model/w"][0],
        "verify": lambda checkpoint: checkpoint.verify(),
    }

    def attempt() -> object:
        assert not may_read(next((folder / "data").iterdir()))
        return refused(lambda: reads[way](ckptfmt.open(folder).latest()))

    assert as_nobody(attempt) == DENIED


@needs_root
def test_a_marker_that_may_not_be_read_is_an_error(folder: pathlib.Path) -> None:
    (folder / layout.MARKER).chmod(0)

    assert as_nobody(lambda: refused(lambda: ckptfmt.open(folder))) == DENIED


@needs_root
def test_a_file_system_mounted_read_only(tmp_path: pathlib.Path) -> None:
    how = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if (done := subprocess.run(how, capture_output=True, text=True)).returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        ckptfmt.open(tmp_path / "store").save(state(1))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "proof").write_bytes(b"x")

        store = ckptfmt.open(tmp_path / "store")
        assert_same(store.latest().load(), state(1))
        for change in CHANGES.values():
            assert refused(lambda change=change: change(store))[0] == errno.EROFS
        assert_same(store.latest().load(), state(1))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o027, 0o640, 0o750), (0, 0o666, 0o777)],
    ids=oct,
)
def test_new_files_respect_the_umask(
    tmp_path: pathlib.Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(umask)
    try:
        with ckptfmt.open(tmp_path / "above" / "store") as store:
            store.save(state(1))
            store.save_async(state(2)).wait()
            store.tag(1, "a")
            store.delete(2)
    finally:
        os.umask(before)

    found = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode))
        for path in (tmp_path / "above").rglob("*")
    }
    assert found == {(False, file_mode), (True, folder_mode)}


# ---- links and strange files


def test_a_link_out_of_the_store_is_not_followed(tmp_path: pathlib.Path) -> None:
    """Also when the bytes behind it are the right ones."""
    store = ckptfmt.open(tmp_path / "store")
    store.save(state(1))
    store.save(state(2))
    file = tmp_path / "store" / store[2].manifest.tables.files[-1].key
    outside = tmp_path / "outside.safetensors"
    content = file.read_bytes()
    file.rename(outside)
    file.symlink_to(outside)

    again = ckptfmt.open(tmp_path / "store")
    for way in ({}, {"mmap": True}, {"into": state(0)}, {"verify": False}):
        with pytest.raises(CheckpointError):
            again[2].load(**way)
    with pytest.raises(CheckpointError):
        again[2].verify().raise_for_problems()
    assert again.latest().number == 1
    again.delete(2)
    assert outside.read_bytes() == content


@pytest.mark.parametrize("key", ["manifests/0000000002-000.ckpt", "ckptfmt.json"])
def test_a_manifest_or_marker_behind_a_link_is_refused(
    tmp_path: pathlib.Path, key: str
) -> None:
    store = ckptfmt.open(tmp_path / "store")
    store.save(state(1))
    store.save(state(2))
    path = tmp_path / "store" / key
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")

    with pytest.raises(BackendError, match="symbolic link"):
        ckptfmt.open(tmp_path / "store").latest()


@pytest.mark.parametrize("strange", ["folder", "pipe", "socket"])
@pytest.mark.parametrize("kind", ["manifests", "data", "annotations", "intents"])
def test_what_is_no_file_does_not_hang_or_confuse(
    tmp_path: pathlib.Path, kind: str, strange: str
) -> None:
    store = ckptfmt.open(tmp_path)
    store.save(state(1))
    saved = store.save(state(2))
    path = {
        "manifests": tmp_path / layout.manifest_key(2),
        "data": tmp_path / next(f.key for f in saved.manifest.tables.files if f.number == 2),
        "annotations": tmp_path / layout.annotation_key(1, store[1].id, 1),
        "intents": tmp_path / layout.intent_key("a" * 24),
    }[kind]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if strange == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o644 | (stat.S_IFIFO if strange == "pipe" else stat.S_IFSOCK))

    def look() -> None:
        store = ckptfmt.open(tmp_path)
        newest = store.latest()
        assert newest.number == (2 if kind in ("annotations", "intents") else 1)
        assert_same(newest.load(), state(newest.number))
        assert_same(store[1].load(), state(1))

    number, error = refused(look)
    assert error in ("no error", "BackendError")
    assert number in (None, errno.ENXIO)
