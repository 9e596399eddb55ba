"""`import ckptfmt` is light: it costs little, loads no framework and does nothing else.

Each import runs in a fresh interpreter. What is counted: processor time of the import
statement alone, after numpy and ml_dtypes are loaded (no checkpoint exists without them), with
compiled bytecode in place; the least of five, because a busy machine only ever adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Final

MAX_SECONDS: Final = 0.2
HEAVY: Final = {
    "h5py", "hypothesis", "jax", "keras", "lightning", "matplotlib", "pandas",
    "pytest", "requests", "rich", "safetensors.torch", "scipy", "sklearn", "tensorflow",
    "torch", "transformers",
}  # fmt: skip

PROBE: Final = """
import json, sys, threading, time
import ml_dtypes, numpy
before = set(sys.modules)
begin = time.process_time()
import ckptfmt
seconds = time.process_time() - begin
new = sorted(set(sys.modules) - before)
print(json.dumps({"seconds": seconds, "new": new, "threads": threading.active_count()}))
"""


def _fresh_import(*options: str) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *options, "-c", PROBE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)  # anything printed at import fails here
    return answer | {"stderr": done.stderr}


def test_import_takes_little_time() -> None:
    _fresh_import()  # compiles the bytecode if this is the first import ever

    seconds = min(_fresh_import()["seconds"] for _ in range(5))

    assert seconds < MAX_SECONDS


def test_import_loads_no_framework_and_no_extra() -> None:
    loaded = set(_fresh_import()["new"])

    heavy = {name for name in loaded if name in HEAVY or name.partition(".")[0] in HEAVY}
    assert heavy == set()
    # One filesystem per scheme, loaded when a URL names it.
    assert {name for name in loaded if name.startswith("fsspec.implementations.")} == set()


def test_import_does_not_load_the_edges() -> None:
    edges = (
        "ckptfmt.cli",
        "ckptfmt.migrate",
        "ckptfmt.testing",
        "ckptfmt_torch",
        "ckptfmt_keras",
    )

    loaded = _fresh_import()["new"]

    assert [name for name in loaded if name.startswith(edges)] == []


def test_import_has_no_side_effect() -> None:
    answer = _fresh_import("-W", "error")

    assert answer["threads"] == 1
    assert answer["stderr"] == ""
