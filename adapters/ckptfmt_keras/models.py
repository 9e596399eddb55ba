"""Whole models in one call each: architecture, compile settings, weights, optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import keras

import ckptfmt
from ckptfmt.checks import LoadReport, Probe
from ckptfmt.checks.environment import Policy
from ckptfmt.errors import UsageError
from ckptfmt_keras import architecture, capturing, numerics, optimizers, proving, restoring

OWN: Final = "keras"  # the key below which the adapter records what it finds out by itself


def save_model(
    model: Any,
    store: ckptfmt.Store | str | os.PathLike[str],
    *,
    callbacks: Iterable[Any] = (),
    extra: Mapping[str, Any] | None = None,
    optimizer: bool = True,
    counters: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    probe: Probe | None = None,
    preprocessing: Any = None,
    artifacts: proving.Artifacts | None = None,
    background: bool = False,
) -> ckptfmt.Checkpoint | ckptfmt.PendingSave:
    """Commit a model as one checkpoint, from which `load_model` makes it again.

    Recorded without being asked, below `hyperparameters["keras"]`: class and settings of the
    optimizer, its schedule, loss and metrics.

    Args:
        model: Built; compiled or not.
        store: An open store, or a URL.
        callbacks, extra: Those whose state is saved, too; further sections, such as `data`.
        optimizer: Whether to save optimizer and metrics of a compiled model.
        hyperparameters: Your own plain values, stored beside the recorded ones.
        facts: More to record about the training, such as the batch size.
        background: Return when a private copy is made, as `Store.save_async` does.
        probe: What `probe(model, batch)` returned, for a load to show the same predictions.
        counters, metrics, tags, preprocessing, artifacts: As for `Store.save`.

    Raises:
        UsageError: the model is not built, or a name is the adapter's own.
        StateError, ConflictError, BackendError: as for `Store.save`.
    """
    if hyperparameters is not None and OWN in hyperparameters:
        raise UsageError(f"the name {OWN!r} among hyperparameters is the adapter's own")
    state = _state(model, callbacks, optimizer, extra or {})
    arguments: dict[str, Any] = {
        "counters": counters,
        "metrics": metrics,
        "hyperparameters": {
            **(hyperparameters or {}),
            OWN: {**recorded(model), **(facts or {})},
        },
        "architecture": architecture.describe(model),
        "tags": tags,
        "probe": probe,
        "preprocessing": preprocessing,
        "artifacts": artifacts,
        "environment": {OWN: numerics.record()},
    }
    if isinstance(store, ckptfmt.Store):
        commit: Callable[..., Any] = store.save_async if background else store.save
        saved: ckptfmt.Checkpoint | ckptfmt.PendingSave = commit(state, **arguments)
        return saved
    with ckptfmt.open(store) as opened:
        return opened.save(state, **arguments)


def _state(
    model: Any, callbacks: Iterable[Any], optimizer: bool, extra: Mapping[str, Any]
) -> dict[str, Any]:
    state = capturing.capture(model, callbacks=callbacks, optimizer=optimizer)
    if clash := sorted(state.keys() & extra.keys()):
        raise UsageError("these sections are the adapter's own", sections=clash)
    return {**state, **extra}


def load_model(
    checkpoint: ckptfmt.Checkpoint | str | os.PathLike[str],
    *,
    compile: bool = True,
    unsafe: Iterable[str] = (),
    rng: bool = False,
    replay: proving.When = "auto",
    inputs: proving.Inputs | None = None,
    environment: Policy = "warn",
    report: Callable[[LoadReport], object] | None = None,
) -> Any:
    """Return a new model: built, compiled as it was, with weights, optimizer and vocabularies.

    It may have been saved on another backend. Classes of yours are found by the name under
    which `keras.saving.register_keras_serializable` registered them; nothing is imported.

    Args:
        checkpoint: Or an address such as "runs/a@best:val_loss".
        compile: Whether to compile it, and to restore the optimizer.
        unsafe: Names of classes that may run code from the checkpoint, such as "Lambda".
        rng: Whether to continue the random generators, of the whole process too.
        replay, inputs, environment: As for `restore`; a stored probe is run, and the log says
            so where the model predicts otherwise.
        report: Called with what `restore` found.

    Raises:
        NotFoundError: there is none, or it was not saved by this adapter; or the probe is to be
            run always and there is none.
        UsageError: it holds no config, or a Lambda layer that was not allowed.
        MismatchError: a class is not registered, or the model built has other variables.
        IntegrityError, BackendError: as for `restore`.
    """
    found = _checkpoint(checkpoint)
    saved = architecture.recorded(found)
    model = architecture.build(saved, unsafe=unsafe, compile=compile)
    has_optimizer = any(section.name == "optimizer" for section in found.sections)
    restored = restoring.restore(
        found,
        model,
        rng=rng,
        optimizer=compile and has_optimizer,
        replay=replay,
        inputs=inputs,
        environment=environment,
    )
    if report is not None:
        report(restored)
    return model


def _checkpoint(checkpoint: ckptfmt.Checkpoint | str | os.PathLike[str]) -> ckptfmt.Checkpoint:
    if isinstance(checkpoint, ckptfmt.Checkpoint):
        return checkpoint
    return ckptfmt.open_checkpoint(checkpoint)


def recorded(model: Any) -> dict[str, Any]:
    """Return how a compiled model is trained, as plain values."""
    if getattr(model, "optimizer", None) is None:
        return {}
    with architecture.without_tensorflow():
        config = architecture.canonical(model.get_compile_config() or {})
        settings = optimizers.settings_of(model.optimizer)
    return {
        "optimizer": settings,
        "loss": config.get("loss"),
        "loss_weights": config.get("loss_weights"),
        "metrics": config.get("metrics"),
        "steps_per_execution": getattr(model, "steps_per_execution", 1),
        "accumulation": accumulation(model),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }


def accumulation(model: Any) -> int:
    """Return after how many batches the optimizer updates the weights."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return int(getattr(optimizer, "gradient_accumulation_steps", None) or 1)
