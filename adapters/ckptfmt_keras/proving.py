"""Around a restore: is it the same environment and preprocessing, and are predictions equal?"""

from __future__ import annotations

from typing import Any, Final

import ckptfmt
from ckptfmt.checks import LoadReport, Replay, proof
from ckptfmt.checks.environment import Finding, Policy
from ckptfmt.checks.proof import Artifacts as Artifacts
from ckptfmt.checks.proof import Inputs as Inputs
from ckptfmt.checks.proof import Proof
from ckptfmt.checks.proof import When as When
from ckptfmt_keras import examining, numerics, probing

# Said of the architecture, too, where they matter to the model.
_SAID: Final = frozenset(["keras.floatx", "keras.dtype_policy"])


def begin(
    checkpoint: ckptfmt.Checkpoint, when: When, inputs: Inputs | None, environment: Policy
) -> Proof:
    """Compare environment and preprocessing; see `ckptfmt.checks.proof.begin`."""
    return proof.begin(
        checkpoint,
        probing.FRAMEWORK,
        when=when,
        inputs=inputs,
        environment=environment,
        record=numerics.record(),
    )


def findings(begun: Proof) -> list[Finding]:
    """Return what is worth a line in the report."""
    return begun.findings(said=_SAID)


def completed(
    begun: Proof, report: LoadReport, checkpoint: ckptfmt.Checkpoint, model: Any
) -> LoadReport:
    """Return the report with what came of the stored probe; see `Proof.completed`."""
    return begun.completed(
        report, lambda: examining.Subject(checkpoint, model, prepare=begun.prepare)
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
    begun = begin(checkpoint, "never", inputs, "off")
    own = subject(checkpoint, model, prepare=begun.prepare, training=training)
    return begun.diagnosed(own)
