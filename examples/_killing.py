"""Kill the training of `digits_training.py` in the middle of a save, seen from outside.

The parent watches the store's folder like a bystander: an intent appears, then data files, then
the manifest. Nothing in the training or in ckptfmt helps it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import digits_training as training
from _page import size

from ckptfmt.format.records import SAVE, Intent

TRAINING = pathlib.Path(training.__file__)
# One thread: sums that several threads share may round differently from run to run.
THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
POLL_SECONDS = 0.0002
LIFE_SECONDS = 300  # no process lives longer
TRIES = 3  # for each moment: the save may be over before the signal arrives


@contextlib.contextmanager
def child(store: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    """Start the training in a process of its own; it is gone when the context ends."""
    with subprocess.Popen(
        [sys.executable, TRAINING, store],
        env={**os.environ, **dict.fromkeys(THREADS, "1")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_to_the_end(store: pathlib.Path) -> str:
    """Train until the run is over and return what it printed."""
    with child(store) as process:
        printed, _ = process.communicate(timeout=LIFE_SECONDS)
    if process.returncode:
        sys.exit(f"the training failed:\n{printed}")
    return printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a save, or a deletion of old checkpoints after it, has left in the store so far."""

    intent: str  # its id
    deleting: bool  # the save is over, old checkpoints are being deleted
    number: int  # the checkpoint it wants to become, or became
    data: dict[str, int]  # its data files and their lengths
    named: bool  # its manifest is being written, under a temporary name
    committed: bool  # its manifest is there

    @property
    def survivor(self) -> int:
        """The newest checkpoint there is after it; 0 for none."""
        return self.number if self.committed else self.number - 1


def look(store: pathlib.Path, known: set[str]) -> Scene | None:
    """Return what is under way, or was when its process died; `known` intents are older."""
    for name in names(store / "intents"):
        if name in known or name.startswith("."):
            continue
        try:
            intent = Intent.decode((store / "intents" / name).read_bytes())
        except FileNotFoundError:
            continue  # it is over
        manifests = names(store / "manifests")
        number = intent.number
        if intent.kind != SAVE:
            number = max(int(n[:10]) for n in manifests if not n.startswith("."))
        manifest = f"{number:010d}-000.ckpt"
        return Scene(
            intent=name,
            deleting=intent.kind != SAVE,
            number=number,
            data={n: _length(store / "data" / n) for n in names(store / "data") if name in n},
            named=any(n.startswith(f".{manifest}") for n in manifests),
            committed=manifest in manifests,
        )
    return None


def names(folder: pathlib.Path) -> list[str]:
    """Return what is in a folder, which need not exist."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _length(file: pathlib.Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


MOMENTS: list[tuple[str, Callable[[Scene], bool]]] = [
    ("the save is announced", lambda scene: True),
    ("the 1st data file appears", lambda scene: len(scene.data) >= 1),
    ("the 2nd data file appears", lambda scene: len(scene.data) >= 2),
    ("the 3rd data file appears", lambda scene: len(scene.data) >= 3),
    ("the manifest is being written", lambda scene: scene.named),
    ("the manifest has its name", lambda scene: scene.committed),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One SIGKILL."""

    moment: str
    scene: Scene | None  # what the dead process left; None: it had just ended

    @property
    def remains(self) -> str:
        """What is left, in words."""
        if self.scene is None:
            return "nothing: the save had just ended"
        if self.scene.deleting:
            return f"checkpoint {self.scene.number}, complete; a deletion half done"
        if self.scene.committed:
            return f"checkpoint {self.scene.number}, complete, and its intent"
        if not self.scene.data:
            return f"an intent to write checkpoint {self.scene.number}"
        count, nbytes = len(self.scene.data), sum(self.scene.data.values())
        return f"{count} of 3 data files ({size(nbytes)}) of checkpoint {self.scene.number}"


def kill_in_a_save(
    store: pathlib.Path, moment: str, reached: Callable[[Scene], bool], spared: int
) -> tuple[str, Kill | None]:
    """Run the training and kill it in a save; no kill if it reached the end of the run.

    Args:
        spared: So many saves may finish first.

    Returns:
        What the process printed, and how it was killed.
    """
    known = set(names(store / "intents"))
    saves: set[str] = set()
    with child(store) as process:
        while process.poll() is None:
            scene = look(store, known)
            if scene is not None and not scene.deleting:
                saves.add(scene.intent)
                if len(saves) > spared and reached(scene):
                    process.kill()
                    printed, _ = process.communicate()
                    return printed, Kill(moment=moment, scene=look(store, known))
            time.sleep(POLL_SECONDS)
        printed, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the training failed:\n{printed}")
    return printed, None


def resumed_from(printed: str) -> int:
    """Return the number a process said it resumed from; 0 for a fresh start."""
    found = re.match(r"resume: checkpoint (\d+)", printed)
    return int(found[1]) if found else 0


def lives(store: pathlib.Path) -> Iterator[tuple[Kill, str]]:
    """Kill the training again and again; yield each kill and what the next process printed."""
    before: Kill | None = None
    for n, (moment, reached) in enumerate(MOMENTS):
        for _ in range(TRIES):
            printed, kill = kill_in_a_save(store, moment, reached, spared=1 - n % 2)
            if before is not None:
                yield before, printed
            if kill is None:
                return  # the run is over; a claim says whether it was killed often enough
            before = kill
            if kill.scene is not None:
                break
    if before is not None:
        yield before, run_to_the_end(store)
