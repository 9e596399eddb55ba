"""One loaded model under examination: run the stored batch, and say why it differs.

    Subject (an adapter's) ─► run twice ─► judge ─► observe + experiment ─► diagnose ─► Replay

The adapter knows how to run its model and what to look at; the order of questions is here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from ckptfmt.checks import diagnosis, probe
from ckptfmt.checks.diagnosis import Cause, Name
from ckptfmt.checks.environment import Finding
from ckptfmt.checks.probe import Probe, Replay


class Experiment(NamedTuple):
    """One cause taken away for a while, to see whether the outputs then agree."""

    name: Name
    text: str  # what is done, such as "without autocast"
    without: AbstractContextManager[object]


class Subject(Protocol):
    """A loaded model, as one wants to use it."""

    def run(self, stored: Probe) -> Any:
        """Return what the model makes of the probe's inputs: a state tree with arrays."""

    def prepare(self, stored: Probe) -> Any:
        """Return what preprocessing makes of the probe's inputs; None if there is none."""

    def observe(self, stored: Probe) -> Iterable[Cause]:
        """Say what is not as it was when the probe was stored."""

    def experiments(self, stored: Probe) -> Iterable[Experiment]:
        """Offer causes that can be taken away for a while; only those that are present."""


def examine(
    subject: Subject,
    stored: Probe,
    *,
    environment: Sequence[Finding] = (),
    inputs: Sequence[Finding] = (),
) -> Replay:
    """Run a stored batch through a model; when it differs, say why.

    The model runs once when the outputs agree; when they differ, a second time, and once for
    each experiment.

    Args:
        environment: What `Checkpoint.check_environment` found.
        inputs: What `Checkpoint.check_preprocessing` found.
    """
    first = subject.run(stored)
    replay = probe.judge(stored, first)
    if replay.verdict != "different":
        return replay
    seen = [
        *replay.causes,
        *diagnosis.repetition(
            probe.spread(first, subject.run(stored)), replay.largest, replay.bound
        ),
        *diagnosis.preprocessing(inputs, _prepared(subject, stored)),
        *subject.observe(stored),
        *_proven(subject, stored),
        *_untold(stored),
    ]
    alone = all(cause.strength == "possible" for cause in seen)
    causes = [*seen, *diagnosis.environment(environment, alone=alone)]
    return dataclasses.replace(replay, causes=diagnosis.diagnose(causes))


def _prepared(subject: Subject, stored: Probe) -> float | None:
    """Return how far prepared inputs are from the stored ones; None if they are no part."""
    if stored.prepared is None:
        return None
    made = subject.prepare(stored)
    return None if made is None else probe.spread(stored.prepared, made)


def _proven(subject: Subject, stored: Probe) -> Iterator[Cause]:
    for name, text, without in subject.experiments(stored):
        with without:
            again = probe.judge(stored, subject.run(stored))
        if again.verdict != "different":
            evidence = f"{text} the outputs are {again.verdict}"
            yield Cause(name=name, strength="proven", evidence=evidence)


def _untold(stored: Probe) -> Iterator[Cause]:
    """Say so where rounding may do so much that noise cannot be told from a difference."""
    noise = stored.about.get("noise")
    if isinstance(noise, float) and noise > probe.LIMIT:
        text = (
            f"rounding in {stored.dtype} alone may move outputs by {noise:.2g} of the largest:"
            " whether this is noise cannot be told, unless the probe is made with tolerances"
        )
        yield Cause(name="precision", strength="possible", evidence=text)
