"""Asynchronous workers as real processes: a straggler, one killed and restarted, a lost chief.

Workers push examples by number. The chief writes down which numbers arrived: what was counted
is what arrived, each once, whatever was sent again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.training import Progress

TOTAL: Final = 6000
EPOCHS: Final = 12
PUSH: Final = 50  # examples


def work(chief: Connection, done: int, pause_seconds: float, repeats: int) -> None:
    """Push for ever: first the count that was acknowledged, then on from there."""
    while True:
        done += PUSH
        for _ in range(repeats):  # a lost reply: the same message once more
            chief.send((done, list(range(done - PUSH, done))))
        if chief.recv() == "stop":
            return
        time.sleep(pause_seconds)


class Chief:
    """Applies what workers push, and commits a checkpoint when one falls due."""

    def __init__(self, store: ckptfmt.Store, progress: Progress) -> None:
        self.store = store
        self.progress = progress
        self.arrived: dict[str, set[int]] = {}
        self.saved: list[tuple[int, int]] = []  # (k, seen)

    def take(self, worker: str, done: int, numbers: list[int]) -> bool:
        """Count one push; return whether to stop."""
        before = self.progress.acknowledged(worker)
        due = self.progress.acknowledge(worker, done)
        if self.progress.acknowledged(worker) > before:
            own = self.arrived.setdefault(worker, set())
            assert own.isdisjoint(numbers), "an example was counted twice"
            own.update(numbers)
        if due.checkpoint:
            self.store.save({"model": {}}, counters=self.progress.state())
            self.saved.append((due.virtual_epoch, due.seen))
        return due.stop


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be killed")
def test_no_example_is_counted_twice_by_stragglers_and_restarts() -> None:
    spawn = multiprocessing.get_context("spawn")
    store = ckptfmt.open(MemoryBackend())
    chief = Chief(store, Progress(total=TOTAL, virtual_epochs=EPOCHS, consistency="async"))
    settings = {"quick": (0.0, 1), "repeating": (0.0, 3), "straggler": (0.05, 1)}
    pipes: dict[str, Any] = {}
    processes: dict[str, Any] = {}

    def begin(name: str) -> None:
        ours, theirs = spawn.Pipe()
        arguments = (theirs, chief.progress.acknowledged(name), *settings[name])
        processes[name] = spawn.Process(target=work, args=arguments, daemon=True)
        processes[name].start()
        theirs.close()
        pipes[name] = ours
        assert ours.poll(60), "the worker does not start"  # all run at the same time

    killed = 0
    try:
        for name in settings:
            begin(name)
        stop = False
        while not stop:
            for pipe in wait(list(pipes.values()), timeout=60):
                name = next(n for n, p in pipes.items() if p is pipe)
                stop = chief.take(name, *pipe.recv()) or stop  # type: ignore[attr-defined]
                if name == "quick" and killed < 3 and chief.progress.seen > 1000 * (killed + 1):
                    os.kill(processes[name].pid, signal.SIGKILL)  # it never got the reply
                    processes[name].join()
                    pipes[name].close()
                    killed += 1
                    begin(name)
                else:
                    pipe.send("go on")  # type: ignore[attr-defined]
    finally:
        for process in processes.values():
            process.kill()
            process.join()

    progress = chief.progress
    assert killed == 3
    assert progress.seen == sum(map(len, chief.arrived.values())) >= TOTAL
    for name, numbers in chief.arrived.items():
        assert numbers == set(range(progress.acknowledged(name))), name
    assert progress.acknowledged("straggler") < progress.acknowledged("quick")
    assert [k for k, _ in chief.saved] == list(range(1, EPOCHS + 1))
    assert all(c.counters["consistency"] == "async" for c in store)


def test_a_restarted_chief_hands_out_what_its_checkpoint_acknowledged() -> None:
    store = ckptfmt.open(MemoryBackend())
    chief = Chief(store, Progress(total=TOTAL, virtual_epochs=EPOCHS, consistency="async"))
    for done in range(PUSH, 601, PUSH):
        chief.take("a", done, list(range(done - PUSH, done)))
        chief.take("b", done, list(range(done - PUSH, done)))

    again = Chief(store, Progress.restore(store.latest().counters))

    assert again.progress.seen == chief.saved[-1][1] < chief.progress.seen
    assert again.progress.acknowledged("a") + again.progress.acknowledged("b") == 1000
    assert not again.take("a", again.progress.acknowledged("a"), [])  # nothing new
    assert again.progress.seen == 1000
