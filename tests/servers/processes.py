"""Processes that can be killed, made from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Final, cast

CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.servers.work", "s3fs"])


class Victim:
    """A process that somebody may kill."""

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
        self._process = CONTEXT.Process(target=work, args=arguments, daemon=True)
        self._started = threading.Event()

    def start(self) -> None:
        """Start it."""
        self._process.start()
        self._started.set()

    def kill(self) -> None:
        """End it as the kernel does when memory runs out."""
        self._started.wait()
        if self._process.is_alive():
            os.kill(cast(int, self._process.pid), signal.SIGKILL)

    def alive(self) -> bool:
        """Return whether it runs."""
        return self._process.is_alive()

    def join(self, seconds: float) -> int:
        """Return the exit status; a process that does not end is a failure."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self._process.name} did not end in {seconds} s")
        return self._process.exitcode

    def run(self, seconds: float) -> int:
        """Start it and return its exit status."""
        self.start()
        return self.join(seconds)
