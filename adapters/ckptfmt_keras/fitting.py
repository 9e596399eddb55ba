"""Training counted in examples: one `fit` for each virtual epoch, as if it were one for all.

restore ─► fit to the next edge ─► validate ─► save ─┬► ... ─► the stop point
           batches from the position on              ╰─ generators as they were saved
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

import ckptfmt
from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError, NotFoundError, UsageError
from ckptfmt.training import Progress
from ckptfmt_keras import feeding, generators, models, resuming, variables
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
    on_resume: Callable[[Progress], object] | None = None,
    **options: Any,
) -> Any:
    """Train to the stop point of a progress, with a checkpoint at each edge; or go on.

    Keras' epochs are the virtual ones: validation, `on_epoch_end` and learning rate schedules
    happen at edges. The same program, started again after a kill, goes on at the next example,
    within a virtual epoch, too, and on one backend ends with the bits of an uninterrupted run.

    Args:
        model: Compiled.
        data: Arrays as (x, y) or (x, y, sample_weight), shuffled anew in each pass by `seed`;
            a `PyDataset`, `tf.data.Dataset`, `DataLoader` or another iterable, in its order;
            or a function that returns a pass. Another order going on is a finding.
        progress: Total and virtual epochs of a run that begins; one that goes on takes what
            its checkpoint says, and `checkpoint.progress` is the one that counts.
        checkpoint: Where and what to save; made without `save_freq`.
        batch_size: Examples of a batch of arrays; of others, as they come. It may be another
            one when the run goes on: no edge moves, and checkpoints say from where on.
        callbacks: Others; their state is part of each checkpoint.
        verbose: As for `fit`.
        strict: As for `restore`.
        on_resume: Called with the progress of a run that goes on, before it does: the place
            to `declare` data that has grown, or to `extend` the stop point.
        options: Further arguments of `fit`, such as `validation_data`.

    Returns:
        The `History` of the whole run. `checkpoint.report` says what was restored.

    Raises:
        UsageError: arguments contradict each other.
        SystemExit: after a signal, with the checkpoint committed.
        MismatchError: arrays have another length than the progress says: nobody declared it.
        MismatchError, IntegrityError, BackendError: as `restore` and `Store.save`.
    """
    _check(checkpoint, options, batch_size)
    others = [one for one in callbacks if one is not checkpoint]
    feed = feeding.feed_of(data, batch_size, seed=seed)
    checkpoint.feeds(feed, progress, others, validation=options.get("validation_data"))
    whole = _Whole(others, checkpoint, model, verbose, feed)
    _restore_or_begin(whole, batch_size, strict=strict, on_resume=on_resume)
    try:
        while whole.progress.remaining and not whole.stopped:
            _fit_to_edge(whole, batch_size, {"verbose": verbose, **options})
            whole.put_back_weights(last=not whole.progress.remaining or whole.stopped)
        whole.put_back_rest()
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


def _restore_or_begin(
    whole: _Whole,
    batch_size: int,
    *,
    strict: bool,
    on_resume: Callable[[Progress], object] | None,
) -> None:
    checkpoint, model = whole.checkpoint, whole.trained
    try:
        found = checkpoint.store.latest()
    except NotFoundError:
        checkpoint.progress = _begun(whole.progress, model)
        _declare(checkpoint.progress, whole.feed, batch_size)
        return
    progress = resuming.progress_of(found)
    before = progress.segments[-1].global_batch
    if on_resume is not None:
        on_resume(progress)
    _declare(progress, whole.feed, batch_size)
    # All that can be refused is refused before a weight is changed.
    findings = whole.feed.restore(found.tree().get("data", {}))
    if findings:
        progress.declare(data_replay=True)
    if before not in (None, progress.segments[-1].global_batch):
        findings += _schedules(found)
    late = resuming.begin(found, model, checkpoint, strict=strict, progress=progress)
    report = dataclasses.replace(late.report, findings=(*late.report.findings, *findings))
    whole.late, checkpoint.report = late, report
    whole.stopped = checkpoint.has_stopped()


def _begun(progress: Progress, model: Any) -> Progress:
    """Return the progress of a run that begins; Keras stores gradients that wait."""
    batches = models.accumulation(model)
    if batches == 1:
        return progress
    plain = progress.state()
    plain["progress"]["stores_accumulators"] = True
    progress = Progress.restore(plain)
    progress.declare(accumulation=batches)
    return progress


def _declare(progress: Progress, feed: Feed, batch_size: int) -> None:
    """Record how arrays are fed; a length that is not what was declared is refused."""
    if not isinstance(feed, feeding.Arrays):
        return
    declared = progress.segments[-1].dataset_size
    if declared not in (None, feed.size):
        raise MismatchError(
            "the data has another length than the progress of the run says: declare() it there,"
            " where a run goes on by fit_virtual(..., on_resume=lambda progress: "
            f"progress.declare(dataset_size={feed.size}))",
            expected=declared,
            found=feed.size,
        )
    progress.declare(global_batch=batch_size, dataset_size=feed.size)


def _schedules(found: ckptfmt.Checkpoint) -> list[Finding]:
    saved = (found.hyperparameters or {}).get(models.OWN, {}).get("optimizer") or {}
    schedule = (saved.get("inner") or saved).get("schedule")
    if schedule is None:
        return []
    return [
        Finding(
            severity="warning",
            name="schedule",
            saved=schedule.get("class_name"),
            now=schedule.get("class_name"),
            reason="the batch size changed, and this schedule counts steps: its learning rates"
            " come at other examples than they would have",
        )
    ]


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
        feed: Feed,
    ) -> None:
        super().__init__(
            [*others, checkpoint], add_history=True, add_progbar=verbose != 0, model=model,
            verbose=verbose, epochs=None, steps=None,
        )  # fmt: skip
        # Ours comes last: what others do at the end of an epoch is part of the checkpoint.
        self.callbacks.sort(key=lambda one: one is checkpoint)
        self.checkpoint, self.trained = checkpoint, model
        self.history = self._history
        self.late: Late | None = None
        self.stopped = False  # somebody else than the counter stopped
        self._begun = False
        self._drawn = generators.capture_host()
        self._fresh = True  # a fit has begun, and no step of it
        self._raw: list[Any] | None = None
        self.feed = feed

    @property
    def progress(self) -> Progress:
        """The one that counts: a resumed run has that of its checkpoint."""
        counting = self.checkpoint.progress
        assert counting is not None  # `feeds` gave it one
        return counting

    def next(self, steps: int) -> None:
        """Prepare for a call of `fit` that trains one virtual epoch, or the rest of one."""
        self._fresh = True
        self.set_params({**self.params, "epochs": self.progress.virtual_epochs, "steps": steps})

    def put_back_rest(self) -> None:
        """Of a run that had ended already: history, callbacks and generators."""
        if self.late is not None:
            self.late.callbacks(self.trained)
            self.late.generators()
            self.late = None

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
