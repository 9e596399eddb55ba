"""Training scripts in processes of their own: started, followed line by line, waited for."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import IO, Any


def start(script: pathlib.Path, folder: pathlib.Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, script, folder, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(run: subprocess.Popen[str], seconds: float) -> tuple[int, str]:
    """Wait for the end; return status and what it said on stderr."""
    _, errors = run.communicate(timeout=seconds)
    return run.returncode, errors


def whole(folder: pathlib.Path) -> dict[str, Any]:
    """Return what a run that reached its end has left."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def lines(run: subprocess.Popen[str], count: int) -> int:
    """Wait for so many steps, or the end; return how many there were."""
    stream: IO[str] = run.stdout  # type: ignore[assignment]
    return sum(1 for _, line in zip(range(count), stream, strict=False) if line)
