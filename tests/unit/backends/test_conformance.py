"""The contract of `Backend`, sentence by sentence, for every backend of ours."""

from __future__ import annotations

import itertools
import pathlib

import pytest

from ckptfmt.backends import LocalBackend, MemoryBackend
from ckptfmt.backends.cached import CachedBackend
from ckptfmt.backends.fsspec import FsspecBackend
from ckptfmt.backends.rehearsal import Rehearsal
from ckptfmt.testing.conformance import BackendConformance
from ckptfmt.testing.faulty import FaultyBackend

NUMBERS = itertools.count()


class TestMemory(BackendConformance):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()


class TestLocal(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: pathlib.Path) -> LocalBackend:
        return LocalBackend(tmp_path / "not" / "there" / "yet")


class TestLocalPastThePageCache(BackendConformance):
    """The second way of writing, for files of every length."""

    @pytest.fixture
    def backend(self, tmp_path: pathlib.Path) -> LocalBackend:
        return LocalBackend(tmp_path, direct_nbytes=1)


class TestFsspecMemory(BackendConformance):
    @pytest.fixture
    def backend(self) -> FsspecBackend:
        return FsspecBackend(f"memory://conformance-{next(NUMBERS)}/run")


class TestFsspecLocal(BackendConformance):
    """A file system whose `create` looks first, and that needs its folders made.

    It writes in place, as fsspec's `file` does: a plain path is `LocalBackend` instead.
    """

    test_create_is_never_seen_in_part = None
    test_replace_is_old_or_new_for_every_reader = None

    @pytest.fixture
    def backend(self, tmp_path: pathlib.Path) -> FsspecBackend:
        return FsspecBackend(f"file://{tmp_path}/run")


class TestFaultyThatNeverFails(BackendConformance):
    @pytest.fixture
    def backend(self) -> FaultyBackend:
        return FaultyBackend(MemoryBackend())


class TestRehearsal(BackendConformance):
    @pytest.fixture
    def backend(self) -> Rehearsal:
        return Rehearsal(MemoryBackend(), now=1.0)


class TestCached(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: pathlib.Path) -> CachedBackend:
        return CachedBackend(MemoryBackend(), tmp_path / "cache")
