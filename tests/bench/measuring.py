"""Before, around and after what is timed or watched."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

from tests.bench import machine
from tests.bench.job import Job, Result

PRIMED: Final = 1.1  # length of the scratch file, in lengths of the checkpoint
BLOCK_NBYTES: Final = 8 << 20
ENOUGH_SECONDS: Final = 2.0
EVICT_SECONDS: Final = 60.0


def warm(folder: pathlib.Path) -> None:
    """Read all files, so that every contender finds its own in the page cache."""
    memory = bytearray(BLOCK_NBYTES)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(memory):
                    pass


def _prime(job: Job, nbytes: int) -> None:
    """Make the state of the machine's memory the same for all: see docs/benchmarks.md.

    What new page-cache pages cost depends on the seconds before, on a virtual machine at least.
    A scratch file of the same length, written and removed, makes it the same for everybody.
    """
    block = memoryview(bytearray(BLOCK_NBYTES))
    path = pathlib.Path(job.scratch) / "priming"
    left = int(PRIMED * nbytes)
    with path.open("wb", buffering=0) as file:
        while left > 0:
            left -= file.write(block[: min(left, BLOCK_NBYTES)])
    path.unlink()


def evict(folder: pathlib.Path) -> None:
    """Put all files out of the page cache, and make sure that they are out.

    Names, sizes and places on the disk stay in the kernel's memory.

    Raises:
        OSError: the page cache kept some of it, for a minute.
    """
    end = time.monotonic() + EVICT_SECONDS
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())  # dirty pages cannot be dropped
            while True:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                kept = cached_pages(file.fileno())
                if not kept:
                    break
                if time.monotonic() > end:
                    raise OSError(f"{kept} pages of {path.name} stayed in the page cache")
                time.sleep(0.01)


def cached_pages(fd: int) -> int:
    """Return how many pages of a file are in the page cache (mincore)."""
    nbytes = os.fstat(fd).st_size
    if not nbytes:
        return 0
    with mmap.mmap(fd, nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
        address = ctypes.addressof(start := ctypes.c_char.from_buffer(mapped))
        seen = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
        call = ctypes.CDLL(None, use_errno=True).mincore
        failed = call(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), seen)
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(map((1).__and__, seen))


def measured(
    job: Job,
    act: Callable[[], Any],
    *,
    repeats: int = 1,
    before: Callable[[], Any] | None = None,
    value: Callable[[list[float]], float] = statistics.median,
) -> Result:
    """Get ready and time an act, or watch it.

    Args:
        repeats: How often, as long as it is done within about two seconds.
        before: Done before each repetition, not timed.
        value: Makes one sample of the repetitions' seconds. The sum has all of them.
    """
    speed = machine.copy_speed()
    gc.collect()
    os.sync()
    if job.watch:
        return _watched(act) | {"probe": speed}
    if job.idle_seconds:
        time.sleep(job.idle_seconds)
    else:
        _prime(job, job.state.nbytes)
    busy, own, seconds = machine.busy_seconds(), time.process_time(), []
    while len(seconds) < repeats:
        if before:
            before()
        begin = time.perf_counter()
        kept = act()
        seconds.append(time.perf_counter() - begin)
        del kept
        if sum(seconds) > ENOUGH_SECONDS and value is not sum:
            break
    others = (machine.busy_seconds() - busy) - (time.process_time() - own)
    return {
        "value": value(seconds),
        "others": max(0.0, others) / sum(seconds),
        "timed": sum(seconds),
        "repeats": len(seconds),
        "probe": speed,
    }


def _watched(act: Callable[[], Any]) -> Result:
    """Run once; say when, so that whoever watches this process knows which samples count."""
    before = resident()
    forget_peak()
    begin = time.monotonic()
    act()
    end = time.monotonic()
    after = resident()
    return {
        "begin": begin,
        "end": end,
        "before": before["private"],
        "value": max(0, after["private"] - before["private"]),
        "resident": max(0, after["peak"] - before["all"]),
    }


def resident(process: str = "self") -> dict[str, int]:
    """Return a process's bytes of memory: its own, all with mapped files, the peak of all."""
    fields = {}
    with open(f"/proc/{process}/status", encoding="utf-8") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("VmHWM", "VmRSS", "RssAnon", "RssShmem"):
                fields[name] = int(rest.split()[0]) * 1024
    return {
        "private": fields["RssAnon"] + fields["RssShmem"],
        "all": fields["VmRSS"],
        "peak": fields["VmHWM"],
    }


def forget_peak() -> None:
    """Let the kernel count the peak of resident memory from here on."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
