"""A server of the test run's own: started on loopback, killed, started again, stopped.

Each module of this folder that describes a server has two functions: `lacking()` says in one
sentence what this machine lacks to run it ("" when nothing), `make(folder)` returns it, ready
to be started, with all that it stores below `folder`.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ROOT: Final = pathlib.Path(__file__).parents[2]
INSTALLED: Final = ROOT / ".venv-servers"  # holds the servers that pip and npm install
READY_SECONDS: Final = 180.0  # on a busy machine
STOP_SECONDS: Final = 10.0


class ServerError(Exception):
    """A server did not do as it should; the text holds the end of its logs."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One process of a server, which stays in the foreground."""

    name: str
    line: Sequence[str | pathlib.Path]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Server:
    """What can be asked of every server."""

    name: str
    folder: pathlib.Path  # all it writes, logs included
    port: int  # where clients connect
    commands: Sequence[Command]  # started in this order, stopped in reverse
    root: str  # URL below which stores can lie, once it runs
    options: Callable[[int], dict[str, Any]]  # port → storage_options
    prepare: Callable[[], None] = lambda: None  # once, before the first start
    populate: Callable[[], None] = lambda: None  # once, after the first start: makes the root
    answers: Callable[[], bool] | None = None  # by default: something listens on the port
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _prepared: bool = False
    _populated: bool = False

    def start(self) -> Server:
        """Start what does not run, and return when requests are answered."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._prepared:
            self.prepare()
            self._prepared = True
        for command in self.commands:
            process = self._running.get(command.name)
            if process is None or process.poll() is not None:
                self.launch(command)
        self._wait_until_ready()
        if not self._populated:  # also when the first start did not get so far
            self.populate()
            self._populated = True
        return self

    def kill(self, *names: str) -> None:
        """End processes (all of them by default) as a loss of power to them would."""
        for name in reversed(names or [command.name for command in self.commands]):
            process = self._running.pop(name, None)
            if process is not None:
                _signal(process, signal.SIGKILL)
                process.wait()

    def stop(self) -> None:
        """End all processes, politely first."""
        for command in reversed(self.commands):
            process = self._running.pop(command.name, None)
            if process is None:
                continue
            _signal(process, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()

    def restart(self) -> None:
        """Kill everything and start it again on what it had stored."""
        self.kill()
        self.start()

    def logs(self) -> str:
        """Return the end of each log."""
        parts = []
        for command in self.commands:
            file = self._log(command)
            if file.exists():
                lines = file.read_text("utf-8", errors="replace").splitlines()[-40:]
                parts.append("\n".join([f"--- {self.name}: {command.name}", *lines]))
        return "\n".join(parts)

    def _log(self, command: Command) -> pathlib.Path:
        return self.folder / f"{command.name}.log"

    def launch(self, command: Command) -> None:
        """Start one process, and do not wait for it."""
        with self._log(command).open("ab") as log:
            self._running[command.name] = subprocess.Popen(
                list(command.line),
                cwd=self.folder,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its children can be ended with it
            )

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + READY_SECONDS
        answers = self.answers or (lambda: listens(self.port))
        while not answers():
            for name, process in self._running.items():
                if process.poll() is not None:
                    status = process.returncode
                    raise ServerError(f"{self.name}: {name} ended ({status})\n{self.logs()}")
            if time.monotonic() > until:
                raise ServerError(f"{self.name}: no answer in {READY_SECONDS} s\n{self.logs()}")
            time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on; below those given to clients."""
    found: list[int] = []
    start = 10_000 + os.getpid() * 37 % 15_000
    for port in range(start, 32_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                found.clear()  # neighbours only: some servers want a range
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"no {count} free ports in a row above {start}")


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]


def listens(port: int) -> bool:
    """Return whether something accepts connections on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def http_status(url: str) -> int:
    """Return the status of a GET, 0 when there was no answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def run(*line: str | pathlib.Path, timeout: float = 120, **environment: str) -> str:
    """Run a command that ends by itself; return what it printed."""
    done = subprocess.run(
        list(line),
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise ServerError(f"{line} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        process.poll()
