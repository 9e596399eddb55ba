"""One test per sentence of the `Backend` contract; third parties run it on their own backend.

class TestMyBackend(BackendConformance):
    @pytest.fixture
    def backend(self):
        return MyBackend(...)  # empty, for each test anew
"""

from __future__ import annotations

import array
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from ckptfmt.backends import Backend, BlockReads
from ckptfmt.errors import IntegrityError, NotFoundError, UsageError
from ckptfmt.testing._changes import ChangesConformance

RANGES = [(0, 5), (0, 0), (0, 1), (2, 2), (4, 1), (5, 0)]
BEYOND = [(0, 6), (3, 3), (5, 1), (6, 0), (6, 1), (1000, 1)]


class BackendConformance(ChangesConformance):
    """Subclass it and provide a fixture `backend` that is empty for each test."""

    LISTED: ClassVar[int] = 1500  # objects in one folder: more than a page of an object store

    # --- read, read_into, map -----------------------------------------------------------

    @pytest.mark.parametrize(("offset", "nbytes"), RANGES)
    def test_read_returns_exactly_the_range(
        self, backend: Backend, offset: int, nbytes: int
    ) -> None:
        backend.create("k", b"12345")

        found = backend.read("k", offset, nbytes)

        assert found == b"12345"[offset : offset + nbytes]
        assert type(found) is bytes

    @pytest.mark.parametrize("offset", [0, 2, 5])
    def test_read_without_length_returns_the_rest(self, backend: Backend, offset: int) -> None:
        backend.create("k", b"12345")

        assert backend.read("k", offset) == b"12345"[offset:]

    @pytest.mark.parametrize(("offset", "nbytes"), [*BEYOND, (6, None)])
    def test_read_is_never_short(
        self, backend: Backend, offset: int, nbytes: int | None
    ) -> None:
        backend.create("k", b"12345")

        with pytest.raises(IntegrityError):
            backend.read("k", offset, nbytes)

    @pytest.mark.parametrize(("offset", "nbytes"), RANGES)
    def test_read_into_fills_exactly_the_target(
        self, backend: Backend, offset: int, nbytes: int
    ) -> None:
        backend.create("k", b"12345")
        memory = bytearray(b"." * (nbytes + 2))

        backend.read_into("k", offset, memoryview(memory)[1 : nbytes + 1])

        assert memory == b"." + b"12345"[offset : offset + nbytes] + b"."

    def test_read_into_takes_wide_items(self, backend: Backend) -> None:
        backend.create("k", bytes(range(8)))
        target = array.array("I", [0, 0])

        backend.read_into("k", 0, memoryview(target))

        assert target.tobytes() == bytes(range(8))

    @pytest.mark.parametrize(("offset", "nbytes"), BEYOND)
    def test_read_into_is_never_short(self, backend: Backend, offset: int, nbytes: int) -> None:
        backend.create("k", b"12345")

        with pytest.raises(IntegrityError):
            backend.read_into("k", offset, memoryview(bytearray(nbytes)))

    def test_blocks_follow_one_another(self, backend: Backend) -> None:
        backend.create("k", b"123456789")
        if not isinstance(backend, BlockReads):
            return  # not offered
        block = memoryview(bytearray(3))

        found = [bytes(part) for part in backend.read_each("k", 1, (block, block, block[:1]))]

        assert found == [b"234", b"567", b"8"]
        with pytest.raises(IntegrityError):
            list(backend.read_each("k", 5, (block, block)))
        with pytest.raises(NotFoundError):
            list(backend.read_each("absent", 0, (block,)))

    @pytest.mark.parametrize(("offset", "nbytes"), RANGES)
    def test_map_returns_exactly_the_range(
        self, backend: Backend, offset: int, nbytes: int
    ) -> None:
        backend.create("k", b"12345")

        view = backend.map("k", offset, nbytes)

        assert view.tobytes() == b"12345"[offset : offset + nbytes]
        assert view.readonly
        assert view.format == "B"

    @pytest.mark.parametrize(("offset", "nbytes"), BEYOND)
    def test_map_is_never_short(self, backend: Backend, offset: int, nbytes: int) -> None:
        backend.create("k", b"12345")

        with pytest.raises(IntegrityError):
            backend.map("k", offset, nbytes)

    def test_map_outlives_the_object(self, backend: Backend) -> None:
        backend.create("k", b"12345" * 10_000)
        view = backend.map("k", 4096, 10_000)

        backend.delete("k")

        assert view.tobytes() == (b"12345" * 10_000)[4096:14_096]

    def test_map_does_not_follow_a_replacement(self, backend: Backend) -> None:
        backend.create("k", b"old")
        view = backend.map("k", 0, 3)

        backend.replace("k", b"new")

        assert view.tobytes() == b"old"
        assert backend.map("k", 0, 3).tobytes() == b"new"

    @pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, -1), (-5, 5)])
    def test_negative_ranges_are_refused(
        self, backend: Backend, offset: int, nbytes: int
    ) -> None:
        backend.create("k", b"12345")

        with pytest.raises(UsageError):
            backend.read("k", offset, nbytes)
        with pytest.raises(UsageError):
            backend.map("k", offset, nbytes)
        if offset < 0:
            with pytest.raises(UsageError):
                backend.read_into("k", offset, memoryview(bytearray(1)))

    @pytest.mark.parametrize("key", ["missing", "a/missing", "missing/b", "a/b/c"])
    def test_a_missing_key_is_not_found(self, backend: Backend, key: str) -> None:
        backend.create("a/b", b"1")

        with pytest.raises(NotFoundError):
            backend.read(key)
        with pytest.raises(NotFoundError):
            backend.read(key, 0, 0)
        with pytest.raises(NotFoundError):
            backend.read_into(key, 0, memoryview(bytearray(1)))
        with pytest.raises(NotFoundError):
            backend.map(key, 0, 1)

    # --- list, delete -------------------------------------------------------------------

    def test_list_shows_one_folder(self, backend: Backend) -> None:
        for key in ("top", "a/1", "a/2", "a/deep/3", "ab/4"):
            backend.create(key, key.encode())

        found = backend.list("a")

        assert {key: entry.nbytes for key, entry in found.items()} == {"a/1": 3, "a/2": 3}
        assert all(entry.key == key for key, entry in found.items())
        assert set(backend.list("a/deep")) == {"a/deep/3"}
        assert set(backend.list("")) == {"top"}

    @pytest.mark.parametrize("folder", ["", "a", "missing", "a/missing"])
    def test_list_of_a_missing_folder_is_empty(self, backend: Backend, folder: str) -> None:
        backend.create("b/1", b"1")

        assert backend.list(folder) == {}

    def test_list_is_complete(self, backend: Backend) -> None:
        keys = {f"a/{n:05}" for n in range(self.LISTED)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: backend.create(key, b"1", durable=False), keys))

        assert set(backend.list("a")) == keys

    def test_list_shows_every_change_at_once(self, backend: Backend) -> None:
        assert backend.list("a") == {}
        backend.create("a/1", b"1")
        assert set(backend.list("a")) == {"a/1"}
        backend.write("a/2", [b"22"], nbytes=2)
        assert set(backend.list("a")) == {"a/1", "a/2"}
        backend.replace("a/1", b"333")
        assert backend.list("a")["a/1"].nbytes == 3
        backend.delete("a/1")
        assert set(backend.list("a")) == {"a/2"}
        backend.delete("a/2")
        assert backend.list("a") == {}

    def test_times_come_from_one_clock(self, backend: Backend) -> None:
        backend.create("a/1", b"1")
        backend.create("a/2", b"2")
        first, second = (backend.list("a")[key].modified for key in ("a/1", "a/2"))

        assert isinstance(first, float)
        assert not math.isnan(first)
        assert first <= second

    def test_delete_removes_one_object(self, backend: Backend) -> None:
        backend.create("a/1", b"1")
        backend.create("a/2", b"2")

        backend.delete("a/1")

        assert set(backend.list("a")) == {"a/2"}
        with pytest.raises(NotFoundError):
            backend.read("a/1")

    @pytest.mark.parametrize("key", ["missing", "a/missing", "missing/b", "a/b/c"])
    def test_delete_of_a_missing_key_is_fine(self, backend: Backend, key: str) -> None:
        backend.create("a/b", b"1")

        backend.delete(key)
        backend.delete(key)

        assert backend.read("a/b") == b"1"

    def test_a_deleted_key_can_be_created(self, backend: Backend) -> None:
        backend.create("a/b", b"first")
        backend.delete("a/b")

        backend.create("a/b", b"second")

        assert backend.read("a/b") == b"second"

    # --- threads and processes ----------------------------------------------------------

    def test_threads_do_not_disturb_each_other(self, backend: Backend) -> None:
        def use(n: int) -> list[bytes]:
            backend.create(f"a/{n}", b"%d" % n)
            backend.write(f"d/{n}", [b"%d" % n] * 1000, nbytes=1000 * len(str(n)))
            backend.replace(f"a/{n}", b"%d!" % n)
            return [backend.read(f"a/{n}"), backend.read(f"d/{n}")]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(use, range(40)))

        assert found == [[b"%d!" % n, b"%d" % n * 1000] for n in range(40)]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_child_can_use_it_after_a_fork(self, backend: Backend) -> None:
        backend.create("a/1", b"1")
        child = os.fork()
        if not child:
            status = 1
            try:
                backend.create("a/2", b"2")
                assert backend.read("a/1") + backend.read("a/2") == b"12"
                assert set(backend.list("a")) == {"a/1", "a/2"}
                status = 0
            finally:
                os._exit(status)

        assert os.waitpid(child, 0)[1] == 0
        assert backend.read("a/1") == b"1"
