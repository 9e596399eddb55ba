"""Weights by the names of layers, for fine-tuning: what is selected, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import ckptfmt
from ckptfmt import tree
from ckptfmt.checks import LoadReport, compare
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt_keras import assets, optimizers, variables
from ckptfmt_keras.architecture import recorded
from ckptfmt_keras.restoring import Plan, fill, row

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]

_AVERAGES: Final = f"optimizer/{optimizers.SLOTS}/average"


def load_weights(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    select: str | Sequence[str] | None = None,
    rename: Rename | None = None,
    view: str = "raw",
    progress: Callable[[str, int, int], None] | None = None,
) -> LoadReport:
    """Fill weights of a model by the names of its layers, for fine-tuning; nothing else.

    Args:
        select: Globs over stored names such as "dense_1/kernel" or "backbone/**": only these
            are loaded, the rest of the model stays. Without it all have to fit.
        rename: From stored names to names here: a dict of names or of leading parts of names,
            or a function.
        view: "raw", or "ema" for the averages of an optimizer with `use_ema=True`.
        progress: Called with (phase, done, total bytes).

    Raises:
        NotFoundError: `select` matches nothing, or there are no averages.
        MismatchError: a selected array has no place, another shape or another dtype.
        UsageError: two layers have one name, so that names do not tell them apart.
        IntegrityError, BackendError: as for `restore`.
    """
    if view not in ("raw", "ema"):
        raise UsageError("expected view='raw' or 'ema'", found=view)
    saved = recorded(checkpoint)
    content = checkpoint.tree()
    labels = {key: label for key, label in saved["labels"].items() if key in content["model"]}
    chosen = _renamed(labels, select, rename)
    entries = variables.weights(model)
    here = _unique({entry.key: entry.label for entry in entries})
    by_key = {entry.key: entry for entry in entries}
    averages = _averages(content, checkpoint) if view == "ema" else {}
    plan = Plan()
    for label, key in chosen.items():
        # Averages exist of what is trained; the rest has one value.
        plan.stored[label] = row(averages.get(key, content["model"][key]))
        if label in here:
            source = _AVERAGES if key in averages else "model"
            plan.places[f"{source}/{key}"] = by_key[here[label]].variable
    for label, key in here.items():
        if label in chosen or select is None:
            plan.wanted[label] = variables.described(by_key[key].variable)
    report = compare(plan.stored, plan.wanted)
    report.raise_for_mismatch(checkpoint=f"{checkpoint.number:010d}")
    fill(plan, checkpoint, progress, resumes=False)
    assets.finish(model)
    return report


def _renamed(
    labels: Mapping[str, str], select: str | Sequence[str] | None, rename: Rename | None
) -> dict[str, str]:
    """Return name here → stored key of what was selected."""
    nested = _nested(_unique(labels))
    if select is not None:
        patterns = [select] if isinstance(select, str) else list(select)
        for one in patterns:
            if not tree.filter(nested, tree.matcher(one)):
                raise NotFoundError("nothing in the model matches", select=one)
        nested = tree.filter(nested, tree.matcher(patterns))
    if rename is not None:
        nested = tree.rename(nested, rename)
    return {path: str(key) for path, key in tree.paths(nested)}


def _unique(labels: Mapping[str, str]) -> dict[str, str]:
    """Return label → key."""
    found: dict[str, str] = {}
    for key, label in labels.items():
        if label in found:
            raise UsageError("two variables have one name: name the layers", name=label)
        found[label] = key
    return found


def _nested(labels: Mapping[str, str]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for label, key in labels.items():
        *above, last = label.split("/")
        place = result
        for name in above:
            place = place.setdefault(name, {})
        place[last] = key
    return result


def _averages(content: Mapping[str, Any], checkpoint: ckptfmt.Checkpoint) -> Mapping[str, Any]:
    place: Any = content
    for name in _AVERAGES.split("/"):
        place = place.get(name) if isinstance(place, Mapping) else None
    if place is None:
        raise NotFoundError(
            "the checkpoint has no averages: the optimizer was made without use_ema=True",
            checkpoint=checkpoint.number,
        )
    found: Mapping[str, Any] = place
    return found
