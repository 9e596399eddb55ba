"""Whole stores on every server: any sequence of what people and crashes do, against a dict."""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

import ckptfmt
from ckptfmt.backends import Backend, open_backend
from ckptfmt.errors import BackendError, ConflictError
from ckptfmt.format import layout
from ckptfmt.testing.strategies import assert_same
from tests.properties.test_store_machine import KEEPS, StoreMachine, _small_and_quick, state
from tests.servers import work
from tests.servers.conftest import Servers, system

small_and_quick = _small_and_quick


class ServerMachine(StoreMachine):
    """The machine of the properties, on a server and without its clock."""

    servers: Servers
    name: str
    pause = None  # type: ignore[assignment]

    @initialize(keep=st.sampled_from(sorted(KEEPS)), codec=st.sampled_from(["raw", "zstd"]))
    def begin(self, keep: str, codec: str) -> None:
        super().begin(keep, codec)
        place = self.servers.place(self.name)
        self.disk: Backend = open_backend(place.url, storage_options=place.options())
        # A server of one's own is trusted after its first refusal; the model wants it now.
        self.disk.create("trust", b"")
        self.open()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def collect_with_a_person(self) -> None:
        """All jobs are known to be dead: everything is tidied up unless damage forbids it."""
        report = work.collected(self.store)
        assert bool(report.blocked) == bool(self.damaged)
        if not self.damaged:
            assert set(self.disk.list(layout.DATA)) == self.used()

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        self.open()
        self.store.collect(forget=sorted(self.damaged))
        saved = self.store.save(state(3), counters={"seen": self.top + 1})
        assert saved.number == self.top + 1
        assert work.collected(self.store).blocked == ()
        used = {file.key for found in self.store for file in found.manifest.tables.files}
        assert set(self.disk.list(layout.DATA)) == used
        assert_same(self.store.latest().load(), state(3))
        self.store.close()


@pytest.mark.parametrize(
    "server", ["moto", "gcs", "webdav", *system("azurite", "ceph", "swift", "sshd")]
)
def test_a_store_on_a_server_does_as_the_model_says(
    servers: Servers, server: str, small_and_quick: None, soak: bool
) -> None:
    machine: Any = type("Machine", (ServerMachine,), {"servers": servers, "name": server})
    settings = hypothesis.settings(
        max_examples=40 if soak else 4,
        stateful_step_count=25 if soak else 12,
        deadline=None,
        derandomize=not soak,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "server", ["moto", "gcs", "webdav", *system("azurite", "ceph", "sshd")]
)
def test_a_second_job_is_found_out(servers: Servers, server: str) -> None:
    """The promise where there is no create-if-absent, too, if they do not race."""
    import ckptfmt

    place = servers.place(server)
    first = ckptfmt.open(place.url, storage_options=place.options())
    second = ckptfmt.open(place.url, storage_options=place.options())
    first.save(state(1))
    second.save(state(2))

    with pytest.raises(ConflictError):
        first.save(state(3))

    found = ckptfmt.open(place.url, storage_options=place.options())
    assert [checkpoint.load()["step"] for checkpoint in found] == [1, 2]
    with contextlib.closing(found):
        assert_same(found.latest().load(), state(2))


@pytest.mark.parametrize("server", ["moto", *system("ceph", "swift")])
def test_a_bucket_with_a_mistyped_name_is_not_an_empty_store(
    servers: Servers, server: str
) -> None:
    place = servers.place(server)
    url = place.url.replace("test-bucket", "tset-bucket")
    assert url != place.url
    store = ckptfmt.open(url, storage_options=place.options())

    for act in (store.latest, lambda: store.save(work.state(1)), lambda: list(store)):
        with pytest.raises(BackendError, match="bucket, container or folder is not there"):
            act()


@pytest.mark.parametrize("server", system("sshd"))
def test_hidden_files_of_processes_that_died_go_after_a_day(
    servers: Servers, server: str
) -> None:
    """Killed while a manifest or a lease was stored aside."""
    place = servers.place(server)
    work.save(ckptfmt.open(place.url, storage_options=place.options()), 1)
    root = pathlib.Path(place.url.removeprefix("sftp://127.0.0.1"))
    day = 24 * 3600
    files = {
        root / folder / f".tmp-{age:016x}": age
        for folder in ("manifests", "intents")
        for age in (0, day - 600, day + 600)
    }
    files[root / "manifests" / ".tmp-notes"] = 9 * day  # somebody else's
    for path, age in files.items():
        path.write_bytes(b"half a manifest")
        os.utime(path, (time.time() - age,) * 2)

    work.save(ckptfmt.open(place.url, storage_options=place.options()), 2)

    assert {path for path in files if path.exists()} == {
        path for path in files if files[path] != day + 600
    }
