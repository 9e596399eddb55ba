"""Processes that are killed, that fork, and that end while a save is still under way.

Real processes on a real disk: a killed one leaves the newest checkpoint loadable; one that ends
normally waits for its save, and tells with its exit status when that failed.
"""

from __future__ import annotations

import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import LocalBackend
from ckptfmt.errors import CheckpointError, UsageError
from ckptfmt.format import layout
from ckptfmt.format.records import Intent
from ckptfmt.testing.strategies import assert_same

# ---- killed


def state(step: int) -> dict[str, Any]:
    """Return the state after a step: part of it never changes, part always does."""
    rng = np.random.default_rng(step)
    return {
        "model": {"frozen": np.arange(30_000.0), "head": rng.standard_normal(2_000)},
        "optimizer": {"m": rng.standard_normal(40_000)},
        "step": step,
    }


def train(folder: pathlib.Path, ready: int, seed: int) -> None:
    """Resume from what is there and save without end, in the ways there are."""
    rng = random.Random(seed)
    with ckptfmt.open(folder, keep=ckptfmt.keep(last=rng.randint(1, 3)), threads=2) as store:
        step = 0
        if len(store):
            loaded = store.latest().load()
            step = loaded["step"]
            assert_same(loaded, state(step))
        os.write(ready, b"1")
        while True:
            step += 1
            if rng.random() < 0.5:
                store.save(state(step), counters={"seen": step})
            else:
                store.save_async(state(step), counters={"seen": step})
            if rng.random() < 0.1:
                store.annotate(store.latest().number, {"notes": step})
            if rng.random() < 0.1:
                store.collect()


def in_child(act: Callable[[int], object]) -> tuple[int, int]:
    """Run `act` in a forked child; return its pid and the pipe that it may write to."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 and later tell about threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.close(reading)
        act(writing)
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def check(folder: pathlib.Path) -> int:
    """Assert that every checkpoint is whole; return the step of the newest."""
    store = ckptfmt.open(folder)
    steps = []
    for checkpoint in store:
        loaded = checkpoint.load()
        assert_same(loaded, state(loaded["step"]))
        assert checkpoint.counters["seen"] == loaded["step"]
        assert checkpoint.verify().ok
        steps.append(loaded["step"])
    assert steps == sorted(steps)
    if not steps:
        return 0
    assert store.latest().load()["step"] == steps[-1]
    return int(steps[-1])


def kill_often(folder: pathlib.Path, times: int, seed: int) -> None:
    rng = random.Random(seed)
    began = time.monotonic()
    with ckptfmt.open(folder.parent / "scratch") as store:
        for step in range(5):
            store.save(state(step))
    of_a_save = (time.monotonic() - began) / 5
    newest, progress = 0, 0
    for n in range(times):
        child, pipe = in_child(lambda ready, n=n: train(folder, ready, seed + n))
        assert os.read(pipe, 1000) == b"1"
        select.select([], [], [], 3 * rng.expovariate(1 / of_a_save))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said = os.read(pipe, 10_000)
        os.close(pipe)
        assert os.WTERMSIG(status) == signal.SIGKILL, said

        step = check(folder)
        assert step >= newest, "a kill took back what was committed"
        progress += step > newest
        newest = step
    assert progress > times // 4, "killed too early to see anything"

    with ckptfmt.open(folder) as store:
        store.save(state(newest + 1), counters={"seen": newest + 1})
        report = store.collect()
        used = {file.key for found in store for file in found.manifest.tables.files}
        assert report.blocked == ()
        assert set(store.backend.list(layout.DATA)) == used
        leases = [
            Intent.decode(store.backend.read(key)) for key in store.backend.list(layout.INTENTS)
        ]
        assert {lease.kind for lease in leases} <= {"retention"}
    check(folder)


def test_a_killed_process_loses_nothing(tmp_path: pathlib.Path, seed: int) -> None:
    kill_often(tmp_path / "store", 20, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_process_killed_very_often_loses_nothing(tmp_path: pathlib.Path, seed: int) -> None:
    kill_often(tmp_path / "store", 300, seed)


# ---- the end of a process

PRELUDE = """
    import sys, threading, time
    import numpy as np
    import ckptfmt
    from ckptfmt.backends import LocalBackend, _syscalls
    from ckptfmt.errors import BackendError

    folder = sys.argv[1]
    STATE = {"model": {"w": np.arange(400_000.0)}, "step": 7}

    def slow(name, seconds=0.3):
        call = getattr(_syscalls, name)
        def wrapped(*arguments):
            time.sleep(seconds)
            return call(*arguments)
        setattr(_syscalls, name, wrapped)

    def broken(name):
        def wrapped(*arguments):
            time.sleep(0.2)
            raise OSError(28, "No space left on device")
        setattr(_syscalls, name, wrapped)
