"""Around a restore: is it the same environment and preprocessing, and are predictions equal?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import ckptfmt
from ckptfmt.checks import LoadReport, Replay, proof
from ckptfmt.checks.environment import Policy
from ckptfmt.checks.proof import Artifacts as Artifacts
from ckptfmt.checks.proof import Inputs as Inputs
from ckptfmt.checks.proof import Proof
from ckptfmt.checks.proof import When as When
from ckptfmt.errors import NotFoundError
from ckptfmt_torch import examining, numerics, objects, probing, ranks


def begin(
    checkpoint: ckptfmt.Checkpoint,
    when: When,
    inputs: Inputs | None,
    environment: Policy,
    model: object = None,
) -> Proof:
    """Compare environment and preprocessing; see `ckptfmt.checks.proof.begin`."""
    objects.expect(ckptfmt.Checkpoint, checkpoint)
    return proof.begin(
        checkpoint,
        probing.FRAMEWORK,
        when=when,
        inputs=inputs,
        environment=environment,
        record=numerics.record(),
        lacking=NotFoundError(
            "no probe can be run: save with probe=ckptfmt_torch.probe(model, batch), and"
            " restore a single model",
            checkpoint=checkpoint.number,
        ),
        single=isinstance(model, nn.Module),
    )


def completed(
    begun: Proof,
    report: LoadReport,
    checkpoint: ckptfmt.Checkpoint,
    model: object,
    places: Mapping[str, torch.Tensor],
) -> LoadReport:
    """Return the report with what came of the stored probe; see `Proof.completed`.

    Args:
        places: Stored path → the tensor of the model that was filled from it.
    """
    # A model that several processes hold together may wait for all of them when it runs.
    alone = ranks.rank_and_world()[1] == 1
    if not isinstance(model, nn.Module) or (begun.stored is None and not alone):
        return report
    return begun.completed(
        report,
        lambda: examining.Subject(
            checkpoint, model, prepare=begun.prepare, places=places, evaluate=True
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
    begun = begin(checkpoint, "never", inputs, "off")
    return begun.diagnosed(subject(checkpoint, model, prepare=begun.prepare))
