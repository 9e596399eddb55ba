"""Save and resume a run in one call each: state, counters, metrics, and how it was trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import ckptfmt
from ckptfmt.checks import Finding, LoadReport, Probe
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.group import Group
from ckptfmt_torch import (
    building,
    capturing,
    numerics,
    objects,
    optimizers,
    proving,
    ranks,
    restoring,
)

OWN = "torch"  # the key below which the adapter records what it finds out by itself


def save(
    store: ckptfmt.Store,
    *,
    counters: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    config: Any = None,
    loss: object = None,
    tags: tuple[str, ...] = (),
    probe: Probe | None = None,
    preprocessing: Any = None,
    artifacts: proving.Artifacts | None = None,
    background: bool = False,
    group: Group | None = None,
    frozen: str | Iterable[str] = (),
    verify_frozen: bool = False,
    **run: Any,
) -> ckptfmt.Checkpoint | ckptfmt.PendingSave:
    """Commit the whole run as one checkpoint.

    Recorded without being asked, below `hyperparameters["torch"]`: class and settings of each
    optimizer, scheduler and loss, and the batch size of the loader; and the tree of classes of
    `model` as architecture.

    Args:
        counters, hyperparameters: Such as `seen`, the examples shown; your own plain values.
        config, loss: Plain values to build the model from; a function or module, named only.
        background: Return when a private copy is made, as `Store.save_async` does.
        group: The processes that save together, such as `Ranks()`; required when
            `torch.distributed` has several, and called by all of them.
        probe: What `probe(model, batch)` returned, for a restore to show the same predictions.
        metrics, tags, preprocessing, artifacts, frozen, verify_frozen: As for `Store.save`;
            paths are those of `capture`, such as "model/backbone.*".
        run: As for `capture`.

    Raises:
        UsageError, StateError, ConflictError, BackendError: as `capture` and `Store.save`.
    """
    objects.expect(ckptfmt.Store, store)
    if hyperparameters is not None and OWN in hyperparameters:
        raise UsageError(f"the name {OWN!r} among hyperparameters is the adapter's own")
    if group is None and ranks.rank_and_world()[1] > 1:
        raise UsageError("several processes save together: pass group=ckptfmt_torch.Ranks()")
    commit: Callable[..., Any] = store.save_async if background else store.save
    saved: ckptfmt.Checkpoint | ckptfmt.PendingSave = commit(
        capturing.capture(**run),
        counters=counters,
        metrics=metrics,
        hyperparameters={**(hyperparameters or {}), OWN: recorded(run, loss)},
        architecture=building.record(run.get("model"), config),
        tags=tags,
        probe=probe,
        preprocessing=preprocessing,
        artifacts=artifacts,
        environment={OWN: numerics.record()},
        group=group,
        frozen=frozen,
        verify_frozen=verify_frozen,
    )
    return saved


def resume(
    store: ckptfmt.Store,
    *,
    checkpoint: ckptfmt.Checkpoint | None = None,
    config: Any = None,
    loss: object = None,
    **run: Any,
) -> tuple[ckptfmt.Checkpoint, LoadReport] | None:
    """Continue from the newest checkpoint of a store; None when there is none yet.

    The store's next save continues the lineage of that checkpoint.

    Args:
        checkpoint: Continue from this one of the store instead.
        config, loss: As given to `save`; a difference is a finding.
        run: As for `restore`.

    Returns:
        The checkpoint (its `counters` say where to go on) and what was restored. Findings
        tell of every recorded setting that is another one now.

    Raises:
        MismatchError, NotFoundError, IntegrityError, BackendError: as `restore`; all objects
            are then as they were.
        Exception: with replay="always", what the model raises; all is restored by then.
    """
    objects.expect(ckptfmt.Store, store)
    try:
        found = checkpoint or store.latest()
    except NotFoundError:
        return None
    options = {*inspect.signature(restoring.restore).parameters} - {"run"}
    given = {name: value for name, value in run.items() if name not in options}
    differences = _differences(found, recorded(given, loss))
    report = restoring.restore(found, differences=differences, config=config, **run)
    return found, report


def recorded(run: Mapping[str, Any], loss: object = None) -> dict[str, Any]:
    """Return how the run is trained, as plain values."""
    found: dict[str, Any] = {"loss": _name(loss)} if loss is not None else {}
    for path, value in objects.given(run):
        if isinstance(value, torch.optim.Optimizer):
            settings = {
                key: setting
                for key, setting in value.defaults.items()
                if isinstance(setting, bool | int | float | str | tuple | None)
            }
            found[path] = {"class": optimizers.class_of(value), "settings": settings}
        elif path.startswith(("scheduler", "scaler")):
            found[path] = {"class": _name(value)}
        elif isinstance(getattr(value, "batch_size", None), int):
            found[path] = {"class": _name(value), "batch_size": value.batch_size}
    return found


def _name(value: object) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{getattr(kind, '__qualname__', '')}"


def _differences(checkpoint: ckptfmt.Checkpoint, now: Mapping[str, Any]) -> list[Finding]:
    saved = (checkpoint.hyperparameters or {}).get(OWN, {})
    return [
        Finding(
            severity="warning",
            name=f"hyperparameters/{OWN}/{name}",
            saved=before,
            now=after,
            reason=f"was {before!r} when saved and is {after!r} now",
        )
        for name, before, after in building.parted(saved, now)
    ]
