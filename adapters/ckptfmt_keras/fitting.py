"""Training counted in examples: one `fit` for each virtual epoch, as if it were one for all.

restore ─► fit to the next edge ─► validate ─► save ─┬► ... ─► the stop point
           batches from the position on              ╰─ generators as they were saved
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from ckptfmt.checks import LoadReport
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.training import Progress
from ckptfmt_keras import feeding, generators, resuming, variables
from ckptfmt_keras.checkpointing import Checkpoint
from ckptfmt_keras.feeding import Feed, Steps
from ckptfmt_keras.resuming import Late


def fit_virtual(
    model: Any,
    data: Any,
    progress: Progress,
    *,
    checkpoint: Checkpoint,
    batch_size: int,
    seed: int = 0,
    callbacks: Iterable[Any] = (),
    verbose: int = 0,
    strict: bool = True,
    **options: Any,
) -> Any:
    """Train to the stop point of a progress, with a checkpoint at each edge; or go on.

    Keras' epochs are the virtual ones: validation, `on_epoch_end` and learning rate schedules
    happen at edges. The same program, started again after a kill, goes on at the next example,
    within a virtual epoch, too, and on one backend ends with the bits of an uninterrupted run.

    Args:
        model: Compiled.
        data: Arrays as (x, y) or (x, y, sample_weight), shuffled anew in each pass by `seed`;
            a `PyDataset`, `tf.data.Dataset`, `DataLoader` or another iterable, passed over in
            its own order; or a function that returns the batches of a pass.
        progress: Total and virtual epochs of a run that begins; one that goes on takes what
            its checkpoint says, and `checkpoint.progress` is the one that counts.
        checkpoint: Where and what to save; made without `save_freq`.
        batch_size: Examples of a batch of arrays; of others, as they come.
        callbacks: Others; their state is part of each checkpoint.
        verbose: As for `fit`.
        strict: As for `restore`.
        options: Further arguments of `fit`, such as `validation_data`.

    Returns:
        The `History` of the whole run.

    Raises:
        UsageError: arguments contradict each other.
        SystemExit: after a signal, with the checkpoint committed.
        MismatchError, IntegrityError, BackendError: as `restore` and `Store.save`.
    """
    _check(checkpoint, options, batch_size)
    others = [one for one in callbacks if one is not checkpoint]
    feed = feeding.feed_of(data, batch_size, seed=seed)
    checkpoint.feeds(feed, progress, others)
    whole = _Whole(others, checkpoint, model, verbose, progress.virtual_epochs, feed)
    whole.report = _restored(whole, strict=strict)
    try:
        while whole.progress.remaining and not whole.stopped:
            _fit_to_edge(whole, batch_size, {"verbose": verbose, **options})
            whole.put_back_weights(last=not whole.progress.remaining or whole.stopped)
    finally:
        whole.end()
    return whole.history


def _fit_to_edge(whole: _Whole, batch_size: int, options: Mapping[str, Any]) -> None:
    k = whole.progress.virtual_epoch
    gap = whole.progress.edge(k + 1) - whole.progress.seen
    likely = -(-gap // batch_size)
    # Of a stream it is not known; each batch has an example, and the counter ends the epoch.
    steps = likely if isinstance(whole.feed, feeding.Arrays) else gap
    whole.checkpoint.limit = steps
    whole.next(likely)
    data = Steps(whole.feed, steps)
    try:
        whole.trained.fit(
            data, initial_epoch=k, epochs=k + 1, callbacks=whole, shuffle=False, **options
        )
    except Exception as error:
        if data.failed is not None:
            raise data.failed from error
        raise


def _restored(whole: _Whole, *, strict: bool) -> LoadReport | None:
    checkpoint, model = whole.checkpoint, whole.trained
    try:
        found = checkpoint.store.latest()
    except NotFoundError:
        return None
    late = resuming.begin(found, model, checkpoint, strict=strict)
    feed = checkpoint.feed
    findings = [] if feed is None else feed.restore(found.tree().get("data", {}))
    whole.late = late
    return _with(late.report, findings)


def _with(report: LoadReport, findings: Iterable[Any]) -> LoadReport:
    return dataclasses.replace(report, findings=(*report.findings, *findings))


def _check(checkpoint: Checkpoint, options: Mapping[str, Any], batch_size: int) -> None:
    resuming.check_resumable(checkpoint)
    if checkpoint.settings.save_freq not in (None, "epoch"):
        raise UsageError("fit_virtual saves at edges: make the Checkpoint without save_freq")
    own = {"epochs", "initial_epoch", "steps_per_epoch", "shuffle", "x", "y", "batch_size"}
    if clash := sorted(own & options.keys()):
        raise UsageError("fit_virtual decides about these itself", arguments=clash)
    if batch_size < 1:
        raise UsageError("a batch has at least one example", batch_size=batch_size)


class _Whole(keras.callbacks.CallbackList):  # type: ignore[misc]  # untyped
    """The callbacks of all calls of `fit`: for them it is one that begins and ends once."""

    def __init__(
        self,
        others: list[Any],
        checkpoint: Checkpoint,
        model: Any,
        verbose: int,
        epochs: int,
        feed: Feed,
    ) -> None:
        super().__init__(
            [*others, checkpoint], add_history=True, add_progbar=verbose != 0, model=model,
            verbose=verbose, epochs=epochs, steps=None,
        )  # fmt: skip
        # Ours comes last: what others do at the end of an epoch is part of the checkpoint.
        self.callbacks.sort(key=lambda one: one is checkpoint)
        self.checkpoint, self.trained = checkpoint, model
        self.history = self._history
        self.late: Late | None = None
        self.report: LoadReport | None = None
        self.stopped = False  # somebody else than the counter stopped
        self._begun = False
        self._drawn = generators.capture_host()
        self._fresh = True  # a fit has begun, and no step of it
        self._raw: list[Any] | None = None
        self._epochs, self.feed = epochs, feed

    @property
    def progress(self) -> Progress:
        """The one that counts: a resumed run has that of its checkpoint."""
        counting = self.checkpoint.progress
        assert counting is not None  # `feeds` gave it one
        return counting

    def next(self, steps: int) -> None:
        """Prepare for a call of `fit` that trains one virtual epoch, or the rest of one."""
        self._fresh = True
        self.set_params({**self.params, "epochs": self._epochs, "steps": steps})

    def on_train_begin(self, logs: Any = None) -> None:
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Say nothing yet: see `end`."""
        self._last_logs = logs

    def end(self) -> None:
        """Tell all callbacks that the training has ended."""
        if self._begun:
            self._begun = False
            super().on_train_end(getattr(self, "_last_logs", None))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self.late is not None:
            self.late.callbacks(self.trained)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self._fresh:  # all that a fit draws before its first step has been drawn
            self._fresh = False
            if self.late is None:
                generators.restore_host(self._drawn)
            else:
                first = self.feed.reader()(0)
                self.late.metrics(self.trained, first)
                self.late.generators()
                self.late = None
        super().on_train_batch_begin(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # The counter stops a fit at its edge; whoever stops it now wants the whole to end.
        ended = self.checkpoint.at_edge
        self.trained.stop_training = self.trained.stop_training and not ended
        super().on_epoch_end(epoch, logs)
        self.stopped = bool(self.trained.stop_training)
        self._drawn = generators.capture_host()
        if _averages(self.trained):
            self._raw = [
                np.array(variables.array_of(one)) for one in self.trained.trainable_variables
            ]

    def put_back_weights(self, *, last: bool) -> None:
        """Undo what Keras does at the end of a fit: the averages are the weights then."""
        if self._raw is not None and not last:
            for variable, raw in zip(self.trained.trainable_variables, self._raw, strict=True):
                variable.assign(raw)
        self._raw = None


def _averages(model: Any) -> bool:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return bool(getattr(optimizer, "use_ema", False))
