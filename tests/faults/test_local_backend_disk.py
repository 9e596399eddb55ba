"""The local backend on a disk that is really full, read-only or forbidden.

Each test first proves that a plain write fails there: root ignores permissions, and a limit
that is not in force would let every test pass.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator

import pytest

from ckptfmt.backends import LocalBackend, _syscalls
from ckptfmt.errors import BackendError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits and permissions")

DISK_NBYTES = 8 << 20
NOBODY = 65534


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the root of a file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_NBYTES}", "tmpfs", str(folder))
    yield folder
    # Lazily: a descriptor that a failing test left open must not keep it mounted for ever.
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*arguments: str) -> None:
    done = (
        subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
        if os.geteuid() == 0
        else None
    )
    if done is None or done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip() if done else 'not root'}")


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
    """Yield a folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield pathlib.Path(name)


def in_child(run: Callable[[], None], *, uid: int | None = None) -> None:
    """Run in a process of its own, perhaps as somebody else; fail as it fails."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        report = "the child was killed"
        try:
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            run()
            report = ""
        except BaseException:
            report = traceback.format_exc()
        finally:
            os.write(write, report.encode()[:60_000])
            os._exit(bool(report))
    os.close(write)
    with open(read, "rb") as pipe:
        report = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    assert status == 0, report


def fails_with(number: int, call: Callable[[], object]) -> BackendError:
    with pytest.raises(BackendError) as caught:
        call()
    assert caught.value.errno == number, caught.value
    assert "key" in caught.value.where
    assert "url" in caught.value.where
    return caught.value


def plain_write_fails_with(number: int, path: pathlib.Path, nbytes: int = 1) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is checked below)
        path.write_bytes(b"x" * nbytes)
    assert caught.value.errno == number
    with contextlib.suppress(OSError):
        path.unlink()


def names(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("direct_nbytes", [1, 1 << 40], ids=["direct", "cached"])
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("reserves", [True, False])
def test_a_data_file_that_does_not_fit_leaves_nothing(
    disk: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    direct_nbytes: int,
    durable: bool,
    reserves: bool,
) -> None:
    if not reserves:  # then the disk fills up half-way through the blocks

        def refused(fd: int, nbytes: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "cannot reserve")

        monkeypatch.setattr(_syscalls, "reserve", refused)
    plain_write_fails_with(errno.ENOSPC, disk / "plain", DISK_NBYTES + 1)
    backend = LocalBackend(disk, direct_nbytes=direct_nbytes)
    backend.create("manifests/1", b"good")
    blocks = [b"x" * 1_000_000] * 20

    fails_with(
        errno.ENOSPC,
        lambda: backend.write("data/1", blocks, nbytes=20_000_000, durable=durable),
    )

    assert names(disk) == {"manifests/1"}
    backend.write("data/2", blocks[:7], nbytes=7_000_000, durable=durable)  # the space is back
    assert backend.read("data/2") == b"x" * 7_000_000


def test_a_small_object_on_a_full_disk_leaves_nothing_and_keeps_the_old(
    disk: pathlib.Path,
) -> None:
    backend = LocalBackend(disk)
    backend.create("manifests/1", b"good")
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    plain_write_fails_with(errno.ENOSPC, disk / "plain")

    fails_with(errno.ENOSPC, lambda: backend.create("manifests/2", b"new"))
    fails_with(errno.ENOSPC, lambda: backend.create("manifests/2", b"new", durable=False))
    fails_with(errno.ENOSPC, lambda: backend.replace("manifests/1", b"new"))

    assert names(disk) == {"manifests/1", "filler"}
    assert backend.read("manifests/1") == b"good"
    backend.delete("manifests/1")  # freeing space needs none
    backend.create("manifests/2", b"new")


def test_a_read_only_disk_can_be_read(disk: pathlib.Path) -> None:
    LocalBackend(disk).create("manifests/1", b"good")
    mount("-o", "remount,ro", str(disk))
    plain_write_fails_with(errno.EROFS, disk / "plain")
    backend = LocalBackend(disk)

    assert backend.read("manifests/1") == b"good"
    assert bytes(backend.map("manifests/1", 1, 3)) == b"ood"
    assert set(backend.list("manifests")) == {"manifests/1"}
    assert backend.list("data") == {}
    backend.delete("data/missing")
    for durable in (True, False):
        fails_with(errno.EROFS, lambda d=durable: backend.create("data/1", b"1", durable=d))
        fails_with(
            errno.EROFS, lambda d=durable: backend.create("manifests/2", b"1", durable=d)
        )
    fails_with(errno.EROFS, lambda: backend.replace("manifests/1", b"new"))
    fails_with(errno.EROFS, lambda: backend.write("data/1", [b"1"], nbytes=1))
    fails_with(errno.EROFS, lambda: backend.delete("manifests/1"))


@pytest.mark.parametrize("direct_nbytes", [1, 1 << 40], ids=["direct", "cached"])
def test_a_limit_on_file_sizes_leaves_nothing(
    tmp_path: pathlib.Path, direct_nbytes: int
) -> None:
    import resource

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        plain_write_fails_with(errno.EFBIG, tmp_path / "plain", 1_000_001)
        backend = LocalBackend(tmp_path, direct_nbytes=direct_nbytes)
        backend.create("a/1", b"good")
        for nbytes in (1_100_000, 20_000_000):  # without and with reservation
            blocks = [b"x" * 100_000] * (nbytes // 100_000)
            fails_with(
                errno.EFBIG, lambda b=blocks, n=nbytes: backend.write("a/2", b, nbytes=n)
            )
        fails_with(errno.EFBIG, lambda: backend.create("a/3", b"x" * 1_000_001))
        fails_with(errno.EFBIG, lambda: backend.replace("a/1", b"x" * 1_000_001))
        assert names(tmp_path) == {"a/1"}
        assert backend.read("a/1") == b"good"

    in_child(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_of_somebody_else_can_be_read_but_not_changed(
    open_folder: pathlib.Path,
) -> None:
    backend = LocalBackend(open_folder)
    backend.create("manifests/1", b"good")
    backend.create("manifests/2", b"secret")
    (open_folder / "manifests/2").chmod(0o600)
    backend.create("hidden/1", b"1")
    (open_folder / "hidden").chmod(0o311)

    def run() -> None:
        plain_write_fails_with(errno.EACCES, open_folder / "manifests/plain")
        assert backend.read("manifests/1") == b"good"
        assert set(backend.list("manifests")) == {"manifests/1", "manifests/2"}
        fails_with(errno.EACCES, lambda: backend.read("manifests/2"))
        fails_with(errno.EACCES, lambda: backend.map("manifests/2", 0, 1))
        fails_with(errno.EACCES, lambda: backend.list("hidden"))
        assert backend.read("hidden/1") == b"1"
        fails_with(errno.EACCES, lambda: LocalBackend(open_folder).create("manifests/3", b"1"))
        fails_with(errno.EACCES, lambda: LocalBackend(open_folder).create("data/3", b"1"))
        for durable in (True, False):
            fails_with(errno.EACCES, lambda d=durable: backend.create("new/3", b"1", durable=d))
            fails_with(
                errno.EACCES, lambda d=durable: backend.create("manifests/3", b"1", durable=d)
            )
            fails_with(
                errno.EACCES,
                lambda d=durable: backend.write("manifests/3", [b"1"], nbytes=1, durable=d),
            )
        fails_with(errno.EACCES, lambda: backend.replace("manifests/1", b"1"))
        fails_with(errno.EACCES, lambda: backend.delete("manifests/1"))

    in_child(run, uid=NOBODY)
    assert names(open_folder) == {"manifests/1", "manifests/2", "hidden/1"}
    assert backend.read("manifests/1") == b"good"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_store_below_a_folder_that_may_not_be_opened(open_folder: pathlib.Path) -> None:
    """Its name cannot be synced there, as in a shared home; everything else works."""
    (open_folder / "home").mkdir()
    (open_folder / "home").chmod(0o733)

    def run() -> None:
        with pytest.raises(PermissionError):
            os.listdir(open_folder / "home")
        backend = LocalBackend(open_folder / "home/run")
        backend.create("manifests/1", b"1")
        backend.write("data/1", [b"1"], nbytes=1)
        assert set(backend.list("data")) == {"data/1"}

    in_child(run, uid=NOBODY)
