"""No false alarm: each real checkpoint, saved here and loaded in another process, is the same.

What is predicted are products of all arrays with fixed vectors: a model of no framework that
uses every stored number once.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import migrate
from ckptfmt.checks import Probe
from ckptfmt.checks.probe import noise
from tests.migrate import corpus

ENTRIES = corpus.chosen()
LONGEST = 1024  # terms of a sum


def predict(state: Any, batch: Any) -> dict[str, Any]:
    """Return what all numbers of a state tree make of a vector of `LONGEST` numbers."""
    found: dict[str, Any] = {}
    for path, leaf in ckptfmt.tree.paths(state):
        array = np.asarray(leaf) if hasattr(leaf, "dtype") else None
        if array is None or array.size == 0 or array.dtype.kind not in "biuf":
            continue
        finite = np.clip(np.nan_to_num(array.astype(np.float64)), -1e6, 1e6)
        rows = np.resize(finite.astype(np.float32), -(-array.size // LONGEST) * LONGEST)
        found[path] = rows.reshape(-1, LONGEST) @ batch
    return found


def same(checkpoint: ckptfmt.Checkpoint) -> dict[str, Any]:
    """Return all that a clean load has to say."""
    state = checkpoint.load()
    stored = checkpoint.probe()
    assert stored is not None
    replay = ckptfmt.checks.examine(
        Loaded(state), stored, environment=checkpoint.check_environment()
    )
    report = checkpoint.compare(state)
    return {
        "verdict": replay.verdict,
        "elements": replay.elements,
        "causes": [str(cause) for cause in replay.causes],
        "problems": report.problems,
        "matched": len(report.matched),
        "findings": [
            str(found)
            for found in checkpoint.check_environment()
            if found.name != "git.commit"  # somebody may commit meanwhile
        ],
        "digest": hashlib.sha256(
            b"".join(
                path.encode() + np.ascontiguousarray(leaf).tobytes()
                for path, leaf in ckptfmt.tree.paths(state)
                if hasattr(leaf, "dtype")
            )
        ).hexdigest(),
    }


class Loaded:
    """A state tree as a subject: nothing is known of it but what it predicts."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def run(self, stored: Probe) -> Any:
        return predict(self._state, stored.inputs)

    def prepare(self, stored: Probe) -> Any:
        return None

    def observe(self, stored: Probe) -> Any:
        return ()

    def experiments(self, stored: Probe) -> Any:
        return ()


def save_again(folder: pathlib.Path, entry: corpus.Entry) -> ckptfmt.Checkpoint | None:
    """Migrate, load, and save with a probe; None where there is nothing to predict by."""
    done = migrate.migrate(migrate.open(entry.source()), folder / "migrated")
    state = done.checkpoint.load()
    batch = np.random.default_rng(1).normal(size=LONGEST).astype(np.float32)
    outputs = predict(state, batch)
    if not outputs:
        return None
    largest = max(float(np.abs(one).max()) for one in outputs.values())
    probe = Probe(
        inputs=batch,
        outputs=outputs,
        dtype="float32",
        absolute=noise("float32", terms=LONGEST, layers=1) * largest,
        relative=0.0,
        deterministic=True,
    )
    with ckptfmt.open(folder / "saved") as store:
        return store.save(state, probe=probe)


@pytest.mark.timeout(900)
def test_clean_reloads_of_real_checkpoints_are_identical(tmp_path: pathlib.Path) -> None:
    places: dict[str, pathlib.Path] = {}
    for entry in ENTRIES:
        if save_again(tmp_path / entry.id, entry) is not None:
            places[entry.id] = tmp_path / entry.id / "saved"
    script = (
        "import json, sys, ckptfmt\n"
        "from tests.migrate import test_same_predictions as tests\n"
        "told = {f: tests.same(ckptfmt.open_checkpoint(f + '@1')) for f in sys.argv[1:]}\n"
        "print(json.dumps(told))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, places.values())],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)

    assert len(places) > 0.9 * len(ENTRIES)
    for name, folder in places.items():
        there = told[str(folder)]
        here = same(ckptfmt.open_checkpoint(f"{folder}@1"))
        assert there["verdict"] == "identical", (name, there)
        assert there["elements"] > 0
        assert (there["problems"], there["findings"], there["causes"]) == (0, [], []), name
        assert there == here, name


def test_another_number_is_no_clean_reload(tmp_path: pathlib.Path) -> None:
    saved = next(filter(None, (save_again(tmp_path / e.id, e) for e in ENTRIES)))
    state, stored = saved.load(), saved.probe()
    assert stored is not None
    whole = predict(state, stored.inputs)
    path = next(iter(whole))
    array = dict(ckptfmt.tree.paths(state))[path]
    array.reshape(-1)[0] += 1

    replay = ckptfmt.checks.examine(Loaded(state), stored)

    assert replay.verdict == "different"
