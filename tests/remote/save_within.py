"""Save memory-mapped arrays in a process whose memory may grow by so much and no more.

    python -m tests.remote.save_within OPTIONS     OPTIONS: JSON, see `main`

The limit is the kernel's (RLIMIT_DATA: all private writable memory), set once everything is
imported and one small checkpoint was saved: beyond it an allocation fails, however short.
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import threading
import time

import numpy as np

import ckptfmt
from ckptfmt.backends._upload import Policy
from ckptfmt.backends.fsspec import FsspecBackend


def status(name: str) -> int:
    """Return a row of /proc/self/status in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def main() -> None:
    how = json.loads(sys.argv[1])
    backend = FsspecBackend(
        how["url"], storage_options=how["options"], policy=Policy(**how["policy"])
    )
    store = ckptfmt.open(backend)
    store.save({"warm": np.ones(2**22, np.uint8)})
    count = how["arrays"]
    mapped = np.memmap(how["file"], np.uint8, mode="r").reshape(count, 4096, -1)
    state = {f"w{n}": mapped[n].T if how["transposed"] else mapped[n] for n in range(count)}
    before, peak = status("RssAnon"), 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + how["limit"],) * 2)
    begin = time.monotonic()
    saved = store.save(state)
    seconds = time.monotonic() - begin
    stop.set()
    watcher.join()
    print(json.dumps([saved.number, peak - before, seconds]))


if __name__ == "__main__":
    main()
