"""What an attacker, or an accident with a secret, must not reach: one test for each threat.

The table of threats is in the specification, §11.4; each row names its test. Hostile bytes are
in `test_hostile.py`, what the operating system forbids in `test_permissions.py`.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import ckptfmt
from ckptfmt.backends import LocalBackend, MemoryBackend
from ckptfmt.cli import main
from ckptfmt.errors import BackendError, CheckpointError, ConflictError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.manifest import Manifest

SECRET = "hunter2/+secret"
ADDRESS = "leaky://me:hunter2%2F%2Bsecret@host{n}/run?sig=hunter2%2F%2Bsecret"


class Leaky(MemoryFileSystem):  # type: ignore[misc]
    """A client that repeats its address and its options in every error, as some do."""

    protocol = "leaky"
    cachable = False
    failing = False
    given: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__()
        type(self).given = options

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        bare = path.rpartition("://")[2].partition("?")[0].rpartition("@")[2]
        return "/" + bare.strip("/") if bare.strip("/") else ""

    def _fail(self) -> None:
        if self.failing:
            raise OSError(5, f"403 for {ADDRESS} with {self.given}")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        self._fail()
        super().pipe_file(path, value, mode=mode)

    def cat_file(self, path: str, **range_: Any) -> bytes:
        self._fail()
        return bytes(super().cat_file(path, **range_))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._fail()
        return super().ls(path, detail=detail, **options)


def state() -> dict[str, Any]:
    return {"model": {"w": np.arange(60.0)}}


def leaky() -> ckptfmt.Store:
    return ckptfmt.open(
        ADDRESS,
        storage_options={"account_key": SECRET, "nested": {"sas_token": f"?s={SECRET}"}},
    )


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("leaky", Leaky, clobber=True)
    monkeypatch.setattr(Leaky, "store", {})
    monkeypatch.setattr(Leaky, "pseudo_dirs", [""])
    monkeypatch.setattr(Leaky, "failing", False)
    monkeypatch.setattr("time.sleep", lambda _: None)


def shows(text: str) -> bool:
    """Tell whether a text holds the secret in any form."""
    return "hunter2" in text


CALLS: dict[str, Callable[[ckptfmt.Store], object]] = {
    "save": lambda store: store.save(state()),
    "save_async": lambda store: store.save_async(state()).wait(),
    "latest": lambda store: store.latest(),
    "list": list,
    "collect": lambda store: store.collect(),
    "copy from": lambda store: ckptfmt.copy(store, empty()),
    "copy to": lambda store: ckptfmt.copy(saved(), store),
    "mirror": lambda store: ckptfmt.open(MemoryBackend(), mirror=store),
}


def empty() -> ckptfmt.Store:
    return ckptfmt.open(MemoryBackend())


def saved() -> ckptfmt.Store:
    store = ckptfmt.open(MemoryBackend())
    store.save(state())
    return store


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_credentials_are_in_no_error_and_no_traceback(
    call: Callable[[ckptfmt.Store], object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = leaky()
    monkeypatch.setattr(Leaky, "failing", True)

    with caplog.at_level(logging.DEBUG), pytest.raises(BackendError) as caught:
        call(store)

    told = "".join(traceback.format_exception(caught.value))
    assert not shows(told), told
    assert "whose text holds credentials and is not shown" in told
    assert caught.value.errno == 5
    assert not shows(caplog.text)
    assert not shows(repr(caught.value.where))


def test_credentials_are_in_no_repr_manifest_or_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        store = leaky()
        checkpoint = store.save(state())
        store.tag(1, "a")
        done = ckptfmt.copy(store, empty())

    shown = [store.url, repr(store), repr(store.backend), checkpoint.url, repr(checkpoint)]
    shown += [repr(checkpoint["model/w"]), repr(done), repr(checkpoint.environment)]
    stored = b"".join(file.getvalue() for file in Leaky.store.values())
    assert not shows("".join(shown))
    assert b"hunter2" not in stored
    assert not shows(caplog.text)
    assert Leaky.given["account_key"] == SECRET, "but the client got it"


def test_credentials_are_in_no_output_of_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaky().save(state())
    statuses = [
        main(["ls", ADDRESS, "--json"]),
        main(["copy", ADDRESS, str(tmp_path / "b"), "--json"]),
        main(["verify", ADDRESS]),
        main(["copy", str(tmp_path / "b"), ADDRESS + "x"]),
    ]
    monkeypatch.setattr(Leaky, "failing", True)
    statuses += [main(["ls", ADDRESS]), main(["copy", ADDRESS, str(tmp_path / "c")])]

    shown = capsys.readouterr()
    assert statuses[:3] == [0, 0, 0]
    assert statuses[4:] == [8, 8]
    assert not shows(shown.out + shown.err), shown


def test_options_reach_the_client_as_they_are() -> None:
    """TLS among them: certificates and whether to verify are the client's business."""
    tls = {"verify": "/etc/own-ca.pem", "client_kwargs": {"ssl": {"min": "1.3"}}}

    ckptfmt.open("leaky://host/run", storage_options=tls)

    assert {name: Leaky.given[name] for name in tls} == tls