"""


def run(folder: pathlib.Path, script: str) -> subprocess.CompletedProcess[str]:
    text = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def expected() -> dict[str, Any]:
    return {"model": {"w": np.arange(400_000.0)}, "step": 7}


ENDS = {
    "the last line": "",
    "sys.exit": "sys.exit(0)",
    "another hook": "import atexit; atexit.register(lambda: time.sleep(0.1))",
    "a running thread": "threading.Thread(target=time.sleep, args=(0.5,)).start()",
    "the store forgotten": "del store, pending",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("direct_nbytes", [2**60, 2**20], ids=["cached", "direct"])
def test_a_process_that_ends_waits_for_its_save(
    tmp_path: pathlib.Path, end: str, direct_nbytes: int
) -> None:
    done = run(
        tmp_path / "store",
        f"""
        slow("open_new")
        store = ckptfmt.open(LocalBackend(folder, direct_nbytes={direct_nbytes}))
        pending = store.save_async(STATE)
        assert not pending.done()
        {end}
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert_same(ckptfmt.open(tmp_path / "store").latest().load(), expected())


def test_an_error_elsewhere_does_not_stop_the_save(tmp_path: pathlib.Path) -> None:
    done = run(
        tmp_path / "store",
        """
        slow("open_new")
        ckptfmt.open(folder).save_async(STATE)
        1 / 0
        """,
    )

    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert_same(ckptfmt.open(tmp_path / "store").latest().load(), expected())


