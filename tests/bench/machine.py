"""What a figure depends on besides the contenders: machine, versions, noise."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import statistics
import time

import numpy as np

TOLD_OPTIONS = ("discard", "noatime", "relatime", "strictatime", "sync", "nobarrier", "data=")
PROBE_NBYTES = 16 << 20
PROBE_REPEATS = 5


def describe(folder: pathlib.Path) -> dict[str, object]:
    """Return what the machine is, without its name."""
    kind, options = file_system(folder)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "file_system": kind,
        "mount_options": options,
    }


def versions(distributions: set[str]) -> dict[str, str]:
    """Return the version of Python and of each distribution that is installed."""
    found = {"Python": platform.python_version()}
    for name in sorted(distributions):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def file_system(folder: pathlib.Path) -> tuple[str, str]:
    """Return type and those mount options that cost time of the file system of a folder."""
    target = os.path.realpath(folder)
    found = ("unknown", "")
    longest = -1
    try:
        lines = pathlib.Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point, options = mount.split()[4:6]
        kind, _, more = rest.split(maxsplit=2)
        if os.path.commonpath([target, point]) == point and len(point) >= longest:
            longest = len(point)
            told = [o for o in f"{options},{more}".split(",") if o.startswith(TOLD_OPTIONS)]
            found = kind, ",".join(dict.fromkeys(told))
    return found


def available() -> int:
    """Return how much memory programs can still have, the page cache given up for them."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return 1024 * int(fields["MemAvailable"].split()[0])


def load_average() -> list[float]:
    """Return the load average of the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def copy_speed() -> float:
    """Return how fast memory in use is copied, in bytes a second: the repeated probe."""
    source = np.ones(PROBE_NBYTES, np.uint8)
    target = np.zeros(PROBE_NBYTES, np.uint8)
    seconds = []
    for _ in range(PROBE_REPEATS):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    return PROBE_NBYTES / statistics.median(seconds)


def busy_seconds() -> float:
    """Return the processor time that all programs and the kernel have used so far."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
