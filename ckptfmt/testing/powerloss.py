"""What a disk may hold after a loss of power: record a run, then build every legal outcome.

`record` notes the calls by which the real `LocalBackend` changes files; `crash_states` cuts the
power after each of them and decides which of the changes not yet synced have reached the disk.

    with record(folder) as log:
        store = ckptfmt.open(folder)
        store.save(state)
        log.mark("saved")
    for crash in crash_states(log, model="weak", rng=random.Random(1)):
        ...  # crash.marks: what was promised; ckptfmt.open(crash.backend()): what is found

Two models. `weak`: what POSIX promises, and no more: names of a folder that was not synced may
have reached the disk in any combination. `ordered`: names reach the disk in the order of the
calls, as with the journals of ext4 and xfs. In both, bytes and lengths that were not synced are
there, or not, or in part, or as zeros. (The method is that of ALICE, Pillai et al., OSDI 2014.)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pathlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias
from unittest import mock

from ckptfmt.backends import MemoryBackend, _syscalls

Model: TypeAlias = Literal["weak", "ordered"]

EXHAUSTIVE_NAMES: Final = 6  # up to so many unsynced names every combination is tried
RANDOM_COMBINATIONS: Final = 24  # beyond that so many random ones, and the simple ones
NAME_CHANGES: Final = frozenset({"folder", "name", "rename", "remove"})
Outcome: TypeAlias = Literal["all", "none", "torn", "zeros", "no last", "no first", "mixed"]
OUTCOMES: Final[tuple[Outcome, ...]] = (
    "all", "none", "torn", "zeros", "no last", "no first", "mixed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Op:
    """One recorded change. Paths are relative to the recorded folder; "" is the folder."""

    kind: Literal["folder", "name", "rename", "remove", "bytes", "sync", "sync folder", "mark"]
    path: str = ""  # folder, name, remove, sync folder; the new name of a rename
    source: str = ""  # rename: the old name
    file: int = -1  # number of the file (its inode, so to say)
    offset: int = 0  # bytes
    data: bytes = b""  # bytes
    note: object = None  # mark


@dataclass(frozen=True, slots=True)
class CrashState:
    """One state in which a disk may come back."""

    files: dict[str, bytes]  # by path; also those whose names begin with a dot
    folders: frozenset[str]
    marks: tuple[object, ...]  # notes of `PowerLog.mark` made before the power went
    ops: int  # how many operations came before that

    def backend(self) -> MemoryBackend:
        """Return the state as a backend; unfinished files do not show, as in the local one."""
        backend = MemoryBackend()
        for path, data in self.files.items():
            if not any(part.startswith(".") for part in path.split("/")):
                backend.create(path, data)
        return backend

    def materialise(self, folder: pathlib.Path) -> None:
        """Write the state into a folder that is empty or missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folders - {""}):
            (folder / path).mkdir()
        for path, data in self.files.items():
            (folder / path).write_bytes(data)


@dataclass(slots=True)
class PowerLog:
    """The operations of a run in their order."""

    ops: list[Op] = field(default_factory=list)
    start: int = 0  # so many of them tell what was there before; they are synced

    def mark(self, note: object) -> None:
        """Note that the caller was told something, such as "saved": a promise from now on."""
        self.ops.append(Op("mark", note=note))

    def without(self, index: int) -> PowerLog:
        """Return the log of a run that lacked one operation: was that sync needed?"""
        return PowerLog(self.ops[:index] + self.ops[index + 1 :], self.start)


@contextlib.contextmanager
def record(folder: str | os.PathLike[str]) -> Iterator[PowerLog]:
    """Record what local backends change below `folder`, in all threads.

    What is there before counts as synced. The folder itself must exist, and is taken to
    survive. One recording at a time.
    """
    log = PowerLog()
    recorder = _Recorder(os.path.realpath(folder), log)
    recorder.add_present()
    with contextlib.ExitStack() as stack:
        for name, wrap in recorder.wrappers().items():
            wrapped = wrap(getattr(_syscalls, name))
            stack.enter_context(mock.patch.object(_syscalls, name, wrapped))
        yield log