def test_two_stores_are_both_waited_for(tmp_path: pathlib.Path) -> None:
    done = run(
        tmp_path,
        """
        slow("open_new")
        for name in "ab":
            ckptfmt.open(folder + "/" + name).save_async(STATE)
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    for name in "ab":
        assert_same(ckptfmt.open(tmp_path / name).latest().load(), expected())


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "sys.exit(7)", "del store"])
def test_a_failed_save_that_nobody_saw_changes_the_exit_status(
    tmp_path: pathlib.Path, end: str
) -> None:
    done = run(
        tmp_path / "store",
        f"""
        store = ckptfmt.open(folder)
        store.save(STATE)
        broken("open_new")
        store.save_async(STATE)
        print("said before")
        {end}
        """,
    )

    assert done.returncode not in (0, None)
    assert "the last checkpoint was NOT saved" in done.stderr
    assert "No space left on device" in done.stderr
    assert done.stdout == "said before\n"
    assert len(ckptfmt.open(tmp_path / "store")) == 1


@pytest.mark.parametrize("way", ["wait", "next save", "next question", "close", "with"])
def test_a_failed_save_that_was_seen_does_not(tmp_path: pathlib.Path, way: str) -> None:
    see = {
        "wait": "pending.wait()",
        "next save": "store.save(STATE)",
        "next question": "pending._finished.wait(); store.latest()",
        "close": "store.close()",
        "with": "with store: pass",
    }[way]
    done = run(
        tmp_path / "store",
        f"""
        store = ckptfmt.open(folder)
        broken("open_new")
        pending = store.save_async(STATE)
        try:
            {see}
        except BackendError as error:
            print(error.errno)
        """,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "28\n", "")


def test_ctrl_c_while_a_save_waits_leaves_one_save_in_flight(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one must not copy its state over the bytes that are still being written."""

    def ctrl_c(_: ckptfmt.PendingSave) -> None:
        raise KeyboardInterrupt

    gate = threading.Event()
    store = ckptfmt.open(tmp_path)
    first = store.save_async({"w": np.full(9, 1.0)}, progress=lambda *_: gate.wait(60) and None)
    with monkeypatch.context() as patch:
        patch.setattr(ckptfmt.PendingSave, "settle", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            store.save_async({"w": np.full(9, 2.0)})
    threading.Timer(0.1, gate.set).start()
    last = store.save_async({"w": np.full(9, 3.0)})

    assert [first.wait().number, last.wait().number] == [1, 2]
    assert [one.load()["w"][0] for one in store] == [1.0, 3.0]
    store.close()


@pytest.mark.parametrize("way", ["save", "save_async"])
def test_a_save_that_raised_after_its_commit_is_no_second_writer(
    tmp_path: pathlib.Path, way: str
) -> None:
    """Ctrl-C within the commit, caught by a run (or a notebook) that saves once more."""

    class Interrupted(LocalBackend):
        armed = False

        def create(self, key: str, data: bytes, *, durable: bool = True) -> None:
            super().create(key, data, durable=durable)
            if self.armed and key.startswith(layout.MANIFESTS):
                self.armed = False
                raise KeyboardInterrupt

    backend = Interrupted(tmp_path)
    with ckptfmt.open(backend) as store:
        for step in range(3):
            backend.armed = step == 1
            try:
                saved = getattr(store, way)({"step": step}, metrics={"loss": -step})
                if way == "save_async":
                    saved.wait()
            except KeyboardInterrupt:
                assert step == 1

    assert [one.load()["step"] for one in store] == [0, 1, 2]
    assert store.latest().parent == (2, store[2].id)
    assert store.leftovers() == []


# ---- forks


def test_a_child_has_no_part_in_the_save_of_its_parent(tmp_path: pathlib.Path) -> None:
    """It can read, and save to other places; the parent's save goes on undisturbed."""
    done = run(
        tmp_path,
        """
        import os, traceback
        from ckptfmt.errors import UsageError
        store = ckptfmt.open(folder + "/a")
        store.save({"model": {"w": np.arange(10.0)}})
        slow("open_new")
        pending = store.save_async(STATE)
        child = os.fork()
        if child == 0:
            try:
                assert store.latest().number == 1
                assert store.latest().load()["model"]["w"].tolist() == list(range(10))
                try:
                    pending.wait()
                except UsageError:
                    pass
                else:
                    raise AssertionError("waited for a save that is not here")
                assert threading.active_count() == 1
                store.close()
                other = ckptfmt.open(folder + "/b")
                other.save_async({"step": 1}).wait()
                other.save_async({"step": 2})
                sys.exit(0)  # waits for its own save, not for the parent's
            except BaseException as error:
                if not isinstance(error, SystemExit):
                    traceback.print_exc()
                    os._exit(1)
                raise
        assert os.waitpid(child, 0)[1] == 0
        assert pending.wait().number == 2
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert_same(ckptfmt.open(tmp_path / "a").latest().load(), expected())
    assert ckptfmt.open(tmp_path / "b").latest().load() == {"step": 2}


def test_a_child_that_saves_to_the_same_store_is_found_out(tmp_path: pathlib.Path) -> None:
    """Two processes with one store object are two jobs in one folder."""
    store = ckptfmt.open(tmp_path)
    store.save(state(1))

    def save(pipe: int) -> None:
        os.write(pipe, str(store.save(state(2)).number).encode())

    child, pipe = in_child(save)
    os.waitpid(child, 0)
    assert os.read(pipe, 1000) == b"2"
    os.close(pipe)

    with pytest.raises(CheckpointError, match="two jobs share one folder"):
        store.save(state(3))
    assert [c.number for c in ckptfmt.open(tmp_path)] == [1, 2]
    assert_same(ckptfmt.open(tmp_path).latest().load(), state(2))


def test_a_fork_while_another_thread_saves_locks_nothing(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path)
    store.save(state(1))
    pending = store.save_async(state(2))

    def look(pipe: int) -> None:
        with store:  # takes the lock that the parent may hold
            assert_same(store[1].load(), state(1))
        os.write(pipe, b"1")

    for _ in range(10):
        child, pipe = in_child(look)
        assert select.select([pipe], [], [], 30)[0], "the child hangs"
        assert os.read(pipe, 1000) == b"1"
        os.close(pipe)
        os.waitpid(child, 0)

    assert pending.wait().number == 2
    assert_same(ckptfmt.open(tmp_path).latest().load(), state(2))


def test_a_pending_save_does_not_survive_in_the_child(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path)
    pending = store.save_async(state(1))

    def ask(pipe: int) -> None:
        for act in (pending.wait, pending.cancel):
            with pytest.raises(UsageError, match="parent"):
                act()
        os.write(pipe, b"1")

    child, pipe = in_child(ask)
    assert os.read(pipe, 1000) == b"1"
    os.close(pipe)
    os.waitpid(child, 0)
    assert pending.wait().number == 1
