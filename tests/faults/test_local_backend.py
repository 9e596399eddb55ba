"""The local backend when a call fails, is missing, does half of it, or loses its answer."""

from __future__ import annotations

import errno
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest

from ckptfmt.backends import LocalBackend, _syscalls, _write
from ckptfmt.errors import BackendError, CheckpointError, ConflictError

WAYS = {"cached": 1 << 40, "direct": 1}
NO_LINKS = [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES]
BLOCKS = [
    bytes([n]) * 3_000_000 for n in range(4)
]  # 12 MB: three buffers, the last one in part
WHOLE = b"".join(BLOCKS)


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> LocalBackend:
    return LocalBackend(tmp_path)


@pytest.fixture(params=WAYS)
def written(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> LocalBackend:
    """Return a backend for each of the two ways of writing."""
    return LocalBackend(tmp_path, direct_nbytes=WAYS[request.param])


def refuse(number: int) -> Callable[..., int]:
    def refused(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return refused


def files(folder: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# --- create -------------------------------------------------------------------------------


def test_create_recognises_its_own_link(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost, the request repeated: "exists" is then about our own file."""

    def lose_reply(source: str, target: str) -> None:
        os.link(source, target)
        os.link(source, target)

    monkeypatch.setattr(_syscalls, "link", lose_reply)

    backend.create("a/1", b"ours")

    assert backend.read("a/1") == b"ours"


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EPERM])
def test_create_recognises_its_own_link_behind_any_error(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lose_reply(source: str, target: str) -> None:
        os.link(source, target)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_syscalls, "link", lose_reply)

    backend.create("a/1", b"ours")

    assert backend.read("a/1") == b"ours"


def test_create_does_not_take_another_file_for_its_own(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/1", b"same bytes")

    with pytest.raises(ConflictError):
        backend.create("a/1", b"same bytes")


@pytest.mark.parametrize("number", NO_LINKS)
def test_create_without_hard_links_renames(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, number: int
) -> None:
    monkeypatch.setattr(_syscalls, "link", refuse(number))

    backend.create("a/1", b"first")
    with pytest.raises(ConflictError):
        backend.create("a/1", b"second")

    assert backend.read("a/1") == b"first"
    assert files(tmp_path) == ["a/1"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_create_without_links_and_renames_opens_exclusively(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, number: int
) -> None:
    monkeypatch.setattr(_syscalls, "link", refuse(errno.EPERM))
    monkeypatch.setattr(_syscalls, "rename_new", refuse(number))

    backend.create("a/1", b"first")
    with pytest.raises(ConflictError):
        backend.create("a/1", b"second")

    assert backend.read("a/1") == b"first"
    assert files(tmp_path) == ["a/1"]


def test_create_in_place_leaves_nothing_when_it_fails(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(_syscalls, "link", refuse(errno.EPERM))
    monkeypatch.setattr(_syscalls, "rename_new", refuse(errno.ENOSYS))
    syncs = iter([True, False])  # that of the temporary file succeeds

    def sync(fd: int) -> None:
        if not next(syncs):
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(_syscalls, "sync", sync)

    with pytest.raises(BackendError):
        backend.create("a/1", b"first")

    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_real_failure_of_link_is_not_worked_around(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, number: int
) -> None:
    monkeypatch.setattr(_syscalls, "link", refuse(number))

    with pytest.raises(BackendError) as caught:
        backend.create("a/1", b"data")

    assert caught.value.errno == number
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["open_new", "write", "sync", "close"])
@pytest.mark.parametrize("method", ["create", "replace"])
def test_a_small_object_is_unchanged_when_a_call_fails(
    backend: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    name: str,
    method: str,
) -> None:
    backend.create("a/old", b"old")
    real_close = _syscalls.close

    def fail(*arguments: object) -> int:
        if name == "close":
            real_close(as_int(arguments[0]))
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(_syscalls, name, fail)
        with pytest.raises(BackendError) as caught:
            getattr(backend, method)("a/old" if method == "replace" else "a/new", b"new")

    assert caught.value.errno == errno.EIO
    assert caught.value.where["key"] in ("a/old", "a/new")
    assert caught.value.where["url"] == str(tmp_path)
    assert files(tmp_path) == ["a/old"]
    assert backend.read("a/old") == b"old"


def test_replace_keeps_the_old_object_when_the_rename_fails(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    backend.create("a/1", b"old")
    monkeypatch.setattr(_syscalls, "replace", refuse(errno.EIO))

    with pytest.raises(BackendError):
        backend.replace("a/1", b"new")

    assert backend.read("a/1") == b"old"
    assert files(tmp_path) == ["a/1"]


def test_quick_objects_cost_no_sync_and_few_calls(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/0", b"makes the folder")
    calls = counted(monkeypatch)

    backend.create("a/1", b"1", durable=False)

    assert calls == ["open_new", "write", "close", "link", "unlink"]


def test_durable_objects_are_synced_before_they_get_their_name(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/0", b"makes the folder")
    calls = counted(monkeypatch)

    backend.create("a/1", b"1")
    backend.replace("a/1", b"2")

    create = ["open_new", "write", "sync", "close", "link", "unlink", "sync_folder"]
    assert calls == [*create, *create[:4], "replace", "sync_folder"]


# --- write --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["write", "write_at", "sync", "sync_folder", "close"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_write_leaves_nothing_when_a_call_fails(
    written: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    name: str,
    number: int,
) -> None:
    written.write("d/0", [b"makes the folder"], nbytes=16)
    real_close, failed = _syscalls.close, []

    def fail(*arguments: object) -> int:
        if name == "close":
            real_close(as_int(arguments[0]))
        failed.append(name)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(_syscalls, name, fail)
        caught = raised_by(lambda: written.write("d/1", BLOCKS, nbytes=len(WHOLE)))

    if failed:
        assert isinstance(caught, BackendError)
        assert caught.errno == number
        assert caught.where["key"] == "d/1"
        assert files(tmp_path) == ["d/0"]
    else:  # the other way of writing makes this call
        assert caught is None
        assert name in ("write", "write_at")
    written.write("d/2", BLOCKS, nbytes=len(WHOLE))  # the backend lives on


@pytest.mark.parametrize("place", range(0, 16_000_000, 4 << 20))
def test_no_lost_piece_goes_unnoticed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """A buffer that one of the two threads failed to write, the last ones included."""
    backend = LocalBackend(tmp_path, direct_nbytes=1)
    write_at = _syscalls.write_at

    def fail_there(fd: int, view: memoryview, offset: int) -> int:
        if offset <= place < offset + len(view):
            raise OSError(errno.EIO, "bad block")
        return write_at(fd, view, offset)

    monkeypatch.setattr(_syscalls, "write_at", fail_there)

    with pytest.raises(BackendError):
        backend.write("d/1", [b"x" * 16_000_000], nbytes=16_000_000)
    assert files(tmp_path) == []


def test_a_failed_sync_is_not_repeated(
    written: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The kernel drops pages it could not write: the second sync would succeed, falsely."""
    calls = []

    def sync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(_syscalls, "sync", sync)

    with pytest.raises(BackendError):
        written.write("d/1", BLOCKS, nbytes=len(WHOLE))
    assert len(calls) == 1
    calls.clear()
    with pytest.raises(BackendError):
        written.create("d/2", b"2")
    assert len(calls) == 1
    assert files(tmp_path) == []


def test_short_writes_are_continued(
    written: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, write_at = _syscalls.write, _syscalls.write_at
    monkeypatch.setattr(
        _syscalls,
        "write",
        lambda fd, views: write(fd, [views[0][: max(1, len(views[0]) // 3)]]),
    )
    monkeypatch.setattr(
        _syscalls,
        "write_at",
        lambda fd, view, at: write_at(fd, view[: -(-len(view) // 3 // 4096) * 4096 or 5], at),
    )
    blocks = [os.urandom(n) for n in (1, 100, 4096, 5_000_000, 3, 1_000_001)]

    written.write("d/1", blocks, nbytes=sum(map(len, blocks)))

    assert written.read("d/1") == b"".join(blocks)


def test_short_writes_across_many_views_are_continued(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut anywhere in a group: inside a view, and exactly between two."""
    write = _syscalls.write
    for size in range(1, 13):
        monkeypatch.setattr(
            _syscalls,
            "write",
            lambda fd, views, size=size: write(fd, [memoryview(b"".join(views)[:size])]),
        )
        backend.write(f"d/{size}", [b"123", b"4", b"5678", b"9012"], nbytes=12)
        assert backend.read(f"d/{size}") == b"123456789012"


@pytest.mark.parametrize("short", [-1, 0, 1])
def test_blocks_of_any_length_stay_in_order(written: LocalBackend, short: int) -> None:
    """Tiny ones, more than a call takes, and those that end at, or cross, a call or buffer."""
    group, buffer = _write.GROUP_NBYTES, _write.BUFFER_NBYTES
    sizes = [5, group - 5 + short, group, *[3] * 2500, buffer - short, 1, 2 * buffer + 7]
    blocks = [os.urandom(n) for n in sizes]

    written.write("d/1", blocks, nbytes=sum(sizes))

    assert written.read("d/1") == b"".join(blocks)


@pytest.mark.parametrize("name", ["reserve", "start_writeback"])
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE])
def test_a_refused_hint_does_no_harm(
    written: LocalBackend, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    calls = []

    def refused(*arguments: object) -> None:
        calls.append(name)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_syscalls, name, refused)

    written.write("d/1", BLOCKS, nbytes=len(WHOLE))

    assert written.read("d/1") == WHOLE
    assert calls or (name == "start_writeback" and written._direct_nbytes == 1)


def test_no_space_is_found_out_before_the_first_block(
    written: LocalBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(_syscalls, "reserve", refuse(errno.ENOSPC))

    def blocks() -> Iterator[bytes]:
        pytest.fail("asked for a block")
        yield b""

    with pytest.raises(BackendError) as caught:
        written.write("d/1", blocks(), nbytes=len(WHOLE))

    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "size", [1, 4095, 4096, 4097, 8192, 4 << 20, (8 << 20) + 1, 13_000_001]
)
@pytest.mark.parametrize("refused_at", ["never", "open", "first", "second", "odd"])
def test_any_refusal_past_the_page_cache_falls_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, size: int, refused_at: str
) -> None:
    backend = LocalBackend(tmp_path, direct_nbytes=1)
    data = os.urandom(size)
    descriptors: list[int] = []
    open_direct, write_at = _syscalls.open_direct, _syscalls.write_at
    calls = 0

    def opened(path: str) -> int:
        if refused_at == "open":
            raise OSError(errno.EINVAL, "no O_DIRECT here")
        # A file system that ignores O_DIRECT is fine, too: what counts is which calls we make.
        descriptors.append(open_direct(path))
        return descriptors[-1]

    def write(fd: int, view: memoryview, offset: int) -> int:
        nonlocal calls
        if fd in descriptors:
            assert offset % _write.ALIGNMENT == 0
            assert len(view) % _write.ALIGNMENT == 0
            calls += 1
            if (refused_at, calls) in {("first", 1), ("second", 2)} or (
                refused_at == "odd" and calls % 2
            ):
                raise OSError(errno.EINVAL, "not aligned as this disk wants it")
        return write_at(fd, view, offset)

    monkeypatch.setattr(_syscalls, "open_direct", opened)
    monkeypatch.setattr(_syscalls, "write_at", write)

    backend.write("d/1", [data[n : n + 777_777] for n in range(0, size, 777_777)], nbytes=size)

    assert backend.read("d/1") == data
    assert (tmp_path / "d/1").stat().st_size == size


def test_only_large_durable_files_go_past_the_page_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(tmp_path, direct_nbytes=1000)
    calls = counted(monkeypatch)

    backend.write("d/1", [b"x" * 999], nbytes=999)
    backend.write("d/2", [b"x" * 1000], nbytes=1000, durable=False)
    assert "open_direct" not in calls
    backend.write("d/3", [b"x" * 1000], nbytes=1000)

    assert calls.count("open_direct") == 1


def test_writeback_starts_early_and_the_file_is_synced_last(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.write("d/0", [], nbytes=0)
    calls = counted(monkeypatch)

    backend.write("d/1", [b"x" * (20 << 20)], nbytes=20 << 20)

    eight, four = [*["write"] * 8, "start_writeback"], ["write"] * 4
    end = ["sync", "close", "sync_folder"]
    assert calls == ["open_new", "reserve", *eight, *eight, *four, *end]
    calls.clear()
    backend.write("d/2", [b"x" * (16 << 20)], nbytes=16 << 20)
    assert calls == ["open_new", "reserve", *eight, *eight[:-1], *end]


def test_extra_memory_is_bounded(tmp_path: pathlib.Path) -> None:
    """The blocks are not held together: a few at a time, by either way of writing."""
    alive = peak = 0

    class Block(bytearray):
        def __init__(self, nbytes: int) -> None:
            nonlocal alive, peak
            super().__init__(nbytes)
            alive += nbytes
            peak = max(peak, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= len(self)

    for way, direct_nbytes in WAYS.items():
        peak = 0
        backend = LocalBackend(tmp_path, direct_nbytes=direct_nbytes)
        backend.write(f"d/{way}", (Block(500_000) for _ in range(200)), nbytes=100_000_000)
        assert peak <= 4_000_000
    assert _write.BUFFERS * _write.BUFFER_NBYTES + _write.GROUP_NBYTES <= 32 << 20


# --- platforms that lack a call -----------------------------------------------------------


def test_windows_has_no_vectored_calls_no_folder_sync_and_refuses_renames(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the calls that Windows lacks are taken away, its rename is exclusive."""

    def rename(source: str, target: str) -> None:
        os.link(source, target)
        os.unlink(source)

    for name in ("writev", "preadv", "pwrite", "O_DIRECT", "O_NOFOLLOW", "O_NONBLOCK"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "O_DIRECTORY", None)  # a folder must not be opened
    monkeypatch.setattr(os, "rename", rename)
    _syscalls._c_function.cache_clear()
    backend = LocalBackend(tmp_path, direct_nbytes=1)
    for links in (True, False):
        if not links:
            monkeypatch.setattr(os, "link", refuse(errno.EPERM))
        folder = f"links-{links}"
        backend.create(f"{folder}/1", b"12345")
        with pytest.raises(ConflictError):
            backend.create(f"{folder}/1", b"other")
        backend.replace(f"{folder}/2", b"replaced")
        backend.write(f"{folder}/3", BLOCKS, nbytes=len(WHOLE))
        target = bytearray(3)
        backend.read_into(f"{folder}/1", 1, memoryview(target))

        assert target == b"234"
        assert backend.read(f"{folder}/2") == b"replaced"
        assert backend.read(f"{folder}/3") == WHOLE
        assert len(backend.list(folder)) == 3
    monkeypatch.undo()
    _syscalls._c_function.cache_clear()


def test_macos_syncs_the_drive_too(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    calls: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(0))

    backend.create("1", b"1")

    assert calls == [0, 51, 0]  # the folder above, the file, its folder

    def unsupported(fd: int, command: int) -> None:
        raise OSError(errno.ENOTSUP, "not on this file system")

    calls.clear()
    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    backend.create("2", b"2")
    assert calls == [0, 0]

    monkeypatch.setattr(fcntl, "fcntl", refuse(errno.EIO))
    with pytest.raises(BackendError):
        backend.create("3", b"3")


@pytest.mark.parametrize(
    ("number", "fine"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_folder_that_cannot_be_synced_is_tolerated_one_that_fails_is_not(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, number: int, fine: bool
) -> None:
    backend.create("1", b"1")
    fsync = os.fsync

    def refused(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refused)

    if fine:
        backend.create("2", b"2")
        backend.write("3", [b"3"], nbytes=1)
    else:
        with pytest.raises(BackendError):
            backend.create("2", b"2")
        with pytest.raises(BackendError):
            backend.write("3", [b"3"], nbytes=1)
        assert "3" not in backend.list("")


def test_the_platform_calls_work_here(tmp_path: pathlib.Path) -> None:
    """On Linux none is missing; otherwise only the fallbacks above would be tested."""
    if sys.platform != "linux":
        pytest.skip("Linux only")
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    fd = _syscalls.open_new(one)
    try:
        _syscalls.write(fd, [memoryview(b"12345")])
        _syscalls.start_writeback(fd, 0, 5)
        _syscalls.reserve(fd, 10_000)
        assert os.fstat(fd).st_size == 10_000
    finally:
        _syscalls.close(fd)
    _syscalls.rename_new(one, two)
    pathlib.Path(one).write_bytes(b"other")
    with pytest.raises(FileExistsError):
        _syscalls.rename_new(one, two)


def as_int(value: object) -> int:
    assert isinstance(value, int)
    return value


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have every call of `_syscalls` that changes something note its name."""
    calls: list[str] = []
    names = [
        "open_new", "open_direct", "close", "write", "write_at", "reserve", "start_writeback",
        "sync", "sync_folder", "make_folder", "link", "rename_new", "replace", "unlink",
    ]  # fmt: skip

    def noting(name: str, call: Callable[..., int]) -> Callable[..., int]:
        def wrapped(*arguments: object) -> int:
            calls.append(name)
            return call(*arguments)

        return wrapped

    for name in names:
        monkeypatch.setattr(_syscalls, name, noting(name, getattr(_syscalls, name)))
    return calls


def raised_by(call: Callable[[], None]) -> CheckpointError | None:
    try:
        call()
    except CheckpointError as error:
        return error
    return None
