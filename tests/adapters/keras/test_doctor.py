"""`ckptfmt doctor --with` on a Keras model, as somebody else's serving code loads it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from nets import data, net, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.cli import main

SERVING = """
import ckptfmt_keras

def load(checkpoint):
    model = ckptfmt_keras.load_model(checkpoint)
    return ckptfmt_keras.subject(checkpoint, model)

def bare(checkpoint):
    return ckptfmt_keras.load_model(checkpoint)

def training(checkpoint):
    model = ckptfmt_keras.load_model(checkpoint)
    return ckptfmt_keras.subject(checkpoint, model, training=True)

def fine_tuned(checkpoint):
    model = ckptfmt_keras.load_model(checkpoint)
    model.layers[0].kernel.assign(model.layers[0].kernel * 1.5)
    return ckptfmt_keras.subject(checkpoint, model)
"""


@pytest.fixture(autouse=True)
def _run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, store: ckptfmt.Store) -> None:
    (tmp_path / "serving_keras.py").write_text(SERVING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "serving_keras", raising=False)
    model = trained(net())
    probe = ckptfmt_keras.probe(model, data()[0][:5])
    ckptfmt_keras.save_model(model, store, probe=probe)


@pytest.mark.parametrize("function", ["load", "bare"])
def test_a_clean_load_is_identical_and_alarms_nobody(
    function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["doctor", "run@1", "--with", f"serving_keras:{function}"])

    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    assert shown.out.endswith("identical: 15 outputs, bit for bit\n")


@pytest.mark.parametrize(
    ("function", "cause", "strength", "evidence"),
    [
        ("training", "train mode", "proven", "with training=False the outputs are identical"),
        ("fine_tuned", "changed array", "observed", "/kernel is not what the checkpoint holds"),
    ],
)
def test_the_true_cause_comes_first(
    function: str,
    cause: str,
    strength: str,
    evidence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["doctor", "run@1", "--with", f"serving_keras:{function}"]
    status = main(words)
    shown = capsys.readouterr().out
    main([*words, "--json"])
    first = json.loads(capsys.readouterr().out)["causes"][0]

    assert status == 1
    assert "different: off by up to" in shown
    assert (first["name"], first["strength"]) == (cause, strength)
    assert evidence in first["evidence"]


def test_a_process_that_has_imported_nothing_yet_alarms_nobody(tmp_path: pathlib.Path) -> None:
    """The frameworks come in with the user's function, after the environment was looked at."""
    roots = os.pathsep.join(
        str(pathlib.Path(m.__path__[0]).parent) for m in (ckptfmt, ckptfmt_keras)
    )
    ran = subprocess.run(
        [sys.executable, "-m", "ckptfmt", "doctor", "run@1", "--with", "serving_keras:load"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": roots}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip

    assert ran.stdout.endswith("identical: 15 outputs, bit for bit\n"), ran.stderr
    assert "warning: checkpoint" not in ran.stderr
    assert ran.returncode == 0