def crash_states(
    log: PowerLog, *, model: Model, rng: random.Random, points: Iterable[int] | None = None
) -> Iterator[CrashState]:
    """Yield the states of the disk after a loss of power, each state once.

    All combinations of names where few are unsynced, otherwise a sample drawn from `rng` that
    contains all, none, each alone and each left out.

    Args:
        points: Numbers of operations before the cut; by default every one of the run.
    """
    seen: set[tuple[object, ...]] = set()
    for count in range(log.start, len(log.ops) + 1) if points is None else points:
        ops = log.ops[:count]
        marks = tuple(op.note for op in ops if op.kind == "mark")
        for kept in _kept(ops, model, rng):
            names, folders = _names(ops, kept)
            for contents in _contents(ops, sorted(set(names.values())), rng):
                files = {path: contents[file] for path, file in names.items()}
                state = len(marks), folders, frozenset(files.items())
                if state not in seen:
                    seen.add(state)
                    yield CrashState(files, folders, marks, count)


def _kept(ops: Sequence[Op], model: Model, rng: random.Random) -> Iterator[set[int]]:
    """Yield which changes of names have reached the disk, as positions in `ops`."""
    synced = {op.path: at for at, op in enumerate(ops) if op.kind == "sync folder"}
    changes = [at for at, op in enumerate(ops) if op.kind in NAME_CHANGES]
    must = {at for at in changes if at < synced.get(os.path.dirname(ops[at].path), -1)}
    free = [at for at in changes if at not in must]
    if model == "ordered":
        last = max(must, default=-1)
        for cut in [last, *(at for at in free if at > last)]:
            yield {at for at in changes if at <= cut}
        return
    if len(free) <= EXHAUSTIVE_NAMES:
        for size in range(len(free) + 1):
            for some in itertools.combinations(free, size):
                yield must | set(some)
        return
    yield must
    yield must | set(free)
    for at in free:
        yield must | {at}
        yield must | set(free) - {at}
    for _ in range(RANDOM_COMBINATIONS):
        share = rng.random()
        yield must | {at for at in free if rng.random() < share}


def _names(ops: Sequence[Op], kept: set[int]) -> tuple[dict[str, int], frozenset[str]]:
    """Return the files by path, and the folders, that the kept changes lead to."""
    names: dict[str, int] = {}
    folders = {""}
    for at in sorted(kept):
        op = ops[at]
        if op.kind == "folder":
            folders.add(op.path)
        elif op.kind == "remove":
            names.pop(op.path, None)
        else:
            names.pop(op.source, None)
            names[op.path] = op.file
    # What is in a folder goes with the folder's own name.
    reachable = frozenset(path for path in folders if _parents(path) <= folders)
    return {path: f for path, f in names.items() if _parents(path) <= reachable}, reachable


def _parents(path: str) -> set[str]:
    """Return the folders above a path, the recorded one included."""
    parts = path.split("/")
    return {"/".join(parts[:depth]) for depth in range(len(parts))}


def _contents(
    ops: Sequence[Op], files: Sequence[int], rng: random.Random
) -> Iterator[dict[int, bytes]]:
    """Yield the bytes of each file: what was synced, and one outcome of what was not."""
    synced = {op.file: at for at, op in enumerate(ops) if op.kind == "sync"}
    certain: dict[int, list[Op]] = {file: [] for file in files}
    open_: dict[int, list[Op]] = {file: [] for file in files}
    for at, op in enumerate(ops):
        if op.kind == "bytes" and op.file in certain:
            (certain if at < synced.get(op.file, -1) else open_)[op.file].append(op)
    kinds = OUTCOMES if any(open_.values()) else OUTCOMES[:1]
    for kind in kinds:
        contents = {}
        for file in files:
            chosen = rng.choice(OUTCOMES[:-1]) if kind == "mixed" else kind
            contents[file] = _joined(certain[file] + _outcome(open_[file], chosen))
        yield contents


