"""The fsspec backend against clients that misbehave as real ones do."""

from __future__ import annotations

import datetime
import inspect
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ckptfmt.backends import fsspec as module
from ckptfmt.backends._client import CLOUD, UNKNOWN, Client
from ckptfmt.backends._clouds import Cloud
from ckptfmt.backends._sftp import _Channels
from ckptfmt.backends._upload import Policy
from ckptfmt.backends._urls import without_credentials
from ckptfmt.backends.fsspec import FsspecBackend
from ckptfmt.errors import (
    BackendError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    UsageError,
)

NUMBERS = itertools.count()


class ClientError(Exception):
    """Of a client whose errors are no OSError (botocore, gcsfs, azure)."""

    def __init__(self, **fields: object) -> None:
        super().__init__("secret text of the server")
        self.__dict__.update(fields)


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """A file system whose behaviour a test bends; also counts its calls."""

    protocol = "bucket"
    cachable = False
    bend: dict[str, Callable[..., object]] = {}  # noqa: RUF012
    calls: list[str] = []  # noqa: RUF012

    def pipe_file(self, path: str, value: object, mode: str = "overwrite") -> None:
        assert type(value) is bytes  # adlfs takes nothing else
        self._do("pipe_file", super().pipe_file, path, value, mode=mode)

    def cat_file(self, path: str, **range_: int) -> object:
        return self._do("cat_file", super().cat_file, path, **range_)

    def ls(self, path: str, detail: bool = True, **options: object) -> object:
        return self._do("ls", super().ls, path, detail=detail)

    def rm_file(self, path: str) -> None:
        self._do("rm_file", super().rm_file, path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._do("makedirs", super().makedirs, path, exist_ok=exist_ok)

    def _do(
        self, name: str, call: Callable[..., object], *args: object, **kw: object
    ) -> object:
        self.calls.append(name)
        if name in self.bend:
            return self.bend[name](call, *args, **kw)
        return call(*args, **kw)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FsspecBackend:
    monkeypatch.setattr(Bucket, "bend", {})
    monkeypatch.setattr(Bucket, "calls", [])
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    return FsspecBackend(f"bucket://unit-{next(NUMBERS)}/run")


def raising(error: BaseException) -> Callable[..., object]:
    def call(*arguments: object, **options: object) -> object:
        raise error

    return call


EXISTS = [
    FileExistsError("x"),
    ClientError(status=412),
    ClientError(status_code=409),
    ClientError(code=412),
    ClientError(response={"ResponseMetadata": {"HTTPStatusCode": 412}}),
]


@pytest.mark.parametrize("error", EXISTS, ids=lambda e: repr(vars(e)) or "FileExistsError")
@pytest.mark.parametrize("wrapped", [False, True])
def test_exists_is_recognised_however_it_is_said(
    backend: FsspecBackend, error: Exception, wrapped: bool
) -> None:
    def call(*arguments: object, **options: object) -> object:
        if wrapped:
            raise OSError(5, "something else") from error
        raise error

    Bucket.bend["pipe_file"] = call

    with pytest.raises(ConflictError):
        backend.create("a/1", b"1")
    with pytest.raises(ConflictError):
        backend.write("a/1", [b"1"], nbytes=1)


@pytest.mark.parametrize(
    "error",
    [
        ClientError(status=500),
        ClientError(code="AccessDenied"),
        OSError(5, "x"),
        TimeoutError("x"),
        RuntimeError("x"),
    ],
)
@pytest.mark.parametrize("name", ["pipe_file", "cat_file", "ls", "rm_file"])
def test_what_clients_raise_becomes_a_backend_error(
    backend: FsspecBackend, error: Exception, name: str
) -> None:
    backend.create("a/1", b"12345")
    Bucket.bend[name] = raising(error)
    calls = {
        "pipe_file": lambda: backend.create("a/2", b"1"),
        "cat_file": lambda: backend.read("a/1", 0, 5),
        "ls": lambda: backend.list("a"),
        "rm_file": lambda: backend.delete("a/1"),
    }
    with pytest.raises(BackendError) as caught:
        calls[name]()

    assert caught.value.__cause__ is error
    assert caught.value.errno == (5 if type(error) is OSError else None)
    assert caught.value.where["url"] == backend.url
    assert "secret" not in str(caught.value)


def test_a_missing_bucket_is_no_missing_object(backend: FsspecBackend) -> None:
    Bucket.bend["pipe_file"] = raising(FileNotFoundError("no such bucket"))

    for call in (
        lambda: backend.create("a/1", b"1"),
        lambda: backend.replace("a/1", b"1"),
        lambda: backend.write("a/1", [b"1"], nbytes=1),
    ):
        with pytest.raises(BackendError):
            call()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_what_is_no_failure_passes(backend: FsspecBackend, stop: BaseException) -> None:
    Bucket.bend["pipe_file"] = raising(stop)

    with pytest.raises(type(stop)):
        backend.create("a/1", b"1")


def test_a_client_that_ignores_ranges_is_found_out(backend: FsspecBackend) -> None:
    """As sshfs does: the whole object comes back, without an error."""
    backend.create("a/1", b"0123456789")
    Bucket.bend["cat_file"] = lambda call, path, **range_: call(path)

    assert backend.read("a/1", 2, 3) == b"234"
    assert backend.read("a/1", 7) == b"789"
    assert backend.map("a/1", 0, 1) == b"0"
    with pytest.raises(IntegrityError):
        backend.read("a/1", 8, 3)


@pytest.mark.parametrize("error", [OSError(22, "range"), OSError(416, "range")])
def test_an_error_beyond_the_end_is_damage(backend: FsspecBackend, error: Exception) -> None:
    """As s3fs does."""
    backend.create("a/1", b"0123456789")
    Bucket.bend["cat_file"] = raising(error)

    with pytest.raises(IntegrityError):
        backend.read("a/1", 10, 1)
    with pytest.raises(BackendError):
        backend.read("a/1", 9, 1)


def test_a_wrong_length_that_stays_is_an_error(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/1", b"0123456789")
    Bucket.bend["cat_file"] = lambda call, path, **range_: call(path, **range_)[:-1]
    assert backend.read("a/1", 2, 3) == b"234"

    monkeypatch.setattr(Client, "size", lambda self, path: 20)
    with pytest.raises(BackendError, match="another length"):
        backend.read("a/1", 8, 10)


def test_an_upload_that_lost_bytes_is_removed(backend: FsspecBackend) -> None:
    Bucket.bend["pipe_file"] = lambda call, path, value, mode: call(path, value[:-1], mode=mode)

    with pytest.raises(BackendError, match="another length"):
        backend.write("a/1", [b"12345"], nbytes=5)

    assert backend.list("a") == {}


def test_nothing_is_sent_when_the_blocks_fail(backend: FsspecBackend) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"1"
        raise KeyError

    with pytest.raises(KeyError):
        backend.write("a/1", blocks(), nbytes=2)

    assert "pipe_file" not in Bucket.calls


def test_a_client_without_conditions_is_asked_first(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe_file(self: Bucket, path: str, value: bytes, **options: object) -> None:
        assert not options  # an unknown option would be ignored: a silent overwrite
        MemoryFileSystem.pipe_file(self, path, value)

    monkeypatch.setattr(Bucket, "pipe_file", pipe_file)
    backend = FsspecBackend(backend.url)

    backend.create("a/1", b"first")
    with pytest.raises(ConflictError):
        backend.create("a/1", b"second")

    assert backend.read("a/1") == b"first"
    assert not backend.capabilities.create_if_absent


def test_folders_are_made_where_the_kind_of_storage_is_unknown(backend: FsspecBackend) -> None:
    backend.create("a/1", b"1")
    assert "makedirs" in Bucket.calls


def test_folders_are_never_made_on_a_bucket(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3fs would create a bucket for a mistyped name."""
    monkeypatch.setattr(module, "client_for", lambda fs, scheme, policy: Cloud(fs, policy))
    backend = FsspecBackend(backend.url)

    backend.create("a/1", b"1")
    backend.write("a/2", [b"1"], nbytes=1)
    backend.replace("a/1", b"1")

    assert "makedirs" not in Bucket.calls


def test_capabilities_are_modest(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.capabilities == UNKNOWN
    assert not FsspecBackend("memory://x").capabilities.create_if_absent
    monkeypatch.setattr(module, "client_for", lambda fs, scheme, policy: Cloud(fs, policy))
    assert FsspecBackend(backend.url).capabilities == CLOUD

    monkeypatch.setattr(Bucket, "endpoint_url", "http://localhost:9000", raising=False)
    own = FsspecBackend(backend.url).capabilities
    assert not own.create_if_absent
    assert not own.strong_listing


@pytest.mark.skipif(
    "mode" not in inspect.signature(MemoryFileSystem.pipe_file).parameters,
    reason="this fsspec cannot create an object only if it is absent",
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_server_of_ones_own_is_trusted_after_it_refused(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """Some servers ignore the condition, and say nothing."""
    monkeypatch.setattr(module, "client_for", lambda fs, scheme, policy: Cloud(fs, policy))
    monkeypatch.setattr(Bucket, "endpoint_url", "http://localhost:9000", raising=False)
    if not strict:
        Bucket.bend["pipe_file"] = lambda call, path, value, mode: call(path, value)
    own = FsspecBackend(backend.url)

    own.create("a/1", b"1")

    assert own.capabilities.create_if_absent == strict
    assert own.read("a/1") == b"1"
    own.create("a/2", b"2")
    assert Bucket.calls.count("pipe_file") == 3  # it is asked once only


def test_what_cannot_be_learned_is_not_trusted(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "client_for", lambda fs, scheme, policy: Cloud(fs, policy))
    monkeypatch.setattr(Bucket, "endpoint_url", "http://localhost:9000", raising=False)

    def once(call: Callable[..., object], path: str, value: bytes, mode: str) -> object:
        Bucket.bend["pipe_file"] = raising(OSError(5, "x"))
        return call(path, value, mode=mode)

    Bucket.bend["pipe_file"] = once
    own = FsspecBackend(backend.url)

    own.create("a/1", b"1")

    assert not own.capabilities.create_if_absent


URLS = {
    "s3://bucket/run": "s3://bucket/run",
    "s3://KEY:SECRET@bucket/run": "s3://bucket/run",
    "https://TOKEN@host/run": "https://host/run",
    "https://host/run?sig=SECRET&se=1#x": "https://host/run",
    "sftp://me@host:22/run": "sftp://me@host:22/run",
    "sftp://me:pw@host:22/run": "sftp://host:22/run",
    "abfs://container@account.dfs.core.windows.net/run": (
        "abfs://container@account.dfs.core.windows.net/run"
    ),
    "smb://domain;me:p@ss@host/share": "smb://host/share",
    "s3://bucket/run#3": "s3://bucket/run#3",
    "memory://a/b": "memory://a/b",
}


@pytest.mark.parametrize("url", URLS)
def test_url_holds_no_credentials(url: str) -> None:
    assert without_credentials(url) == URLS[url]


def test_credentials_are_in_no_message(backend: FsspecBackend) -> None:
    """Nor those of a wrong URL, nor those among the options."""
    Bucket.bend["pipe_file"] = raising(OSError(5, "SECRET"))
    secret = FsspecBackend(
        backend.url.replace("//", "//me:SECRET@") + "?sig=SECRET",
        storage_options={"token": "SECRET"},
    )
    texts = [secret.url, repr(secret)]
    for call in (
        lambda: secret.create("a/1", b"1"),
        lambda: FsspecBackend("simplecache::s3://me:SECRET@x/y"),
        lambda: FsspecBackend("nosuch://me:SECRET@x/y"),
    ):
        with pytest.raises((BackendError, UsageError)) as caught:
            call()
        texts += [str(caught.value), repr(caught.value)]

    assert "SECRET" not in "".join(texts)


def test_chains_and_unknown_schemes_are_refused() -> None:
    for url in ("simplecache::memory://x", "dir::memory://x", "nosuch://x"):
        with pytest.raises(UsageError):
            FsspecBackend(url)


@pytest.mark.parametrize(
    ("url", "way_out"),
    [
        ("dropbox://x", "the package for dropbox://"),
        ("gs://x", r"pip install 'ckptfmt\[gcs\]'"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, url: str, way_out: str
) -> None:
    def missing(*arguments: object, **options: object) -> object:
        raise ImportError("install somefs", name="somefs")

    monkeypatch.setattr(module, "get_filesystem_class", missing)

    with pytest.raises(BackendError, match=way_out):
        FsspecBackend(url)


def test_the_client_is_made_anew_after_a_fork(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create("a/1", b"1")
    before = backend._resolved[1]
    assert backend._at("")[0] is before
    monkeypatch.setattr(os, "getpid", lambda: -1)

    assert backend.read("a/1") == b"1"
    assert backend._at("")[0] is not before
    assert backend._at("")[0] is backend._resolved[1]
    assert backend._inherited == [before]  # its end would close the parent's connection


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"LastModified": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}, 1767225600.0),
        ({"updated": "2026-01-01T00:00:00.500Z"}, 1767225600.5),
        ({"mtime": 17}, 17.0),
        ({"mtime": "not a time", "created": 18.5}, 18.5),
        ({"mtime": None}, math.inf),
        ({}, math.inf),
    ],
)
def test_times_of_every_client_are_understood(
    backend: FsspecBackend, fields: dict[str, object], expected: float
) -> None:
    item = {"name": f"{backend._at('a')[1]}/1", "size": 3, "type": "file", **fields}
    Bucket.bend["ls"] = lambda call, path, detail: [item]

    assert backend.list("a")["a/1"].modified == expected


def test_list_ignores_what_is_no_object(backend: FsspecBackend) -> None:
    """Folder markers of object stores, the folder itself, other people's names."""
    folder = backend._at("a")[1]
    names = ["", "/", "/1", "/.hidden", "/with space", "/deep/"]
    items = [{"name": folder + name, "size": 0, "type": "file"} for name in names]
    items.append({"name": folder + "/folder", "size": 0, "type": "directory"})
    Bucket.bend["ls"] = lambda call, path, detail: items

    assert set(backend.list("a")) == {"a/1", "a/deep"}


def test_list_never_answers_from_a_cache(
    backend: FsspecBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = Bucket.calls
    monkeypatch.setattr(Bucket, "invalidate_cache", lambda self: order.append("invalidate"))
    order.clear()

    backend.list("a")

    assert order == ["invalidate", "ls"]


def test_no_listing_is_ever_cached(backend: FsspecBackend) -> None:
    """One that began before an object was made could fill the cache after it was emptied."""
    fs: object = backend._at("")[0].fs
    fs.dircache["somewhere"] = []  # type: ignore[attr-defined]

    assert "somewhere" not in fs.dircache  # type: ignore[attr-defined]
    assert FsspecBackend(backend.url)._at("")[0].fs is not fs


LOST = [OSError(5, "no answer"), ClientError(status=412)]


@pytest.mark.parametrize("error", LOST, ids=["no answer", "412 of the client's second try"])
def test_a_data_file_whose_answer_was_lost_is_stored(
    backend: FsspecBackend, error: Exception
) -> None:
    def landed(call: Callable[..., object], *arguments: object, **options: object) -> None:
        call(*arguments, **options)
        raise error

    Bucket.bend["pipe_file"] = landed

    backend.write("a/1", [b"12345"], nbytes=5)

    assert backend.read("a/1") == b"12345"


@pytest.mark.parametrize("error", LOST, ids=["no answer", "412 of the client's second try"])
@pytest.mark.parametrize("found", [None, b"123"])
def test_a_data_file_that_did_not_land_is_an_error(
    backend: FsspecBackend, error: Exception, found: bytes | None
) -> None:
    def lost(call: Callable[..., object], path: str, value: bytes, mode: str) -> None:
        if found is not None:
            call(path, found)
        raise error

    Bucket.bend["pipe_file"] = lost

    with pytest.raises((BackendError, ConflictError)) as caught:
        backend.write("a/1", [b"12345"], nbytes=5)

    assert caught.value.__cause__ is error


def test_a_large_data_file_is_streamed_where_no_parts_are_known(backend: FsspecBackend) -> None:
    small = FsspecBackend(backend.url, policy=Policy(part_nbytes=4))
    small.write("a/1", [b"123", b"456789"], nbytes=9)
    assert small.read("a/1") == b"123456789"

    def broken() -> Iterator[bytes]:
        yield b"12345"
        raise KeyError

    with pytest.raises(KeyError):
        small.write("a/2", broken(), nbytes=9)

    assert set(small.list("a")) == {"a/1"}
    assert "pipe_file" not in Bucket.calls


def test_a_bucket_is_a_folder_too(tmp_path: pathlib.Path) -> None:
    backend = FsspecBackend(f"memory://top-{next(NUMBERS)}")
    backend.create("ckptfmt.json", b"{}")
    backend.create("data/1", b"1")

    assert set(backend.list("")) == {"ckptfmt.json"}
    with pytest.raises(NotFoundError):
        backend.read("data")


def test_a_listing_over_ssh_keeps_its_channel_to_the_end() -> None:
    """paramiko mixes up the answers of two who use one channel, and both wait for ever."""
    in_use: list[int] = []

    class Channel:
        def listdir_iter(self) -> Iterator[int]:
            in_use.append(id(self))
            yield from range(3)
            in_use.remove(id(self))

        def stat(self) -> bool:
            return id(self) in in_use

    class Connection:
        def open_sftp(self) -> Channel:
            return Channel()

    channels = _Channels(Connection())
    listing = channels.listdir_iter()
    next(listing)

    assert not channels.stat()  # by the same channel, given back, or by another one
    assert list(listing) == [1, 2]
