"""Causes come in the order in which to believe them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import numpy as np
import pytest

from ckptfmt.checks import Cause, Finding, Probe, diagnosis, examine
from ckptfmt.checks.diagnosis import ORDER, REMEDIES, Name, diagnose
from ckptfmt.checks.subject import Experiment


def cause(name: Name, strength: diagnosis.Strength, evidence: str = "seen") -> Cause:
    return Cause(name=name, strength=strength, evidence=evidence)


def finding(severity: Any, name: str = "numpy") -> Finding:
    return Finding(severity=severity, name=name, saved="1", now="2", reason="rounds otherwise")


def test_every_cause_has_its_place_and_a_remedy() -> None:
    assert set(ORDER) == set(get_args(Name)) == set(REMEDIES)
    assert len(set(ORDER)) == len(ORDER)


def test_evidence_counts_before_the_kind_of_cause() -> None:
    found = diagnose(
        [
            cause("missing array", "possible"),
            cause("environment", "proven"),
            cause("precision", "observed"),
            cause("preprocessing", "observed"),
        ]
    )

    assert [c.name for c in found] == [
        "environment", "preprocessing", "precision", "missing array",
    ]  # fmt: skip


def test_one_name_is_one_cause_with_all_its_evidence() -> None:
    (found,) = diagnose(
        [cause("precision", "observed", "a"), cause("precision", "proven", "b")]
    )

    assert (found.strength, found.evidence) == ("proven", "b; a")


def test_nothing_found_is_said() -> None:
    (found,) = diagnose([])

    assert found.name == "unknown"
    assert found.remedy in str(found)


@pytest.mark.parametrize(
    ("spread", "strength"),
    [(0.0, None), (1e-9, "possible"), (0.01, "observed"), (0.3, "proven")],
)
def test_runs_that_disagree_explain_differences_of_their_size(
    spread: float, strength: str | None
) -> None:
    found = diagnosis.repetition(spread, difference=1.0, noise=1e-6)

    assert [c.strength for c in found] == ([strength] if strength else [])


def test_mere_information_is_no_cause() -> None:
    assert diagnosis.environment([finding("info")], alone=True) == []
    (found,) = diagnosis.environment([finding("warning") for _ in range(5)], alone=True)
    assert found.strength == "observed"
    assert "and 2 more" in found.evidence


class Model:
    """A subject whose every answer the test decides."""

    def __init__(self, *outputs: float, causes: Iterable[Cause] = ()) -> None:
        self.outputs = list(outputs)
        self.causes = causes
        self.dropout = False
        self.runs = 0

    def run(self, stored: Probe) -> Any:
        self.runs += 1
        value = self.outputs.pop(0) if len(self.outputs) > 1 else self.outputs[0]
        return np.array([1.0 if self.dropout else value])

    def prepare(self, stored: Probe) -> Any:
        return np.array([5.0])

    def observe(self, stored: Probe) -> Iterable[Cause]:
        return self.causes

    def experiments(self, stored: Probe) -> Iterator[Experiment]:
        @contextlib.contextmanager
        def without(works: bool) -> Iterator[None]:
            self.dropout = works
            yield
            self.dropout = False

        yield Experiment("precision", "without autocast", without(False))
        yield Experiment("train mode", "in eval()", without(True))


STORED = Probe(
    inputs=np.zeros(1), outputs=np.array([1.0]), dtype="float32", absolute=1e-6, relative=0.0,
    deterministic=True,
)  # fmt: skip


def test_equal_outputs_ask_no_question() -> None:
    model = Model(1.0)

    assert examine(model, STORED, environment=[finding("error")]).causes == ()
    assert model.runs == 1


def test_an_experiment_that_works_proves_its_cause() -> None:
    causes = [cause("precision", "observed")]
    replay = examine(Model(2.0, causes=causes), STORED, environment=[finding("warning")])

    assert [(c.name, c.strength) for c in replay.causes] == [
        ("train mode", "proven"),
        ("precision", "observed"),
        ("environment", "possible"),
    ]
    assert "identical" in replay.causes[0].evidence


def test_prepared_inputs_are_compared() -> None:
    stored = dataclasses.replace(STORED, prepared=np.array([4.0]))
    replay = examine(Model(2.0), stored)

    assert "preprocessing" in [c.name for c in replay.causes]
    same = dataclasses.replace(STORED, prepared=np.array([5.0]))
    assert "preprocessing" not in [c.name for c in examine(Model(2.0), same).causes]


def test_runs_that_disagree_are_noticed() -> None:
    replay = examine(Model(2.0, 1.7), STORED)

    assert "non-determinism" in [c.name for c in replay.causes]