def _outcome(writes: list[Op], kind: Outcome) -> list[Op]:
    """Return what has reached the disk of writes that were not synced."""
    match kind:
        case "none":
            return []
        case "torn":
            return [replace(op, data=op.data[: len(op.data) // 2]) for op in writes]
        case "zeros":
            return [replace(op, data=bytes(len(op.data))) for op in writes]
        case "no last":
            return writes[:-1]
        case "no first":
            return writes[1:]
        case _:
            return writes


def _joined(writes: list[Op]) -> bytes:
    data = bytearray()
    for op in writes:
        if len(data) < op.offset:
            data.extend(bytes(op.offset - len(data)))
        data[op.offset : op.offset + len(op.data)] = op.data
    return bytes(data)


class _Recorder:
    """Wraps the functions of `_syscalls`; notes a change once it has succeeded."""

    def __init__(self, root: str, log: PowerLog) -> None:
        self._root = root
        self._log = log
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._names: dict[str, int] = {}  # path below the root → number of the file
        self._open: dict[int, tuple[int, int]] = {}  # descriptor → number, position

    def add_present(self) -> None:
        """Note what the folder holds already, all of it synced."""
        for folder, _, names in os.walk(self._root):
            path = self._below(folder)
            if path:
                self._add(Op("folder", path))
            for name in names:
                file = pathlib.Path(folder, name)
                number = self._named(str(file))
                self._add(Op("bytes", file=number, data=file.read_bytes()))
                self._add(Op("sync", file=number))
        for folder, _, _ in os.walk(self._root):
            self._add(Op("sync folder", self._below(folder) or ""))
        self._log.start = len(self._log.ops)

    def wrappers(self) -> dict[str, Callable[[Callable[..., int]], Callable[..., int]]]:
        """Return, by the name of a function, what wraps it."""
        notes: dict[str, Callable[..., None]] = {
            "open_new": self._open_new,
            "open_direct": self._open_direct,
            "close": self._close,
            "write": self._write,
            "write_at": self._write_at,
            "reserve": lambda _, fd, nbytes: self._bytes(fd, 0, bytes(nbytes)),
            "sync": self._sync,
            "sync_folder": lambda _, path: self._note("sync folder", path),
            "make_folder": lambda _, path: self._note("folder", path),
            "link": self._link,
            "rename_new": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
        }
        return {name: functools.partial(self._wrap, note) for name, note in notes.items()}

    def _wrap(self, note: Callable[..., None], call: Callable[..., int]) -> Callable[..., int]:
        def wrapped(*arguments: object) -> int:
            with self._lock:  # the order of the log is that of the calls
                result = call(*arguments)
                note(result, *arguments)
                return result

        return wrapped

    def _add(self, op: Op) -> None:
        self._log.ops.append(op)

    def _below(self, path: str) -> str | None:
        """Return a path relative to the root, or None if it is not below."""
        folder, name = os.path.split(path)
        real = (
            os.path.realpath(path)
            if path == self._root
            else os.path.realpath(folder) + f"/{name}"
        )
        if real == self._root:
            return ""
        return (
            real.removeprefix(self._root + "/") if real.startswith(self._root + "/") else None
        )

    def _note(self, kind: Literal["folder", "sync folder"], path: str) -> None:
        below = self._below(path)
        if below is not None:
            self._add(Op(kind, below))

    def _named(self, path: str, file: int | None = None) -> int:
        below = self._below(path)
        number = next(self._numbers) if file is None else file
        if below is not None:
            self._names[below] = number
            self._add(Op("name", below, file=number))
        return number

    def _open_new(self, fd: int, path: str) -> None:
        if self._below(path) is not None:
            self._open[fd] = self._named(path), 0

    def _open_direct(self, fd: int, path: str) -> None:
        below = self._below(path)
        if below is not None:
            self._open[fd] = self._names[below], 0

    def _close(self, _: None, fd: int) -> None:
        self._open.pop(fd, None)

    def _write(self, written: int, fd: int, views: Sequence[memoryview]) -> None:
        if fd in self._open:
            file, position = self._open[fd]
            self._bytes(fd, position, b"".join(views)[:written])
            self._open[fd] = file, position + written

    def _write_at(self, written: int, fd: int, view: memoryview, offset: int) -> None:
        self._bytes(fd, offset, bytes(view[:written]))

    def _bytes(self, fd: int, offset: int, data: bytes) -> None:
        if fd in self._open:
            self._add(Op("bytes", file=self._open[fd][0], offset=offset, data=data))

    def _sync(self, _: int, fd: int) -> None:
        if fd in self._open:
            self._add(Op("sync", file=self._open[fd][0]))

    def _link(self, _: int, source: str, target: str) -> None:
        below = self._below(source)
        if below is not None:
            self._named(target, self._names[below])

    def _rename(self, _: int, source: str, target: str) -> None:
        old, new = self._below(source), self._below(target)
        if old is not None and new is not None:
            self._names[new] = file = self._names.pop(old)
            self._add(Op("rename", new, source=old, file=file))

    def _unlink(self, _: int, path: str) -> None:
        below = self._below(path)
        if below is not None:
            self._names.pop(below, None)
            self._add(Op("remove", below))
