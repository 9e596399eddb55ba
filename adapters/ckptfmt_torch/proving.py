"""Around a restore: is it the same environment and preprocessing, and are predictions equal?"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import nn

import ckptfmt
from ckptfmt.checks import Finding, Replay, examine
from ckptfmt.checks.environment import Policy
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt_torch import examining, numerics, probing, ranks

_log: Final = logging.getLogger("ckptfmt")

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
    prepare: probing.Prepare | None
    environment: list[Finding]  # all differences
    inputs: list[Finding]

    @property
    def findings(self) -> list[Finding]:
        """What is worth a line in the report."""
        return [f for f in (*self.inputs, *self.environment) if f.severity != "info"]

    def replay(self, model: object, places: Mapping[str, torch.Tensor]) -> Replay | None:
        """Run the stored probe through the restored model, in `eval()`; None: not asked for.

        Args:
            places: Stored path → the tensor of the model that was filled from it.

        Raises:
            NotFoundError: it is to be run always, and there is none, or no single model.
            Exception: what the model raises.
        """
        stored = None if self.when == "never" else self.checkpoint.probe()
        fits = stored is not None and stored.about.get("framework") == "torch"
        if self.when == "always" and not (fits and isinstance(model, nn.Module)):
            raise NotFoundError(
                "no probe can be run: save with probe=ckptfmt_torch.probe(model, batch), and"
                " restore a single model",
                checkpoint=self.checkpoint.number,
            )
        # A model that several processes hold together may wait for all of them when it runs.
        alone = self.when == "always" or ranks.rank_and_world()[1] == 1
        if not fits or not alone or stored is None or not isinstance(model, nn.Module):
            return None
        subject = examining.Subject(
            self.checkpoint, model, prepare=self.prepare, places=places, evaluate=True
        )
        replay = examine(subject, stored, environment=self.environment, inputs=self.inputs)
        if not replay.ok:
            _log.warning(
                "checkpoint %d predicts otherwise here: %s", self.checkpoint.number, replay
            )
        return replay


def begin(
    checkpoint: ckptfmt.Checkpoint, when: When, inputs: Inputs, environment: Policy
) -> Proof:
    """Compare environment and preprocessing, before anything is read or changed.

    Raises:
        MismatchError: the policy is "strict", and the environment differs.
        UsageError: an argument is none of its values.
    """
    if when not in ("auto", "always", "never"):
        raise UsageError("expected replay='auto', 'always' or 'never'", found=when)
    return Proof(
        checkpoint=checkpoint,
        when=when,
        prepare=inputs.prepare,
        environment=checkpoint.check_environment(
            extra={"torch": numerics.record()}, policy=environment
        ),
        inputs=checkpoint.check_preprocessing(
            preprocessing=inputs.preprocessing, artifacts=inputs.artifacts
        ),
    )


def subject(
    checkpoint: ckptfmt.Checkpoint,
    model: nn.Module,
    *,
    prepare: probing.Prepare | None = None,
) -> examining.Subject:
    """Return a loaded model for `ckptfmt doctor`, as it is to be used.

    Args:
        checkpoint: What it was loaded from.
        model: In its mode, on its device; run under the caller's autocast.
        prepare: Preprocessing as it is to be used, for a probe that includes it.
    """
    return examining.Subject(checkpoint, model, prepare=prepare)


def diagnose(
    checkpoint: ckptfmt.Checkpoint, model: nn.Module, *, inputs: Inputs | None = None
) -> Replay:
    """Say whether a model predicts as when the checkpoint was saved, and if not, why.

    The model is run as it is: in its mode, under the autocast around this call. What running
    it changes is put back, as in `probe`.

    Args:
        inputs: How its inputs are made here.

    Raises:
        NotFoundError: the checkpoint has no probe.
    """
    stored = checkpoint.probe()
    if stored is None:
        raise NotFoundError(
            "the checkpoint has no probe: save with probe=ckptfmt_torch.probe(model, batch)",
            checkpoint=checkpoint.number,
        )
    proof = begin(checkpoint, "always", inputs or Inputs(), "off")
    own = subject(checkpoint, model, prepare=proof.prepare)
    return examine(own, stored, environment=proof.environment, inputs=proof.inputs)
