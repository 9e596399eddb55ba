"""Going on where a checkpoint was: what to restore before `fit`, and what only within it.

`fit` draws random numbers, resets metrics and callbacks before its first step. So weights and
optimizer are restored before, callbacks and history at the first epoch's begin, generators
there or, where a pass is gone on with, right before the first step.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import keras

import ckptfmt
from ckptfmt.checks import Finding, LoadReport
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.training import Progress
from ckptfmt_keras import architecture, capturing, generators, models, restoring
from ckptfmt_keras import callbacks as states
from ckptfmt_keras.checkpointing import KEY, Checkpoint, not_by_a_callback
from ckptfmt_keras.ordering import Order

_log: Final = logging.getLogger("ckptfmt")


class Resume(keras.callbacks.Callback):  # type: ignore[misc]  # untyped
    """Continue the run of a `Checkpoint` from within `fit`; begin it when there is none.

        checkpoint = Checkpoint("runs/a", callbacks=[stop])
        model.fit(x, y, epochs=9, callbacks=[stop, checkpoint, Resume(checkpoint)])

    The same program, started again, goes on at the epoch after the newest checkpoint. A
    checkpoint from within an epoch resumes at the begin of that epoch, which shows the
    examples of its first part again; `fit_virtual` goes on at the next example instead.
    Nothing is deleted, and the next `fit` of the model begins with epoch 0 again.

    Args:
        checkpoint: The callback that saves.
        strict: As for `restore`.

    Raises:
        UsageError: the callback saves weights only, from which no run goes on.
    """

    def __init__(self, checkpoint: Checkpoint, *, strict: bool = True) -> None:
        super().__init__()
        check_resumable(checkpoint)
        self.checkpoint = checkpoint
        self.report: LoadReport | None = None  # what was restored; None at the start of a run
        self.initial_epoch = 0
        self._strict = strict
        self._late: Late | None = None
        self._order: Order | None = None
        self._restored: Any = None  # the model, until its fit has ended

    def restore(self, model: Any) -> None:
        """Restore what is restored before the first epoch; by itself, in `on_train_begin`.

        Raises:
            MismatchError, NotFoundError, IntegrityError, BackendError: as `restore`.
            UsageError: the checkpoint cannot be resumed from.
        """
        self._restored = model
        try:
            found = self.checkpoint.store.latest()
        except NotFoundError:
            return
        self._late = begin(found, model, self.checkpoint, strict=self._strict)
        self.report = self._late.report
        self.initial_epoch = int(found.counters[KEY]["epoch"])

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore what is restored before the first epoch."""
        model = self.model
        if self._restored is not model:
            self.restore(model)
        self._compare_steps()
        self._order = Order()
        unknown = self._order.unknown()
        if unknown is not None and self.initial_epoch:
            self._found("data", None, None, f"the data may come in another order: {unknown}")
        stopped = self.checkpoint.has_stopped()
        ended = (self.params or {}).get("epochs") or 0
        model._initial_epoch = max(self.initial_epoch, ended if stopped else 0)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Restore what `fit` has reset since."""
        self._put_back()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let the next `fit` begin with its first epoch."""
        self._put_back()  # of a run in which nothing was left to train
        self.model._initial_epoch = None
        self._restored = None

    def _compare_steps(self) -> None:
        """Say when epochs have more or fewer batches now: only `fit` knows how many."""
        now = (self.params or {}).get("steps")
        if self.report is None or self._late is None or now is None:
            return
        recorded = self._late.checkpoint.hyperparameters or {}
        saved = recorded.get(models.OWN, {}).get("fit", {})
        if saved.get("steps") in (None, now):
            return
        self._found(
            f"hyperparameters/{models.OWN}/fit/steps",
            saved["steps"],
            now,
            f"an epoch had {saved['steps']} batches, of up to {saved.get('batch_size')}"
            f" examples, and has {now} now: the batch size or the data is another one",
        )

    def _found(self, name: str, saved: object, now: object, reason: str) -> None:
        """Add a finding to the report; the log has it, too."""
        _log.warning("going on with another fit: %s", reason)
        finding = Finding(severity="warning", name=name, saved=saved, now=now, reason=reason)
        if self.report is not None:
            found = (*self.report.findings, finding)
            self.report = dataclasses.replace(self.report, findings=found)

    def _put_back(self) -> None:
        if self._late is not None:
            self._late.callbacks(self.model)
            self._late.generators()
            self._late.order(self._order)
            self._late = None


def resume(
    model: Any,
    store: Checkpoint | ckptfmt.Store | str | os.PathLike[str],
    *,
    strict: bool = True,
) -> Resume:
    """Restore a compiled model at once, and return the callback for the `fit` that goes on.

        going_on = ckptfmt_keras.resume(model, "runs/a")
        model.fit(x, y, epochs=9, callbacks=[going_on.checkpoint, going_on])

    Generators, history and other callbacks are restored within `fit`, which draws random
    numbers and resets callbacks before its first step: without the callback a run goes on
    with the right weights, and other numbers. With an empty store a run begins.

    Args:
        model: Compiled, of the same architecture.
        store: A URL or an open store; or the `Checkpoint` that is to save, with its settings
            and the callbacks whose state belongs to the run.
        strict: As for `restore`.

    Returns:
        A `Resume`: `initial_epoch` is the next one, `report` what was restored or None.

    Raises:
        UsageError: the checkpoint holds weights only, or was not saved by a callback.
        MismatchError, NotFoundError, IntegrityError, BackendError: as `restore`.
    """
    checkpoint = store if isinstance(store, Checkpoint) else Checkpoint(store)
    found = Resume(checkpoint, strict=strict)
    found.restore(model)
    return found


