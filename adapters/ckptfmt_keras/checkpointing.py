"""The callback that saves: the whole run in one commit, when it is due."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import keras

import ckptfmt
from ckptfmt import loops
from ckptfmt.checks import LoadReport
from ckptfmt.errors import UsageError
from ckptfmt.training import Due, EarlyStopping, Progress
from ckptfmt_keras import callbacks as states
from ckptfmt_keras import counting, measuring, models, probing, settings
from ckptfmt_keras.counting import Counter
from ckptfmt_keras.feeding import Feed
from ckptfmt_keras.ordering import Order

KEY: Final = "keras"  # the counter that holds epochs and batches

_log: Final = logging.getLogger("ckptfmt")


class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]  # untyped
    """Save a run from within `fit`: `keras.callbacks.ModelCheckpoint`'s words.

        checkpoint = Checkpoint("runs/a", monitor="val_loss", save_best_only=True)
        model.fit(x, y, validation_data=val, epochs=9, callbacks=[stop, checkpoint])

    Each checkpoint is the whole run in one commit: weights, optimizer, metrics, every random
    generator, the callbacks named, history, counters and what trained it. Give it last, so
    that it sees what the other callbacks did.

    Args:
        store: A URL or folder, or an open store.
        monitor, mode, initial_value_threshold: What is best; `mode="auto"` goes by the name.
        save_best_only: Keep only the best one and the newest, from which the run resumes.
        save_weights_only: Leave optimizer and generators out; such a run cannot be resumed.
        save_freq: "epoch", or after so many batches over all epochs.
        virtual_epochs: Instead: the progress whose edges and stop point decide. Edges are
            those of the counter, wherever Keras' epochs end.
        keep: Retention rules for a URL.
        evaluate: Called before each save; returns metrics of the weights that are saved. Or
            "at_save": each save measures them on `validation_data`, except where the
            validation of `fit_virtual` has just done so.
        validation_data: What "at_save" measures on; `fit_virtual` has its own.
        early_stopping: A rule over the stored metrics, asked after each save; the `fit` ends
            when it says so, and a run that it has stopped trains nothing when it is started
            again. With `background` it may say so one save later.
        every_examples, every_seconds: Save at multiples of so many examples, and after this
            time, too.
        save_on_signal: Signals that ask for a last checkpoint at the end of the step; then
            the process ends with status 128 + number. The old handlers are called as well.
        deadline_seconds: The log says when a step did not end so long after a signal.
        background: Save in the background; a save then costs a copy of the state.
        callbacks: Others of this `fit` whose state belongs to the run. History is included.
        batch_size: Where examples cannot be counted otherwise; see `Counter`.
        probe: A few inputs of the model, such as `x[:8]`: each save stores what its weights
            make of them, and whoever loads it sees whether predictions are the same.
        verbose: 1 prints a line for each save.
        hyperparameters: Your own plain values, stored beside the recorded ones.

    Raises:
        UsageError: settings contradict each other, or a pattern of file names was given.
    """

    def __init__(
        self,
        store: ckptfmt.Store | str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int | None = None,
        initial_value_threshold: float | None = None,
        *,
        virtual_epochs: Progress | None = None,
        keep: ckptfmt.training.Keep | None = None,
        evaluate: Callable[[], Mapping[str, float]] | Literal["at_save"] | None = None,
        validation_data: Any = None,
        early_stopping: EarlyStopping | None = None,
        every_examples: int | None = None,
        every_seconds: float = math.inf,
        save_on_signal: Iterable[int] = (),
        deadline_seconds: float = 30.0,
        background: bool = False,
        callbacks: Iterable[Any] = (),
        batch_size: int | None = None,
        probe: Any = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        save_freq = settings.check(
            monitor=monitor,
            save_best_only=save_best_only,
            save_freq=save_freq,
            virtual_epochs=virtual_epochs,
            evaluate=evaluate,
            seconds=(every_seconds, deadline_seconds),
        )
        self.settings = settings.Settings(
            monitor=monitor,
            mode=settings.mode_of(monitor, mode) if save_best_only else mode,
            verbose=verbose,
            save_best_only=save_best_only,
            save_weights_only=save_weights_only,
            save_freq=save_freq,
            initial_value_threshold=initial_value_threshold,
            evaluate=evaluate,
            every_examples=every_examples,
            every_seconds=every_seconds,
            background=background,
            hyperparameters=hyperparameters,
        )
        best = (self.settings.ranked, self.settings.mode) if save_best_only else None
        self.store = settings.opened(store, keep=keep, best=best)
        self.callbacks = list(callbacks)
        states.check(self.callbacks)
        self.progress = virtual_epochs
        self._counter = Counter(batch_size)
        self.validation_data, self._own_data = validation_data, validation_data is not None
        self._stopping, self._probe = early_stopping, probe
        self._save_freq = save_freq if isinstance(save_freq, int) else sys.maxsize
        self._signals, self._deadline = tuple(save_on_signal), deadline_seconds
        self._reset()

    def _reset(self) -> None:
        """Begin with a run that has seen what its progress says."""
        self._seen = self._saved_seen = 0 if self.progress is None else self.progress.seen
        self.cost = loops.Cost()
        self.feed: Feed | None = None  # of fit_virtual
        self._order: Order | None = None  # of the data of a plain fit
        self.report: LoadReport | None = None  # what it restored; None at the start of a run
        self.waits_for_epoch_end = False  # in fit_virtual an edge is the end of an epoch
        self.limit = sys.maxsize  # batches of the epoch: Keras counts on, several at once
        self._due: Due | None = None  # what waits for the end of the epoch
        self._watch = loops.Watch(self._signals, self._deadline)
        self._epoch = self._batches = self._since_save = 0
        self._uncounted = self._new = 0  # batches not counted; examples that nobody was told of
        self._longest = 0  # batches of an epoch so far
        self._batch_size: int | None = None  # of the largest of the first batches of epochs

    @property
    def seen(self) -> int:
        """The examples of the run so far."""
        if self._uncounted:
            self._count()
        return self._seen

    @property
    def saving_cost(self) -> float:
        """The part of the time of this `fit` that went into saving, 0 to 1."""
        return self.cost.part

    @property
    def at_edge(self) -> bool:
        """Whether this epoch of `fit_virtual` ended at its edge, and its save is due."""
        return self._due is not None

    # ---- the hooks of Keras

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Start to watch for signals."""
        if self.settings.evaluate == settings.AT_SAVE and self.validation_data is None:
            raise UsageError('evaluate="at_save" has nothing to measure on: validation_data=')
        self.cost.begin()
        self._watch.__exit__(None, None, None)  # of a fit that ended with an error
        self._watch = loops.Watch(self._signals, self._deadline)
        self._watch.__enter__()
        self._counter.watch(self._model, self._count)
        self._order = None if self.feed is not None else Order()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note where the run is."""
        self._epoch, self._batches, self._new, self._counter.lost = epoch, 0, 0, True

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Begin to count, once per epoch."""
        if self._counter.lost:
            self._counter.begin(self._model)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count a step; save what is due."""
        # At each step: nothing is asked here that need not be, when nothing is due.
        steps = min(batch + 1, self.limit) - self._batches
        self._batches += steps
        self._since_save += steps
        due = self._counted(steps)
        signal = self._watch.noted
        at_edge = due is not None and due.checkpoint
        if at_edge or signal or self._is_time():
            self._counter.check(self._model)  # at the epoch's end the metric has been reset
            if at_edge and self.waits_for_epoch_end:
                self._due = due
            else:
                self._save(logs or {}, epoch_ended=False, last=bool(signal))
        if due is not None and (due.stop or (at_edge and self.waits_for_epoch_end)):
            self._model.stop_training = True
        if signal and self._due is None:
            self._exit(signal)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save with the metrics of the validation, if it is due now."""
        broken = self._is_broken()
        ends = self.settings.save_freq == settings.EPOCH and not self.waits_for_epoch_end
        unsaved = self.waits_for_epoch_end and broken and self.seen > self._saved_seen
        if ends or self._due is not None or unsaved:
            last = self._due is not None and self._due.stop
            ended = self._due is not None or not broken
            self._due = None
            signal = self._watch.noted or 0
            self._save(logs or {}, epoch_ended=ended, last=last or bool(signal))
            if signal:
                self._exit(signal)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Stop watching for signals; raise what a save in the background failed with."""
        self._watch.__exit__(None, None, None)
        if self._uncounted:
            self._count()
        counting.unwatch(self._model)
        if len(self.store):
            self.store.latest()

    # ----

    def _is_broken(self) -> bool:
        """Return whether somebody stopped within the epoch, which Keras ends as a whole one.

        An epoch that is short because the data ran out is whole; the log says so.
        """
        stopped = bool(self._model.stop_training)
        planned = (self.params or {}).get("steps")
        if self.waits_for_epoch_end:
            return stopped and self._due is None
        expected = planned if planned is not None else self._longest
        self._longest = max(self._longest, self._batches)
        if self._batches < expected and not stopped:
            _log.warning(
                "epoch %d had %d batches instead of %d: the data ran out, and Keras trains on"
                " its first batches again; repeat it for ever, or use fit_virtual",
                self._epoch + 1, self._batches, expected,
            )  # fmt: skip
        return stopped and planned is not None and self._batches < planned

    def _counted(self, steps: int) -> Due | None:
        """Count batches: at once where their examples may make something due."""
        if self.feed is not None:
            examples = self.feed.consumed(steps)
            self._counter.known += examples
            self._seen += examples
        else:
            self._uncounted += steps
            first = self._batches == steps
            if not first and self.progress is None and self.settings.every_examples is None:
                return None
            self._count()
            examples, self._new = self._new, 0
        if self._batches == steps and not examples % steps:
            self._batch_size = max(examples // steps, self._batch_size or 0)
        return None if self.progress is None else self.progress.advance(examples)

    def _count(self) -> None:
        """Count the examples that are new by the metric of the loss, before it is lost, too."""
        if self.feed is None:
            examples = self._counter.step(self._model, self._uncounted)
            self._uncounted = 0
            self._new += examples
            self._seen += examples

    def _is_time(self) -> bool:
        wanted = self.settings
        n = wanted.every_examples
        return (
            self._since_save >= self._save_freq
            or (n is not None and self._seen // n > self._saved_seen // n)
            or (
                wanted.every_seconds < math.inf
                and time.monotonic() - self.cost.saved_at >= wanted.every_seconds
            )
        )

    def _exit(self, signal: int) -> None:
        self.store.close()
        self._watch.__exit__(None, None, None)
        raise SystemExit(loops.EXIT_STATUS + signal)

    def _save(self, logs: Mapping[str, Any], *, epoch_ended: bool, last: bool) -> None:
        model = self.model  # on JAX this brings the state back to the model
        metrics = measuring.metrics(
            model, self.settings, logs, self.validation_data,
            own=self._own_data, epoch_ended=epoch_ended,
        )  # fmt: skip
        before = time.monotonic()
        whole = not self.settings.save_weights_only
        others = [*self.callbacks, *self._history(model, logs if epoch_ended else None)]
        saved = models.save_model(
            model,
            self.store,
            callbacks=others if whole else (),
            extra=self._data(),
            optimizer=whole,
            counters=self.counters(epoch_ended=epoch_ended),
            metrics=metrics,
            hyperparameters=self.settings.hyperparameters,
            facts={
                "fit": {**(self.params or {}), "batch_size": self._batch_size},
                "weights_only": not whole,
            },
            probe=None if self._probe is None else probing.probe(model, self._probe),
            background=self.settings.background and not last,
        )
        self.cost.add(time.monotonic() - before)
        self._since_save, self._saved_seen = 0, self.seen
        _log.info("saved %s at %d examples", saved, self.seen)
        if self.has_stopped():
            model.stop_training = True
        if self.settings.verbose:
            shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            print(f"\nEpoch {self._epoch + 1}: saved at {self.seen:,} examples ({shown})")

    def _data(self) -> dict[str, Any]:
        """Return where the run is in its data, as a section of the checkpoint."""
        state = self._order.state() if self._order is not None else None
        if self.feed is not None:
            state = self.feed.state()
        return {} if state is None else {"data": state}

    def _history(self, model: Any, logs: Mapping[str, Any] | None) -> list[Any]:
        """Return the history with the epoch that ends: `fit` tells it after all others."""
        live: Any = getattr(model, "history", None)
        if not hasattr(live, "history"):
            return []
        if logs is None or self._epoch in live.epoch[-1:]:
            return [live]
        found = keras.callbacks.History()
        found.epoch = [*live.epoch, self._epoch]
        found.history = {n: [*live.history.get(n, []), value] for n, value in logs.items()}
        return [found]

    def counters(self, *, epoch_ended: bool) -> dict[str, Any]:
        """Return the counters of a checkpoint that is saved now."""
        plain = {"seen": self.seen} if self.progress is None else self.progress.state()
        return plain | {
            KEY: {
                "epoch": self._epoch + epoch_ended,  # complete ones of Keras
                "batches": 0 if epoch_ended else self._batches,  # within the next
                "epochs": (self.params or {}).get("epochs"),  # planned
            }
        }

    def has_stopped(self) -> bool:
        """Return whether early stopping says so, by what is stored."""
        if self._stopping is None or not len(self.store):
            return False
        return self._stopping.judge(self.store.history()).stop

    def feeds(
        self, feed: Feed, progress: Progress, others: Iterable[Any], *, validation: Any
    ) -> None:
        """Belong to a `fit_virtual`: with its data, its progress, its callbacks."""
        if not self._own_data:
            self.validation_data = validation
        self.callbacks += [one for one in others if one not in self.callbacks]
        self.progress = progress
        self._reset()
        self.feed, self.waits_for_epoch_end = feed, True

    def going_on(self, counters: Mapping[str, Any], progress: Progress | None = None) -> None:
        """Take over where a checkpoint was; for `Resume` and `fit_virtual`.

        Raises:
            UsageError: the checkpoint was not saved by a callback.
        """
        if not isinstance(counters.get(KEY), Mapping):
            raise not_by_a_callback(counters)
        if self.progress is not None:
            self.progress = progress or Progress.restore(counters)
        self._seen = self._saved_seen = int(counters["seen"])


def not_by_a_callback(counters: Mapping[str, Any]) -> UsageError:
    """Return the error for a checkpoint of which nobody knows where its run was."""
    return UsageError(
        "this checkpoint was not saved by a callback, nobody knows where its run was:"
        " call restore() instead",
        counters=sorted(counters),
    )
