"""`ckptfmt doctor` and `ckptfmt env --requirements`."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.checks import Probe

Cli = Callable[..., Any]

SERVING = """
import numpy as np

def right(checkpoint):
    w = checkpoint["model/w"]
    return lambda inputs: {"y": inputs["x"] * np.asarray(w)}

def wrong(checkpoint):
    return lambda inputs: {"y": inputs["x"] + 1}

class Subject:
    def run(self, stored): return {"y": stored.inputs["x"]}
    def prepare(self, stored): return None
    def experiments(self, stored): return ()
    def observe(self, stored):
        from ckptfmt.checks import diagnosis
        return diagnosis.arrays(["head.weight"], [])

def subject(checkpoint):
    return Subject()

class Tensor:
    # As torch's: no array while gradients are kept.
    def __init__(self, array, kept): self.array, self.kept = array, kept
    def detach(self): return Tensor(self.array, False)
    def cpu(self): return self
    def __array__(self, dtype=None, copy=None):
        if self.kept: raise RuntimeError("requires grad")
        return self.array

def tensors(checkpoint):
    return lambda inputs: {"y": Tensor(inputs["x"] * np.float32(3), True)}

def nothing(checkpoint):
    return 3

def breaks(checkpoint):
    raise KeyError("weights\\x1b[2J")

def fails_later(checkpoint):
    return lambda inputs: inputs["absent"]

def fewer(checkpoint):
    return lambda inputs: {"y": inputs["x"][:1]}

def renamed(checkpoint):
    return lambda inputs: {"logits": inputs["x"]}
"""


@pytest.fixture(autouse=True)
def _serving(tmp_path: pathlib.Path) -> Iterator[None]:
    (tmp_path / "serving_of_a_test.py").write_text(SERVING)
    before = list(sys.path)
    x = np.array([1.0, 2.0], np.float32)
    probe = Probe(
        inputs={"x": x}, outputs={"y": x * 3}, dtype="float32", absolute=1e-6, relative=1e-6,
        deterministic=True,
    )  # fmt: skip
    with ckptfmt.open(tmp_path / "proven") as store:
        store.save({"model": {"w": np.float32(3) * np.ones(2, np.float32)}}, probe=probe)
        store.save({"model": {"w": np.ones(2, np.float32)}})
    yield
    sys.path[:] = before
    sys.modules.pop("serving_of_a_test", None)


@pytest.mark.parametrize("function", ["right", "tensors"])
def test_equal_predictions(cli: Cli, function: str) -> None:
    ran = cli("doctor", "proven@1", "--with", f"serving_of_a_test:{function}")

    assert (ran.status, ran.err) == (0, "")
    assert ran.out.endswith("identical: 2 outputs, bit for bit\n")


def test_other_predictions_without_a_reason(cli: Cli) -> None:
    ran = cli("doctor", "proven@1", "--with", "serving_of_a_test:wrong")

    assert ran.status == 1
    assert "different: off by up to 3, noise is" in ran.out
    assert "unknown" in ran.out
    assert "nothing but its outputs was looked at" in ran.out


@pytest.mark.parametrize(
    ("function", "evidence"),
    [
        ("fewer", "y is float32 [1] here, was float32 [2] when saved"),
        (
            "renamed",
            "no y among the outputs here; logits among the outputs here, not when saved",
        ),
    ],
)
def test_outputs_that_cannot_be_compared_say_why(
    cli: Cli, function: str, evidence: str
) -> None:
    words = ["doctor", "proven@1", "--with", f"serving_of_a_test:{function}"]
    ran, document = cli(*words), json.loads(cli(*words, "--json").out)

    assert ran.status == 1
    assert f"different: {evidence}\n" in ran.out
    assert document["causes"][0]["name"] == "other outputs"
    assert document["causes"][0]["evidence"] == evidence


@pytest.mark.parametrize(
    ("function", "message"), [("breaks", "KeyError"), ("fails_later", "KeyError: 'absent'")]
)
def test_code_that_fails_is_no_verdict(cli: Cli, function: str, message: str) -> None:
    """A status of 1 would tell a script that predictions differ."""
    ran = cli("doctor", "proven@1", "--with", f"serving_of_a_test:{function}")

    assert ran.status == 2
    assert ran.out == ""
    assert "serving_of_a_test.py" in ran.err
    assert f"error[usage]: the code of --with failed: {message}" in ran.err
    assert "\x1b" not in ran.err


def test_causes_come_with_evidence(cli: Cli) -> None:
    ran = cli("doctor", "proven@1", "--with", "serving_of_a_test:subject")
    document = json.loads(
        cli("doctor", "proven@1", "--with", "serving_of_a_test:subject", "--json").out
    )

    assert ran.status == 1
    assert "missing array" in ran.out
    assert document["verdict"] == "different"
    assert document["causes"][0]["name"] == "missing array"
    assert "head.weight" in document["causes"][0]["evidence"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["proven@2", "--with", "serving_of_a_test:right"], 3, "no probe"),
        (["proven@1", "--with", "absent_module:f"], 2, "cannot import"),
        (["proven@1", "--with", "serving_of_a_test"], 2, "no such function"),
        (["proven@1", "--with", "serving_of_a_test:absent"], 2, "no such function"),
        (["proven@1", "--with", ":x"], 2, "cannot import"),
        (["proven@1", "--with", "serving_of_a_test:nothing"], 2, "must return"),
        (["proven@1"], 2, "--with"),
    ],
)
def test_what_cannot_be_examined(cli: Cli, words: list[str], status: int, message: str) -> None:
    ran = cli("doctor", *words)

    assert ran.status == status
    assert message in ran.err


def test_requirements(cli: Cli) -> None:
    ran = cli("env", "proven@1", "--requirements")

    assert ran.status == 0
    assert ran.out.startswith("# python 3.")
    assert f"numpy=={np.__version__}\n" in ran.out
    assert cli("env", "proven@1", "proven@2", "--requirements").status == 2
