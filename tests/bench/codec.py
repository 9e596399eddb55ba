"""What the codecs save, and what they cost: `python -m tests.bench.codec`, `make bench-codec`.

In memory, chunks of 16 MiB shared by as many threads as there are cores, medians; one copy of
the same bytes beside it. Values as in a model: normal weights, Adam's moments of them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.format import codec
from ckptfmt.format.zstd import Buffer

CHUNK_NBYTES: Final = 16 << 20
CODECS: Final = (codec.ZSTD, codec.PLANES)


def states(nbytes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays of about so many bytes each."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(nbytes // 4, np.float32) * np.float32(0.02)
    gradient = rng.standard_normal(nbytes // 4, np.float32) * np.float32(1e-3)
    return {
        "fp32 weights": weights,
        "fp32 Adam, first moment": gradient,
        "fp32 Adam, second moment": gradient**2,
        "bf16 weights": weights.astype(ml_dtypes.bfloat16),
        "fp16 weights": weights.astype(np.float16),
    }


def rate(nbytes: int, rounds: int, act: Callable[[], object]) -> float:
    """Return the median of GB/s; the first run is not counted."""
    act()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begin)
    return nbytes / statistics.median(seconds) / 1e9


def measured(
    array: np.ndarray[Any, Any], name: str, threads: int, rounds: int
) -> dict[str, float]:
    """Encode and decode all chunks of one array."""
    width, data = array.dtype.itemsize, array.view(np.uint8).data
    chunks = [data[at : at + CHUNK_NBYTES] for at in range(0, len(data), CHUNK_NBYTES)]
    target = np.empty(len(data), np.uint8).data
    places = [target[at : at + CHUNK_NBYTES] for at in range(0, len(data), CHUNK_NBYTES)]
    with ThreadPoolExecutor(threads) as pool:

        def encode() -> list[Buffer]:
            return list(pool.map(lambda c: codec.encode(name, c, width=width), chunks))

        stored = encode()

        def decode() -> Iterable[None]:
            return list(pool.map(lambda s, t: codec.decode_into(name, s, t), stored, places))

        found = {
            "kept": sum(map(len, stored)) / len(data),
            "encode": rate(len(data), rounds, encode),
            "decode": rate(len(data), rounds, decode),
        }
    if bytes(target) != bytes(data):
        raise AssertionError(f"{name}: other bytes came back")
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.codec", description=__doc__)
    parser.add_argument("--nbytes", type=int, default=256 << 20, help="of each array")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep the figures")
    options = parser.parse_args()
    threads = os.cpu_count() or 1
    rows: list[dict[str, Any]] = []
    print(f"{threads} threads, load average {os.getloadavg()[0]:.2f} before\n")
    print(f"{'values':26}{'codec':14}{'kept':>6}{'encode GB/s':>13}{'decode GB/s':>13}")
    for title, array in states(options.nbytes).items():
        for name in CODECS:
            row = measured(array, name, threads, options.rounds)
            rows.append({"values": title, "codec": name, **row})
            figures = f"{row['kept']:6.3f}{row['encode']:13.2f}{row['decode']:13.2f}"
            print(f"{title:26}{name:14}{figures}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
