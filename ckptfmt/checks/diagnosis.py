"""Why do outputs differ? Causes with their evidence, in the order in which to believe them.

Pure: adapters observe and experiment, this decides. Three strengths of evidence:

    proven    taking the cause away made the outputs agree, or two runs here disagree
    observed  something is not as it was when the checkpoint was saved, and it matters
    possible  something differs that may matter

A cause that explains the difference by experiment comes before any that was only seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ckptfmt.checks.environment import Finding

Strength = Literal["proven", "observed", "possible"]
Name = Literal[
    "missing array",
    "changed array",
    "averaged weights",
    "preprocessing",
    "train mode",
    "quantization",
    "precision",
    "settings",
    "non-determinism",
    "backend",
    "environment",
    "other outputs",
    "unknown",
]

# Of equally strong causes: first what changes the function that is computed, then how it is
# computed; within each what is most often to blame.
ORDER: Final[tuple[Name, ...]] = (
    "missing array", "averaged weights", "changed array", "preprocessing", "train mode",
    "quantization", "settings", "precision", "non-determinism", "backend", "environment",
    "other outputs", "unknown",
)  # fmt: skip
_STRENGTHS: Final[tuple[Strength, ...]] = ("proven", "observed", "possible")

REMEDIES: Final[dict[Name, str]] = {
    "missing array": "load a checkpoint that has it, or take it out of the model",
    "changed array": "restore the checkpoint again, and change nothing before predicting",
    "averaged weights": "restore the same view, averaged or raw, that made the outputs",
    "preprocessing": "restore the stored preprocessing and artifacts, and use them",
    "train mode": "predict in inference mode: model.eval(), or training=False in Keras",
    "quantization": "compare with outputs of the quantised model, or load without quantising",
    "precision": "compute in the stored dtype, without autocast",
    "settings": "give the setting the value that it had when saved",
    "non-determinism": "use the adapter's deterministic(seed), or accept the spread",
    "backend": "run where it was saved, or take the difference as that of another device",
    "environment": "install what `ckptfmt env STORE@N --requirements` prints",
    "other outputs": "return what the model returned when the probe was made",
    "unknown": "look at what was not compared: the code of the model, and of what calls it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One reason why outputs may differ."""

    name: Name
    strength: Strength
    evidence: str  # what was seen, with the names of what it concerns

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.name]

    def __str__(self) -> str:
        return f"{self.name} ({self.strength}): {self.evidence}; {self.remedy}"


def diagnose(found: Iterable[Cause]) -> tuple[Cause, ...]:
    """Return causes in order: by strength of the evidence, then by `ORDER`.

    Of several with one name the strongest stays, with the evidence of all. Without any, the
    answer is "unknown", never an empty one.
    """
    by_name: dict[Name, list[Cause]] = {}
    for cause in found:
        by_name.setdefault(cause.name, []).append(cause)
    merged = [_merged(causes) for causes in by_name.values()]
    if not merged:
        text = "nothing that was looked at differs from when the checkpoint was saved"
        return (Cause(name="unknown", strength="possible", evidence=text),)
    return tuple(sorted(merged, key=_rank))


def arrays(missing: Sequence[str], changed: Sequence[str]) -> list[Cause]:
    """Return the causes that lie in the weights.

    Args:
        missing: Arrays of the model that were not filled from the checkpoint.
        changed: Arrays that are not, bit for bit, what the checkpoint has.
    """
    found = []
    if missing:
        text = f"{_some(missing)} not filled from the checkpoint, but as the model began"
        found.append(Cause(name="missing array", strength="observed", evidence=text))
    if changed:
        text = f"{_some(changed)} not what the checkpoint holds"
        found.append(Cause(name="changed array", strength="observed", evidence=text))
    return found


def preprocessing(findings: Iterable[Finding], prepared: float | None) -> list[Cause]:
    """Return the causes that lie in the inputs.

    Args:
        findings: Of `checks.inputs.compare`.
        prepared: How far what preprocessing makes here of the probe's inputs is from what it
            made when saved; None if it is no part of the probe.
    """
    found = [
        Cause(
            name="preprocessing",
            strength="observed",
            evidence=f.change(),
        )
        for f in findings
    ]
    if prepared:
        text = (
            f"preprocessing makes other inputs of the same batch, off by up to {prepared:.3g}"
        )
        found.append(Cause(name="preprocessing", strength="observed", evidence=text))
    return found


def repetition(spread: float, difference: float, noise: float) -> list[Cause]:
    """Return the cause that two runs on the same inputs do not agree, if they do not.

    Args:
        spread: Largest difference between runs here.
        difference: Largest difference from the stored outputs.
        noise: The bound on what rounding may do.
    """
    if not spread > 0:
        return []
    # Runs that spread over a good part of the difference explain it.
    explains = 4 * spread >= difference
    text = f"two runs here differ by up to {spread:.3g}, stored outputs by {difference:.3g}"
    strength: Strength = "proven" if explains else "observed" if spread > noise else "possible"
    return [Cause(name="non-determinism", strength=strength, evidence=text)]


def environment(findings: Iterable[Finding], *, alone: bool) -> list[Cause]:
    """Return the cause that something around the model is another one, if something is.

    Args:
        alone: Whether nothing else was seen: what remains is then more than possible.
    """
    counts = [f for f in findings if f.severity != "info"]
    if not counts:
        return []
    shown = "; ".join(f"{f.change()}: {f.reason}" for f in counts[:3])
    more = f"; and {len(counts) - 3} more" if len(counts) > 3 else ""
    rest = "; nothing else that was looked at accounts for it" if alone else ""
    strength: Strength = "observed" if alone else "possible"
    return [Cause(name="environment", strength=strength, evidence=shown + more + rest)]


def _merged(causes: Sequence[Cause]) -> Cause:
    best = min(causes, key=_rank)
    texts = dict.fromkeys([best.evidence, *(cause.evidence for cause in causes)])
    return Cause(name=best.name, strength=best.strength, evidence="; ".join(texts))


def _rank(cause: Cause) -> tuple[int, int]:
    return _STRENGTHS.index(cause.strength), ORDER.index(cause.name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    verb = " is" if len(names) == 1 else " are"
    return ", ".join(names[:3]) + more + verb