@pytest.mark.parametrize("key", ["data/../../evil", "data/.hidden", "/etc/passwd", "../x"])
def test_a_copied_manifest_cannot_write_outside(tmp_path: pathlib.Path, key: str) -> None:
    """Its source is hostile: the keys in it are checked before the first is used."""
    source, target = saved(), tmp_path / "target"
    manifest = source[1].manifest
    file = manifest.tables.files[0]
    manifest.tables.files[0] = file._replace(key=key)  # type: ignore[index]
    data = manifest.encode()
    source.backend.replace(layout.manifest_key(1), data)
    before = {p for p in tmp_path.rglob("*") if "target" not in p.parts}

    with pytest.raises(CheckpointError):
        ckptfmt.copy(ckptfmt.open(source.backend), target, numbers=[1])

    assert {
        p for p in tmp_path.rglob("*") if "target" not in p.relative_to(tmp_path).parts
    } == before
    assert not list(target.rglob("data/*"))
    for backend in (LocalBackend(target), MemoryBackend()):
        with pytest.raises(UsageError):
            backend.create(key, b"")
        with pytest.raises(UsageError):
            backend.delete(key)
        with pytest.raises(UsageError):
            backend.read(key)


def test_a_copy_does_not_follow_links(tmp_path: pathlib.Path) -> None:
    """Neither reads through one at the source, nor writes through one at the target."""
    source = ckptfmt.open(tmp_path / "source")
    checkpoint = source.save(state())
    key = checkpoint.manifest.tables.files[0].key
    secret = tmp_path / "secret"
    secret.write_bytes(b"not yours" * 100)
    target = tmp_path / "target"
    (target / "data").mkdir(parents=True)
    (target / key).symlink_to(secret)
    before = secret.read_bytes()

    ckptfmt.copy(source, target)
    assert secret.read_bytes() == before
    assert not (target / key).is_symlink()
    (tmp_path / "source" / key).unlink()
    (tmp_path / "source" / key).symlink_to(secret)
    with pytest.raises(BackendError, match="symbolic link"):
        ckptfmt.copy(source, tmp_path / "other")
    assert len(ckptfmt.open(tmp_path / "other")) == 0


def test_a_hostile_target_cannot_pass_off_other_bytes() -> None:
    """A file that was planted under a name to come is compared before it is used."""
    source, target = saved(), MemoryBackend()
    file = source[1].manifest.tables.files[0]
    target.write(file.key, [bytes(file.nbytes)], nbytes=file.nbytes)

    ckptfmt.copy(source, ckptfmt.open(target))

    assert ckptfmt.open(target)[1].verify().ok


def test_a_planted_checkpoint_is_not_taken_for_the_copy() -> None:
    """Under the same number and id, with another identity."""
    source = saved()
    data = source.backend.read(layout.manifest_key(1))
    forged = Manifest.decode(data)
    forged.nodes["hyperparameters"] = "forged"  # type: ignore[index]
    target = MemoryBackend()
    target.create(layout.manifest_key(1), forged.encode())

    with pytest.raises(ConflictError, match="something else under this number"):
        ckptfmt.copy(source, ckptfmt.open(target))


def test_the_cache_is_closed_to_other_users(tmp_path: pathlib.Path) -> None:
    with contextlib.closing(ckptfmt.open(saved().backend, cache=tmp_path / "cache")) as store:
        store.latest().load()

    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
