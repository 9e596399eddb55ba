"""Around a restore: is it the same environment and preprocessing, and are predictions equal?"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import ckptfmt
from ckptfmt.checks import Finding, LoadReport, Probe, Replay, examine
from ckptfmt.checks.environment import Policy
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt_keras import examining, numerics, probing

_log: Final = logging.getLogger("ckptfmt")

OWN: Final = "keras"  # the part of the recorded environment that is the adapter's
# Said of the architecture, too, where they matter to the model.
_SAID: Final = frozenset(["keras.floatx", "keras.dtype_policy"])

When: TypeAlias = Literal["auto", "always", "never"]
Artifacts: TypeAlias = Mapping[str, bytes | os.PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a model's inputs are made; what is None is not compared."""

    prepare: probing.Prepare | None = None  # where it is part of the probe; None: taken as made
    preprocessing: Any = None  # plain values, as given to the save
    artifacts: Artifacts | None = None  # file name to content or path


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a restored model is to be proven equal, and what is known beforehand."""

    checkpoint: ckptfmt.Checkpoint
    when: When
    stored: Probe | None  # read beforehand where it is to be run always
    prepare: probing.Prepare | None
    environment: list[Finding]  # all differences
    inputs: list[Finding]

    @property
    def findings(self) -> list[Finding]:
        """What is worth a line in the report."""
        found = (*self.inputs, *self.environment)
        return [f for f in found if f.severity != "info" and f.name not in _SAID]

    def completed(self, report: LoadReport, model: Any) -> LoadReport:
        """Return the report with what came of the stored probe, where it is to be run.

        Raises:
            Exception: what the model raises, if the probe is to be run always. Else that is a
                finding: nobody asked for the probe, and all is restored.
        """
        if self.when == "never":
            return report
        if self.stored is not None:
            return dataclasses.replace(report, replay=self._replay(self.stored, model))
        try:
            stored = self.checkpoint.probe()
            if stored is None or not _fits(stored):
                return report
            return dataclasses.replace(report, replay=self._replay(stored, model))
        except Exception as error:
            reason = f"the stored probe could not be run: {type(error).__name__}: {error}"
            _log.warning("checkpoint %d: %s", self.checkpoint.number, reason, exc_info=True)
            finding = Finding(
                severity="warning", name="probe", saved=None, now=None, reason=reason
            )
            return dataclasses.replace(report, findings=(*report.findings, finding))

    def _replay(self, stored: Probe, model: Any) -> Replay:
        subject = examining.Subject(self.checkpoint, model, prepare=self.prepare)
        replay = examine(subject, stored, environment=self.environment, inputs=self.inputs)
        if not replay.ok:
            _log.warning(
                "checkpoint %d predicts otherwise here: %s", self.checkpoint.number, replay
            )
        return replay


def begin(
    checkpoint: ckptfmt.Checkpoint, when: When, inputs: Inputs | None, environment: Policy
) -> Proof:
    """Compare environment and preprocessing, before anything is read or changed.

    Raises:
        MismatchError: the policy is "strict", and the environment differs.
        NotFoundError: the probe is to be run always, and there is none.
        UsageError: an argument is none of its values.
    """
    if when not in ("auto", "always", "never"):
        raise UsageError("expected replay='auto', 'always' or 'never'", found=when)
    if not isinstance(inputs, Inputs | None):
        raise UsageError(
            "expected inputs=ckptfmt_keras.Inputs(...)", found=type(inputs).__name__
        )
    given = inputs or Inputs()
    stored = checkpoint.probe() if when == "always" else None
    if when == "always" and not _fits(stored):
        raise _none(checkpoint)
    return Proof(
        checkpoint=checkpoint,
        when=when,
        stored=stored,
        prepare=given.prepare,
        environment=checkpoint.check_environment(environment, extra={OWN: numerics.record()}),
        inputs=checkpoint.check_preprocessing(
            preprocessing=given.preprocessing, artifacts=given.artifacts
        ),
    )


def _fits(stored: Probe | None) -> bool:
    return stored is not None and stored.about.get("framework") == probing.FRAMEWORK


def _none(checkpoint: ckptfmt.Checkpoint) -> NotFoundError:
    return NotFoundError(
        "the checkpoint has no probe: save with probe=ckptfmt_keras.probe(model, batch)",
        checkpoint=checkpoint.number,
    )


def subject(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    prepare: probing.Prepare | None = None,
    training: bool = False,
) -> examining.Subject:
    """Return a loaded model for `ckptfmt doctor`, as it is to be used.

    Args:
        checkpoint: What it was loaded from.
        model: Run under the caller's autocast.
        prepare: Preprocessing as it is to be used, for a probe that includes it.
        training: What the model is called with.
    """
    return examining.Subject(checkpoint, model, prepare=prepare, training=training)


def diagnose(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    inputs: Inputs | None = None,
    training: bool = False,
) -> Replay:
    """Say whether a model predicts as when the checkpoint was saved, and if not, why.

    What running it changes is put back, as in `probe`.

    Args:
        inputs: How its inputs are made here.
        training: What the model is called with.

    Raises:
        NotFoundError: the checkpoint has no probe.
    """
    stored = checkpoint.probe()
    if stored is None:
        raise _none(checkpoint)
    proof = begin(checkpoint, "never", inputs, "off")
    own = subject(checkpoint, model, prepare=proof.prepare, training=training)
    return examine(own, stored, environment=proof.environment, inputs=proof.inputs)
