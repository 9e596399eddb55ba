"""What is particular to the local backend: files, folders, modes, mappings, descriptors."""

from __future__ import annotations

import gc
import os
import pathlib
import stat
import sys
import threading
from collections.abc import Iterator

import pytest

from ckptfmt.backends import LocalBackend, _syscalls
from ckptfmt.errors import BackendError, ConflictError, IntegrityError, NotFoundError

LINUX = sys.platform == "linux"


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> LocalBackend:
    return LocalBackend(tmp_path / "run")


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def everything(folder: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def test_url_is_the_absolute_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = LocalBackend("run")
    monkeypatch.chdir("/")

    backend.create("a/b", b"1")

    assert backend.url == str(tmp_path / "run")
    assert (tmp_path / "run" / "a" / "b").read_bytes() == b"1"


def test_opening_creates_nothing(backend: LocalBackend, tmp_path: pathlib.Path) -> None:
    assert backend.list("data") == {}
    backend.delete("data/1")
    with pytest.raises(NotFoundError):
        backend.read("data/1")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("umask")
def test_modes_follow_the_umask(backend: LocalBackend, tmp_path: pathlib.Path) -> None:
    backend.create("a/created", b"1")
    backend.create("a/quick", b"1", durable=False)
    backend.replace("a/replaced", b"1")
    backend.write("a/written", [b"1"], nbytes=1)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    files = dict.fromkeys(["created", "quick", "replaced", "written"], 0o640)
    assert modes == {"run": 0o750, "a": 0o750, **files}


def test_nothing_unfinished_is_left(backend: LocalBackend, tmp_path: pathlib.Path) -> None:
    backend.create("a/1", b"1")
    backend.replace("a/1", b"2")
    with pytest.raises(Exception, match="exists"):
        backend.create("a/1", b"3")
    with pytest.raises(BackendError):
        backend.write("a/2", [b"too long"], nbytes=1)

    assert everything(tmp_path) == ["run/a/1"]


def test_list_ignores_what_is_no_object(backend: LocalBackend, tmp_path: pathlib.Path) -> None:
    backend.create("a/1", b"1")
    (tmp_path / "run/a/.1.0123456789abcdef").write_bytes(b"unfinished")
    (tmp_path / "run/a/.DS_Store").write_bytes(b"not ours")
    (tmp_path / "run/a/with space").write_bytes(b"not ours")
    (tmp_path / "run/a/folder").mkdir()

    assert set(backend.list("a")) == {"a/1"}


def test_old_leftovers_of_dead_processes_are_removed(
    backend: LocalBackend, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "run/a"
    folder.mkdir(parents=True)
    names = {".1.0123456789abcdef": 2, ".2.0123456789abcdef": 0.5, ".keep": 2, "3": 2}
    for name, days in names.items():
        (folder / name).write_bytes(b"unfinished")
        then = folder.stat().st_mtime - days * 24 * 3600
        os.utime(folder / name, (then, then))

    backend.list("a")
    backend.create("a/quick", b"1", durable=False)
    assert len(everything(folder)) == 5
    backend.create("a/4", b"4")

    assert everything(folder) == [".2.0123456789abcdef", ".keep", "3", "4", "quick"]


def test_a_folder_removed_by_somebody_is_made_again(
    backend: LocalBackend, tmp_path: pathlib.Path
) -> None:
    backend.create("a/1", b"1")
    (tmp_path / "run/a/1").unlink()
    (tmp_path / "run/a").rmdir()
    (tmp_path / "run").rmdir()

    backend.create("a/1", b"2")
    assert backend.read("a/1") == b"2"


def test_a_symbolic_link_to_a_file_is_refused(
    backend: LocalBackend, tmp_path: pathlib.Path
) -> None:
    """It could lead out of the store, or to bytes that change."""
    (tmp_path / "secret").write_bytes(b"secret")
    backend.create("a/1", b"1")
    (tmp_path / "run/a/2").symlink_to(tmp_path / "secret")

    with pytest.raises(BackendError, match="link, which is not followed"):
        backend.read("a/2")
    with pytest.raises(BackendError, match="link, which is not followed"):
        backend.map("a/2", 0, 1)
    # Its name is taken all the same, and shows.
    assert set(backend.list("a")) == {"a/1", "a/2"}
    with pytest.raises(Exception, match="object exists"):
        backend.create("a/2", b"2")


def test_a_symbolic_link_to_a_folder_is_followed(
    backend: LocalBackend, tmp_path: pathlib.Path
) -> None:
    """Large data on another disk is the user's choice."""
    (tmp_path / "disk2").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/data").symlink_to(tmp_path / "disk2")

    backend.write("data/1", [b"1"], nbytes=1)

    assert (tmp_path / "disk2/1").read_bytes() == b"1"
    assert set(backend.list("data")) == {"data/1"}


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_an_error(
    backend: LocalBackend, tmp_path: pathlib.Path, kind: str
) -> None:
    (tmp_path / "run/a").mkdir(parents=True)
    path = tmp_path / "run/a/x"
    path.mkdir() if kind == "folder" else os.mkfifo(path)

    with pytest.raises(BackendError, match="not a regular file"):  # and never a hang
        backend.read("a/x")
    if kind == "folder":
        with pytest.raises(BackendError):
            backend.delete("a/x")


def test_a_file_in_the_way_of_a_folder_is_an_error(
    backend: LocalBackend, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "run").write_bytes(b"a file")

    for change in (
        lambda: backend.create("a/1", b"1"),
        lambda: backend.create("a/1", b"1", durable=False),
        lambda: backend.replace("a/1", b"1"),
        lambda: backend.write("a/1", [b"1"], nbytes=1),
        lambda: backend.list("a"),
    ):
        with pytest.raises(BackendError) as caught:
            change()
        assert caught.value.errno is not None
        assert caught.value.where["url"] == str(tmp_path / "run")


def test_views_of_one_file_share_one_mapping(backend: LocalBackend) -> None:
    """Python keeps a descriptor for each mapping: one per array would exhaust them."""
    backend.create("a/1", bytes(range(256)) * 1000)
    before = len(os.listdir("/proc/self/fd")) if LINUX else 0

    views = [backend.map("a/1", n, 100) for n in range(2000)]

    assert all(view == (bytes(range(256)) * 2)[n % 256 :][:100] for n, view in enumerate(views))
    if LINUX:
        assert len(os.listdir("/proc/self/fd")) == before + 1
    del views
    gc.collect()
    if LINUX:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_mapping_is_read_only(backend: LocalBackend) -> None:
    backend.create("a/1", b"12345")

    with pytest.raises(TypeError):
        backend.map("a/1", 0, 5)[0] = 0


def test_a_file_that_shrinks_while_it_is_read_is_damage(
    backend: LocalBackend, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/1", b"1" * 100)
    read_at = _syscalls.read_at

    def shrink_first(fd: int, target: memoryview, offset: int) -> int:
        os.truncate(tmp_path / "run/a/1", 60)
        return read_at(fd, target, offset)

    monkeypatch.setattr(_syscalls, "read_at", shrink_first)

    with pytest.raises(IntegrityError) as caught:
        backend.read("a/1")
    assert caught.value.where["found"] == 60


def test_large_ranges_are_read_in_pieces(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(10_000)
    backend.create("a/1", data)
    monkeypatch.setattr("ckptfmt.backends.local.READ_NBYTES", 999)
    read_at, sizes = _syscalls.read_at, []

    def noting(fd: int, target: memoryview, offset: int) -> int:
        sizes.append(len(target))
        return read_at(fd, target, offset)

    monkeypatch.setattr(_syscalls, "read_at", noting)
    target = bytearray(9000)

    backend.read_into("a/1", 500, memoryview(target))

    assert target == data[500:9500]
    assert sizes == [999] * 9 + [9]


def test_blocks_come_one_after_the_other_from_one_open_file(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1000)
    backend.create("a/1", data)
    opened: list[str] = []
    open_read = _syscalls.open_read
    monkeypatch.setattr(_syscalls, "open_read", lambda p: opened.append(p) or open_read(p))
    block = memoryview(bytearray(300))

    found = [bytes(b) for b in backend.read_each("a/1", 50, (block, block, block[:200]))]

    assert found == [data[50:350], data[350:650], data[650:850]]
    assert len(opened) == 1
    with pytest.raises(IntegrityError) as caught:
        list(backend.read_each("a/1", 500, (block, block)))
    assert caught.value.where["key"] == "a/1"
    with pytest.raises(NotFoundError):
        list(backend.read_each("a/2", 0, (block,)))


def test_short_reads_are_continued(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1000)
    backend.create("a/1", data)
    read_at = _syscalls.read_at
    monkeypatch.setattr(
        _syscalls, "read_at", lambda fd, target, offset: read_at(fd, target[:7], offset)
    )

    assert backend.read("a/1", 3) == data[3:]


@pytest.mark.skipif(not LINUX, reason="counts descriptors in /proc")
def test_no_descriptor_or_thread_outlives_a_call(tmp_path: pathlib.Path) -> None:
    backend = LocalBackend(tmp_path, direct_nbytes=100_000)

    def broken() -> Iterator[bytes]:
        yield b"1" * 500_000
        raise KeyError

    def use(n: int) -> None:
        backend.create(f"a/{n}", b"1")
        backend.replace(f"a/{n}", b"2")
        backend.write(f"d/{n}", [b"3" * 1000], nbytes=1000)
        backend.write(f"d/{n}-large", [b"3" * 9_000_000], nbytes=9_000_000)
        backend.read(f"a/{n}")
        backend.map(f"d/{n}", 0, 10)
        backend.list("a")
        for call in (
            lambda: backend.create(f"a/{n}", b"1"),
            lambda: backend.write(f"d/{n}", [], nbytes=0),
            lambda: backend.write(f"d/{n}-broken", broken(), nbytes=9_000_000),
            lambda: backend.write(f"d/{n}-short", [b"1" * 200_000], nbytes=9_000_000),
            lambda: backend.read("a/missing"),
            lambda: backend.read("a/0", 5, 5),
            lambda: backend.read("a"),
        ):
            with pytest.raises((OSError, KeyError, ValueError, Exception)):
                call()

    use(0)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for n in range(1, 4):
        use(n)

    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_a_taken_key_is_found_out_before_the_first_block(backend: LocalBackend) -> None:
    backend.create("a/1", b"1")

    with pytest.raises(ConflictError):
        backend.write("a/1", (pytest.fail("asked for a block") for _ in range(1)), nbytes=1)


def test_keys_reach_the_expected_files(backend: LocalBackend, tmp_path: pathlib.Path) -> None:
    backend.create("top", b"1")
    backend.create("a/b/c", b"2")

    assert everything(tmp_path) == ["run/a/b/c", "run/top"]
