"""Two tiers: saves commit nearby, one thread copies them to the mirror."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import BackendError, ConflictError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.testing.faulty import Crash, FaultyBackend
from ckptfmt.testing.strategies import assert_same


def state(seed: int) -> dict[str, Any]:
    return {"model": {"w": np.random.default_rng(seed).standard_normal((40, 40))}, "n": seed}


class Gate:
    """A backend whose data writes wait until it is opened."""

    def __init__(self) -> None:
        self.inner = MemoryBackend()
        self.open = threading.Event()
        self.asked = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, key: str, blocks: Any, *, nbytes: int, durable: bool = True) -> None:
        self.asked.set()
        assert self.open.wait(60)
        self.inner.write(key, blocks, nbytes=nbytes, durable=durable)


def tiers(near: Any, far: Any, **how: Any) -> ckptfmt.Store:
    return ckptfmt.open(near, threads=1, mirror=ckptfmt.open(far, threads=1), **how)


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "ckptfmt-async"]


def test_every_checkpoint_arrives_and_no_thread_stays() -> None:
    near, far = MemoryBackend(), MemoryBackend()
    with tiers(near, far) as store:
        saved = [store.save(state(seed)) for seed in (1, 2)]
        saved.append(store.save_async(state(3)).wait())
        store.tag(1, "late")

    assert workers() == []
    there = ckptfmt.open(far)
    assert [c.identity for c in there] == [c.identity for c in saved]
    assert_same([c.load() for c in there], [state(1), state(2), state(3)])
    assert there[1].tags == ("late",)


def test_a_store_is_no_mirror_of_its_own(tmp_path: pathlib.Path) -> None:
    """Else the rules would drop here what they believe to be there."""
    store = ckptfmt.open(tmp_path)
    memory = MemoryBackend()
    for place, far in (
        (tmp_path, store), (f"{tmp_path}/", str(tmp_path)), (memory, ckptfmt.open(memory)),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="same store"):
            ckptfmt.open(place, mirror=far)
    tiers(MemoryBackend(), MemoryBackend()).close()


def test_a_save_does_not_wait_for_the_mirror() -> None:
    near, far = MemoryBackend(), Gate()
    store = tiers(near, far)
    store.save(state(1))
    store.save(state(2))
    assert far.asked.wait(60)

    assert store.latest().number == 2
    assert len(ckptfmt.open(far.inner)) == 0
    far.open.set()
    store.close()
    assert len(ckptfmt.open(far.inner)) == 2


def test_nothing_is_dropped_before_its_copy_can_be_read() -> None:
    near, far = MemoryBackend(), Gate()
    store = tiers(near, far, keep=ckptfmt.keep(last=1))
    for seed in (1, 2, 3):
        store.save(state(seed))
    assert [c.number for c in ckptfmt.open(near)] == [1, 2, 3]

    far.open.set()
    store.close()

    assert [c.number for c in ckptfmt.open(near)] == [3]
    assert [c.number for c in ckptfmt.open(far.inner)] == [1, 2, 3]


def test_a_copy_that_lost_a_file_is_no_reason_to_drop() -> None:
    near, far = MemoryBackend(), MemoryBackend()
    with tiers(near, far) as store:
        store.save(state(1))
    far.delete(ckptfmt.open(far)[1].manifest.tables.files[0].key)

    with tiers(near, far, keep=ckptfmt.keep(last=1)) as store:
        store.latest().load()
        store.save(state(2))

    assert [c.number for c in ckptfmt.open(near)] == [1, 2]


def test_reading_sees_both_and_numbers_go_on() -> None:
    """A new machine has nothing nearby: the run goes on from the mirror."""
    far = MemoryBackend()
    with tiers(MemoryBackend(), far) as store:
        for seed in (1, 2):
            store.save(state(seed), metrics={"loss": float(seed)}, counters={"seen": seed})

    near = MemoryBackend()
    with tiers(near, far) as store:
        assert store.latest().number == 2
        assert store.best("loss").number == 1
        assert store.at(examples=1).number == 1
        assert [c.number for c in store] == [1, 2]
        assert (len(store), 1 in store, 3 in store) == (2, True, False)
        with pytest.raises(NotFoundError):
            store[3]
        assert_same(store.latest().load(), state(2))
        again = store.save(state(3))
        assert (again.number, again.parent[0] if again.parent else None) == (3, 2)
        assert [c.number for c in store] == [1, 2, 3]

    assert [c.number for c in ckptfmt.open(near)] == [3]
    assert [c.number for c in ckptfmt.open(far)] == [1, 2, 3]


def test_a_failure_is_raised_by_the_next_call_and_tried_again() -> None:
    near, disk = MemoryBackend(), MemoryBackend()
    far = FaultyBackend(disk, at=3, error=OSError(errno.EIO, "injected"))
    store = tiers(near, far)
    store.save(state(1))  # the marker, the lease, then the data of the copy fails
    store._saving.mirror._worker.work._finished.wait(60)  # type: ignore[union-attr]

    with pytest.raises(BackendError, match="injected"):
        store.save(state(2))
    assert [c.number for c in ckptfmt.open(near)] == [1]
    assert store.save(state(2)).number == 2
    store.close()

    assert [c.number for c in ckptfmt.open(disk)] == [1, 2]


def test_close_raises_what_nobody_has_seen() -> None:
    far = FaultyBackend(MemoryBackend(), at=1, error=OSError(errno.ENOSPC, "injected"))
    store = tiers(MemoryBackend(), far)
    store.save(state(1))

    with pytest.raises(BackendError, match="injected"):
        store.close()
    assert workers() == []


def test_another_run_in_the_mirror_is_a_conflict() -> None:
    near, far = MemoryBackend(), MemoryBackend()
    ckptfmt.open(near).save(state(1))
    ckptfmt.open(far).save(state(2))

    store = tiers(near, far)

    with pytest.raises(ConflictError, match="something else under this number"):
        store.close()
    assert_same(ckptfmt.open(far)[1].load(), state(2))


@pytest.mark.parametrize("at", range(2, 7))
def test_a_killed_upload_goes_on_at_the_next_open(at: int) -> None:
    near, far = MemoryBackend(), MemoryBackend()
    ckptfmt.open(near).save(state(1))
    dying = tiers(near, FaultyBackend(far, at=at))
    with contextlib.suppress(Crash):
        dying.close()

    tiers(near, far).close()

    assert [c.identity for c in ckptfmt.open(far)] == [c.identity for c in ckptfmt.open(near)]
    assert ckptfmt.open(far)[1].verify().ok
    ckptfmt.open(far).collect()
    assert far.list(layout.INTENTS) == {}


def test_the_mirror_keeps_by_its_own_rules() -> None:
    near, far = MemoryBackend(), MemoryBackend()
    archive = ckptfmt.open(far, keep=ckptfmt.keep(last=2))
    with ckptfmt.open(near, mirror=archive, keep=ckptfmt.keep(last=1)) as store:
        for seed in (1, 2, 3, 4):
            store.save(state(seed))

    assert [c.number for c in ckptfmt.open(near)] == [4]
    assert [c.number for c in ckptfmt.open(far)] == [3, 4]
    with ckptfmt.open(near, mirror=archive) as store:
        assert [c.number for c in store] == [3, 4]


def test_the_interpreter_waits_and_tells(tmp_path: pathlib.Path) -> None:
    """Without `close`: the upload ends first; a failed one changes the exit status."""
    program = textwrap.dedent(
        """
        import sys, numpy as np, ckptfmt
        from ckptfmt.backends import LocalBackend
        from ckptfmt.testing.faulty import FaultyBackend
        near, far, at = sys.argv[1:]
        failing = FaultyBackend(LocalBackend(far), at=int(at), error=OSError(5, "injected"))
        store = ckptfmt.open(near, mirror=ckptfmt.open(failing))
        store.save({"w": np.arange(1000.0)})
        """
    )

    def run(name: str, at: int) -> subprocess.CompletedProcess[str]:
        words = [str(tmp_path / name), str(tmp_path / f"{name}-far"), str(at)]
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert run("a", 0).returncode == 0
    assert [c.number for c in ckptfmt.open(tmp_path / "a-far")] == [1]
    failed = run("b", 2)
    assert failed.returncode == 1
    assert "checkpoints were NOT copied to the mirror" in failed.stderr
    assert [c.number for c in ckptfmt.open(tmp_path / "b")] == [1]
