"""Around a restore: is it the same environment and preprocessing, and are predictions equal?

    begin (compare, before anything is read or changed) ─► restore ─► Proof.completed (replay)

The adapter knows its framework and makes the subject; what is asked when, and what becomes of
a failure, is here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeGuard

from ckptfmt.checks.coverage import LoadReport
from ckptfmt.checks.environment import Finding, Policy
from ckptfmt.checks.probe import Probe, Replay
from ckptfmt.checks.subject import Subject, examine
from ckptfmt.errors import NotFoundError, UsageError

_log: Final = logging.getLogger("ckptfmt")

When: TypeAlias = Literal["auto", "always", "never"]
Artifacts: TypeAlias = Mapping[str, bytes | os.PathLike[str]]
Prepare: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a model's inputs are made; what is None is not compared."""

    prepare: Prepare | None = None  # where it is part of the probe; None: taken as made
    preprocessing: Any = None  # plain values, as given to the save
    artifacts: Artifacts | None = None  # file name to content or path


class Saved(Protocol):
    """A checkpoint, as far as a proof asks it."""

    @property
    def number(self) -> int:
        """Its number."""

    def probe(self) -> Probe | None:
        """Return the stored example."""

    def check_environment(
        self, policy: Policy = "off", *, extra: Mapping[str, Any] | None = None
    ) -> list[Finding]:
        """Compare the environment."""

    def check_preprocessing(
        self, *, preprocessing: Any = None, artifacts: Artifacts | None = None
    ) -> list[Finding]:
        """Compare how inputs are made."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """How a restored model is to be proven equal, and what is known beforehand."""

    checkpoint: Saved
    framework: str  # whose probes can be run
    when: When
    stored: Probe | None  # read beforehand where it is to be run always
    prepare: Prepare | None
    environment: list[Finding]  # all differences
    inputs: list[Finding]

    def findings(self, *, said: Collection[str] = ()) -> list[Finding]:
        """Return what is worth a line in the report, and is not said elsewhere in it."""
        found = (*self.inputs, *self.environment)
        return [f for f in found if f.severity != "info" and f.name not in said]

    def completed(self, report: LoadReport, subject: Callable[[], Subject]) -> LoadReport:
        """Return the report with what came of the stored probe, where it is to be run.

        Args:
            subject: Makes the restored model ready for examination.

        Raises:
            Exception: what the model raises, if the probe is to be run always. Else that is a
                finding: nobody asked for the probe, and all is restored.
        """
        if self.when == "never":
            return report
        if self.stored is not None:
            return dataclasses.replace(report, replay=self._replay(self.stored, subject()))
        try:
            stored = self.checkpoint.probe()
            if not _fits(stored, self.framework):
                return report
            return dataclasses.replace(report, replay=self._replay(stored, subject()))
        except Exception as error:
            reason = f"the stored probe could not be run: {type(error).__name__}: {error}"
            _log.warning("checkpoint %d: %s", self.checkpoint.number, reason, exc_info=True)
            finding = Finding(
                severity="warning", name="probe", saved=None, now=None, reason=reason
            )
            return dataclasses.replace(report, findings=(*report.findings, finding))

    def diagnosed(self, subject: Subject) -> Replay:
        """Run the stored probe, and say why its outputs differ if they do.

        Raises:
            NotFoundError: the checkpoint has no probe.
        """
        stored = self.checkpoint.probe()
        if stored is None:
            raise none(self.checkpoint, self.framework)
        return examine(subject, stored, environment=self.environment, inputs=self.inputs)

    def _replay(self, stored: Probe, subject: Subject) -> Replay:
        replay = examine(subject, stored, environment=self.environment, inputs=self.inputs)
        if not replay.ok:
            _log.warning(
                "checkpoint %d predicts otherwise here: %s", self.checkpoint.number, replay
            )
        return replay


def begin(
    checkpoint: Saved,
    framework: str,
    *,
    when: When,
    inputs: Inputs | None,
    environment: Policy,
    record: Mapping[str, Any],
    lacking: NotFoundError | None = None,
    single: bool = True,
) -> Proof:
    """Compare environment and preprocessing, before anything is read or changed.

    Args:
        framework: As its probes say it, and as the adapter's package is called.
        record: What the adapter records of this environment.
        lacking: What is raised if the probe is to be run always and cannot be; None: `none`.
        single: Whether there is one model that could run it.

    Raises:
        MismatchError: the policy is "strict", and the environment differs.
        NotFoundError: the probe is to be run always, and there is none, or no single model.
        UsageError: an argument is none of its values.
    """
    if when not in ("auto", "always", "never"):
        raise UsageError("expected replay='auto', 'always' or 'never'", found=when)
    if not isinstance(inputs, Inputs | None):
        raise UsageError(
            f"expected inputs=ckptfmt_{framework}.Inputs(...)", found=type(inputs).__name__
        )
    given = inputs or Inputs()
    stored = checkpoint.probe() if when == "always" else None
    if when == "always" and not (single and _fits(stored, framework)):
        raise lacking or none(checkpoint, framework)
    return Proof(
        checkpoint=checkpoint,
        framework=framework,
        when=when,
        stored=stored,
        prepare=given.prepare,
        environment=checkpoint.check_environment(environment, extra={framework: record}),
        inputs=checkpoint.check_preprocessing(
            preprocessing=given.preprocessing, artifacts=given.artifacts
        ),
    )


def none(checkpoint: Saved, framework: str) -> NotFoundError:
    """Return the error for a checkpoint without a probe."""
    return NotFoundError(
        f"the checkpoint has no probe: save with probe=ckptfmt_{framework}.probe(model, batch)",
        checkpoint=checkpoint.number,
    )


def _fits(stored: Probe | None, framework: str) -> TypeGuard[Probe]:
    return stored is not None and stored.about.get("framework") == framework
