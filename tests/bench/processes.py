"""Starts a process for each job, hands it the job, watches it, and takes its result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Final

from tests.bench.job import FAILED, OUT_OF_MEMORY, TOO_SLOW, Job, Result
from tests.bench.measuring import resident

ROOT: Final = pathlib.Path(__file__).parents[2]
TIMEOUT_SECONDS: Final = 900
WATCH_SECONDS: Final = 0.001


class JobError(Exception):
    """A job failed; says how, and of which kind that is (`job.py`)."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Processes:
    """Does jobs in processes of their own; a context manager that leaves none behind.

    Args:
        fork: Fork them from processes that have loaded the contenders' libraries, one each: a
            start then costs milliseconds instead of seconds. For trying out: memory that is
            shared with a parent is not quite like one's own.
        pythons: The Python of each contender that has an environment of its own.
    """

    def __init__(self, *, fork: bool, pythons: Mapping[str, str] | None = None) -> None:
        self._fork = fork
        self._pythons = dict(pythons or {})
        self._kept: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._kept.values():
            _end(process)

    def work(self, job: Job, *, seconds: float = TIMEOUT_SECONDS) -> Result:
        """Do one job, in at most so many seconds.

        Raises:
            JobError: it failed, was killed, or took too long.
        """
        process = self._kept.pop(job.contender, None) or self._start(job.contender)
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            result = _answer(process, job)
        except BaseException:
            _kill(process)
            raise
        finally:
            timer.cancel()
            if self._fork and process.poll() is None:
                self._kept[job.contender] = process
            else:
                _end(process)
        if "error" in result:
            kind = TOO_SLOW if late.is_set() else result.get("kind", FAILED)
            raise JobError(result["error"], kind)
        return result

    def _start(self, contender: str) -> subprocess.Popen[str]:
        python = self._pythons.get(contender, sys.executable)
        command = [python, "-m", "tests.bench.worker"]
        return subprocess.Popen(
            [*command, "--fork"] if self._fork else command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and those forked from it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _answer(process: subprocess.Popen[str], job: Job) -> Result:
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
    process.stdin.flush()
    pid = _line(process).get("pid")
    if not job.watch:
        return _line(process)
    seen: list[tuple[float, int]] = []
    with _watched(str(pid), seen):
        result = _line(process)
    if "error" not in result:
        during = [size for at, size in seen if result["begin"] <= at <= result["end"]]
        peak = max(during, default=0) - result["before"]
        result = result | {"value": max(result["value"], peak), "watched": len(during)}
    return result


def _line(process: subprocess.Popen[str]) -> Result:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        status = process.wait()
        # The kernel ends a process that needs more memory than there is with this signal.
        kind = OUT_OF_MEMORY if status == -signal.SIGKILL else FAILED
        return {"error": f"the process ended without a result (status {status})", "kind": kind}
    result: Result = json.loads(line)
    return result


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


@contextlib.contextmanager
def _watched(pid: str, seen: list[tuple[float, int]]) -> Iterator[None]:
    """Note a process's own memory every millisecond."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            try:
                size = resident(pid)["private"]
            except (OSError, KeyError):  # it ended
                return
            seen.append((time.monotonic(), size))

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
