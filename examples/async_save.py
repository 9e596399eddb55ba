"""Save while training goes on: the only wait is for a private copy.

python examples/async_save.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np

import ckptfmt
from ckptfmt.errors import StateError

STEPS = 20
EVERY = 5


def main(folder: str) -> None:
    """Train on noise, saving in the background, and check what was saved."""
    rng = np.random.default_rng(0)
    weight = np.zeros((2048, 2048), np.float32)  # 16 MiB
    asked = {}
    with ckptfmt.open(f"{folder}/background") as store:
        began = time.perf_counter()
        store.save({"model": {"weight": weight}}, counters={"seen": 0})
        print(f"save:       training waited {milliseconds(began)}")
        for step in range(1, STEPS + 1):
            weight += rng.standard_normal(weight.shape, dtype=np.float32)
            if step % EVERY:
                continue
            asked[step] = weight[0, 0].item()
            # One save at a time: this call waits for the one before if it still goes on, and
            # raises its failure if it had one. The first call also allocates the copy.
            began = time.perf_counter()
            pending = store.save_async({"model": {"weight": weight}}, counters={"seen": step})
            print(f"save_async: training waited {milliseconds(began)}")
            weight += 1  # at once: the copy is private, the checkpoint does not see this

        # What cannot be saved is refused before the call returns, with the path.
        try:
            store.save_async({"model": {"weight": weight, "activation": np.tanh}})
        except StateError as error:
            print("refused:", error)
        # `wait` returns the checkpoint or raises what went wrong. Leaving the block waits, too,
        # and so does the end of the program.
        print("last:", pending.wait().number)

    for checkpoint in list(store)[1:]:
        value = checkpoint["model/weight"][0, 0]
        assert value.item() == asked[checkpoint.counters["seen"]]
    print(f"{len(asked)} checkpoints, each with the weights of the moment it was asked for")


def milliseconds(began: float) -> str:
    """Return the time since `began` for people."""
    return f"{(time.perf_counter() - began) * 1000:6.1f} ms"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as name:
            main(name)