class Late:
    """What is restored within `fit` only."""

    def __init__(
        self,
        checkpoint: ckptfmt.Checkpoint,
        model: Any,
        others: Iterable[Any],
        report: LoadReport,
    ) -> None:
        content = checkpoint.tree()
        self.report = report
        self.checkpoint = checkpoint
        self._others = list(others)
        self._states = restoring.loaded(content.get("callbacks", {}))
        stored = restoring.loaded(content[capturing.RNG])
        self._apply, _ = generators.plan(stored, model, capturing.RNG)

    def callbacks(self, model: Any) -> None:
        """Give the callbacks of the `fit` their state back, its history too."""
        history = getattr(model, "history", None)
        given = [*self._others, *([history] if hasattr(history, "history") else [])]
        states.restore(self._states, given)

    def generators(self) -> None:
        """Continue every random generator."""
        self._apply()

    def order(self, of_fit: Order | None) -> None:
        """Continue the order of the data of a plain `fit`."""
        if of_fit is not None:
            of_fit.restore(restoring.loaded(self.checkpoint.tree().get("data", {})))

    def metrics(self, model: Any, batch: Any) -> None:
        """Go on with the means of an epoch that was interrupted.

        Args:
            batch: The next one, from which metrics are built that are not yet.
        """
        if not self.checkpoint.counters[KEY]["batches"]:
            return
        if not restoring.restore_metrics(self.checkpoint, model):
            model._symbolic_build(data_batch=batch)
            restoring.restore_metrics(self.checkpoint, model)


def begin(
    found: ckptfmt.Checkpoint,
    model: Any,
    checkpoint: Checkpoint,
    *,
    strict: bool,
    progress: Progress | None = None,
) -> Late:
    """Restore weights and optimizer, and where the run was; return the rest.

    Args:
        progress: What the checkpoint says of it, with what the caller has changed since.

    Raises:
        MismatchError, NotFoundError, IntegrityError, BackendError: as `restore`.
        UsageError: the checkpoint cannot be resumed from.
    """
    saved = (found.hyperparameters or {}).get(models.OWN, {})
    if saved.get("weights_only"):
        raise _weights_only(found.number)
    differences = settings_that_differ(saved, models.recorded(model))
    where = found.counters.get(KEY) or {}
    if where.get("batches") and checkpoint.feed is None:
        differences.append(_shown_again(int(where["batches"])))
    report = restoring.restore(
        found,
        model,
        callbacks=checkpoint.callbacks,
        strict=strict,
        rng=False,
        differences=differences,
    )
    checkpoint.going_on(found.counters, progress)
    if where.get("batches") and checkpoint.feed is None and checkpoint.progress is not None:
        checkpoint.progress.declare(data_replay=True)
    return Late(found, model, checkpoint.callbacks, report)


def progress_of(found: ckptfmt.Checkpoint) -> Progress:
    """Return the progress that a callback saved.

    Raises:
        UsageError: the checkpoint was not saved by a callback, or by one without progress.
    """
    if not isinstance(found.counters.get(KEY), Mapping):
        raise not_by_a_callback(found.counters)
    try:
        return Progress.restore(found.counters)
    except NotFoundError as error:
        raise UsageError(
            "this run was saved without virtual epochs: go on with fit() and Resume",
            checkpoint=found.number,
        ) from error


def check_resumable(checkpoint: Checkpoint) -> None:
    """Raise unless what the callback saves can be resumed from.

    Raises:
        UsageError: it saves weights only.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise UsageError("expected the Checkpoint that saves", found=type(checkpoint).__name__)
    if checkpoint.settings.save_weights_only:
        raise _weights_only(None)


def settings_that_differ(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Finding]:
    """Return a finding for each recorded setting that is another one now."""
    before = {name: value for name, value in saved.items() if name in now}
    return [
        Finding(
            severity="warning",
            name=f"hyperparameters/{models.OWN}/{path}",
            saved=a,
            now=b,
            reason=f"was {a!r} when saved and is {b!r} now",
        )
        for path, a, b in architecture.parted(before, dict(now))
    ]


def _weights_only(number: int | None) -> UsageError:
    return UsageError(
        "a run cannot go on from weights alone: optimizer, generators and counters are missing;"
        " save with save_weights_only=False",
        checkpoint=number,
    )


def _shown_again(batches: int) -> Finding:
    return Finding(
        severity="warning",
        name="data",
        saved=batches,
        now=0,
        reason="`fit` cannot begin within an epoch: its first batches are shown again, to"
        " weights that have seen them; fit_virtual goes on at the next example",
    )
