"""The half of `BackendConformance` about keys and about what changes objects."""

from __future__ import annotations

import array
import dataclasses
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptfmt.backends import Backend, Buffer
from ckptfmt.errors import (
    BackendError,
    CheckpointError,
    ConflictError,
    NotFoundError,
    UsageError,
)

BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/..",
    "../a",
    "a/.b",
    ".a",
    "a b",
    "a\\b",
    "a\n",
    "ä",
    "a\0",
    "a:b",
]
BUFFERS: list[Buffer] = [
    b"12345678",
    bytearray(b"12345678"),
    memoryview(b"12345678"),
    memoryview(b"x12345678x")[1:9],
    memoryview(array.array("I", [0x34333231, 0x38373635])),  # items of four bytes
]
IDS = ["bytes", "bytearray", "memoryview", "part", "wide"]


class Stop(Exception):
    """Raised by an iterator of blocks in these tests."""


class ChangesConformance:
    """Keys, create, replace, write."""

    # --- keys ---------------------------------------------------------------------------

    @pytest.mark.parametrize("key", BAD_KEYS)
    @pytest.mark.parametrize("method", ["create", "replace", "write", "read", "into", "map"])
    def test_a_key_outside_the_grammar_is_refused(
        self, backend: Backend, method: str, key: str
    ) -> None:
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: backend.create(key, b""),
            "replace": lambda: backend.replace(key, b""),
            "write": lambda: backend.write(key, [], nbytes=0),
            "read": lambda: backend.read(key),
            "into": lambda: backend.read_into(key, 0, memoryview(bytearray(0))),
            "map": lambda: backend.map(key, 0, 0),
        }

        with pytest.raises(UsageError):
            calls[method]()

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_delete_and_list_refuse_the_same_keys(self, backend: Backend, key: str) -> None:
        with pytest.raises(UsageError):
            backend.delete(key)
        if key:
            with pytest.raises(UsageError):
                backend.list(key)

    @pytest.mark.parametrize("key", ["a", "a/b", "a/b/c", "A-1_z.x", "-", "a/0...", "a" * 200])
    def test_a_key_of_the_grammar_is_stored(self, backend: Backend, key: str) -> None:
        backend.create(key, b"1")

        assert backend.read(key) == b"1"

    def test_keys_differ_by_case(self, backend: Backend) -> None:
        backend.create("f/key", b"lower")
        backend.create("f/KEY", b"upper")

        assert (backend.read("f/key"), backend.read("f/KEY")) == (b"lower", b"upper")

    def test_url_is_text(self, backend: Backend) -> None:
        assert isinstance(backend.url, str)
        assert backend.url

    def test_capabilities_are_never_taken_back(self, backend: Backend) -> None:
        before = dataclasses.asdict(backend.capabilities)
        backend.create("a/b", b"1")
        learned = backend.capabilities
        backend.create("a/c", b"1")

        assert {name for name, is_so in before.items() if is_so} <= {
            name for name, is_so in dataclasses.asdict(learned).items() if is_so
        }
        assert backend.capabilities == learned

    # --- create -------------------------------------------------------------------------

    @pytest.mark.parametrize("durable", [True, False])
    @pytest.mark.parametrize("data", BUFFERS, ids=IDS)
    def test_create_stores_any_buffer(
        self, backend: Backend, data: Buffer, durable: bool
    ) -> None:
        backend.create("a/b", data, durable=durable)

        assert backend.read("a/b") == b"12345678"

    def test_create_stores_nothing_at_all(self, backend: Backend) -> None:
        backend.create("a/b", b"")

        assert backend.read("a/b") == b""
        assert backend.list("a")["a/b"].nbytes == 0

    @pytest.mark.parametrize("durable", [True, False])
    def test_create_refuses_to_overwrite(self, backend: Backend, durable: bool) -> None:
        backend.create("a/b", b"first", durable=durable)

        with pytest.raises(ConflictError):
            backend.create("a/b", b"second", durable=durable)

        assert backend.read("a/b") == b"first"
        assert list(backend.list("a")) == ["a/b"]

    def test_create_keeps_no_reference_to_the_data(self, backend: Backend) -> None:
        data = bytearray(b"12345")
        backend.create("a/b", data)
        data[:] = b"xxxxx"
        data.clear()  # BufferError while somebody holds a view of it

        assert backend.read("a/b") == b"12345"

    def test_create_has_one_winner(self, backend: Backend) -> None:
        backend.create("a/first", b"1")
        if not backend.capabilities.create_if_absent:
            pytest.skip(f"{type(backend).__name__} does not promise create-if-absent")
        for n in range(20):
            won = race(
                [
                    functools.partial(backend.create, f"a/{n}", b"%d" % i * 1000)
                    for i in range(4)
                ]
            )

            assert won.count(None) == 1
            assert {type(error) for error in won if error} == {ConflictError}, won
            assert backend.read(f"a/{n}") == b"%d" % won.index(None) * 1000

    def test_create_is_never_seen_in_part(self, backend: Backend) -> None:
        data = b"x" * 1_000_000
        seen: set[int] = set()

        def look() -> None:
            for entry in backend.list("a").values():
                seen.add(entry.nbytes)
                seen.add(len(backend.read(entry.key)))

        def work() -> None:
            for n in range(10):
                backend.create(f"a/{n}", data)

        while_running(work, look)

        assert seen <= {len(data)}

    # --- replace ------------------------------------------------------------------------

    @pytest.mark.parametrize("durable", [True, False])
    @pytest.mark.parametrize("data", BUFFERS, ids=IDS)
    def test_replace_stores_any_buffer(
        self, backend: Backend, data: Buffer, durable: bool
    ) -> None:
        backend.create("a/b", b"a longer object that was here before")

        backend.replace("a/b", data, durable=durable)

        assert backend.read("a/b") == b"12345678"
        assert list(backend.list("a")) == ["a/b"]

    def test_replace_stores_where_nothing_was(self, backend: Backend) -> None:
        backend.replace("a/b", b"new")

        assert backend.read("a/b") == b"new"

    def test_replace_is_old_or_new_for_every_reader(self, backend: Backend) -> None:
        old, new = b"o" * 1_000_000, b"n" * 500_000
        backend.create("a/b", old)
        seen: set[bytes] = set()

        def swap() -> None:
            for _ in range(5):
                backend.replace("a/b", new)
                backend.replace("a/b", old)

        while_running(swap, lambda: seen.add(backend.read("a/b")))

        assert seen <= {old, new}

    # --- write --------------------------------------------------------------------------

    @pytest.mark.parametrize("durable", [True, False])
    @pytest.mark.parametrize("block", BUFFERS, ids=IDS)
    def test_write_joins_blocks_of_any_buffer(
        self, backend: Backend, block: Buffer, durable: bool
    ) -> None:
        blocks = [block, b"", b"-", block]

        backend.write("a/b", iter(blocks), nbytes=17, durable=durable)

        assert backend.read("a/b") == b"12345678-12345678"
        assert backend.list("a")["a/b"].nbytes == 17

    @pytest.mark.parametrize("blocks", [[], [b""], [b"", b""]])
    def test_write_stores_nothing_at_all(self, backend: Backend, blocks: list[bytes]) -> None:
        backend.write("a/b", blocks, nbytes=0)

        assert backend.read("a/b") == b""

    def test_write_takes_many_blocks(self, backend: Backend) -> None:
        blocks = [n.to_bytes(4, "little") * (n % 3) for n in range(5000)]

        backend.write("a/b", blocks, nbytes=sum(map(len, blocks)))

        assert backend.read("a/b") == b"".join(blocks)

    def test_write_takes_large_blocks(self, backend: Backend) -> None:
        blocks = [os.urandom(n) for n in (1, 17_000_000, 4095, 9_000_001)]

        backend.write("a/b", blocks, nbytes=sum(map(len, blocks)))

        assert backend.read("a/b") == b"".join(blocks)

    @pytest.mark.parametrize("durable", [True, False])
    @pytest.mark.parametrize("nbytes", [0, 9, 11])
    def test_write_refuses_another_length(
        self, backend: Backend, nbytes: int, durable: bool
    ) -> None:
        with pytest.raises(BackendError):
            backend.write("a/b", [b"12345", b"67890"], nbytes=nbytes, durable=durable)

        assert backend.list("a") == {}
        with pytest.raises(NotFoundError):
            backend.read("a/b")

    @pytest.mark.parametrize(
        "error",
        [Stop(), OSError(2, "x"), FileExistsError("x"), KeyboardInterrupt()],
        ids=repr,
    )
    @pytest.mark.parametrize("size", [5, 9_000_000])
    def test_write_passes_on_what_blocks_raise_and_leaves_nothing(
        self, backend: Backend, error: BaseException, size: int
    ) -> None:
        def blocks() -> Iterator[bytes]:
            yield b"x" * size
            raise error

        with pytest.raises(type(error)) as caught:
            backend.write("a/b", blocks(), nbytes=2 * size)

        assert caught.value is error
        assert backend.list("a") == {}

    def test_write_refuses_to_overwrite(self, backend: Backend) -> None:
        backend.write("a/b", [b"first"], nbytes=5)

        with pytest.raises(ConflictError):
            backend.write("a/b", [b"other"], nbytes=5)

        assert backend.read("a/b") == b"first"

    def test_write_takes_blocks_in_the_calling_thread(self, backend: Backend) -> None:
        threads = []

        def blocks() -> Iterator[bytes]:
            for _ in range(3):
                threads.append(threading.get_ident())
                yield b"x"

        backend.write("a/b", blocks(), nbytes=3)

        assert set(threads) == {threading.get_ident()}


def race(calls: list[Callable[[], object]]) -> list[CheckpointError | None]:
    """Start all calls at the same moment; return what each raised."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> CheckpointError | None:
        barrier.wait()
        try:
            call()
        except CheckpointError as error:
            return error
        return None

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def while_running(work: Callable[[], object], look: Callable[[], object]) -> None:
    """Call `look` again and again, at least once, until `work` is done in another thread."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        for _ in itertools.count():
            look()
            if future.done():
                break
        future.result()
