"""The loop of a training run, counted in examples: resumes, saves when due, stops."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import torch

import ckptfmt
from ckptfmt import loops
from ckptfmt.checks import LoadReport
from ckptfmt.errors import UsageError
from ckptfmt.training import Due, EarlyStopping, Progress
from ckptfmt_torch import data, generators, objects, proving, ranks, running

_log: Final = logging.getLogger("ckptfmt")


class _Step(NamedTuple):
    """What there is to say at the end of a step."""

    examples: int  # of its batch
    is_time: int  # whether a save is due by the clock
    signal: int  # number of the signal that came, or 0


class VirtualEpochs:
    """Batches of a loader until the stop point, with a checkpoint at every edge.

        epochs = VirtualEpochs(store, Progress(total=50_000, virtual_epochs=10),
                               loader=loader, model=model, optimizer=optimizer)
        for x, y in epochs:
            ...                     # one step

    The first batch comes after the newest checkpoint of the store, if there is one, was
    restored. When the loop asks for the next batch, the step is counted by the real size of
    its batch; then a checkpoint is saved if one is due. With accumulation in the progress,
    edges, signals and the stop wait for the update.

    Args:
        store: Where the run lives; or a URL for `ckptfmt.open`.
        progress: Total and virtual epochs of a run that begins; one that goes on takes what
            its checkpoint says.
        loader: The `DataLoader`. With a `BatchSampler` of this package, or a loader that has
            `state_dict`, a resumed run sees the examples that are next; with others it begins
            a pass anew, which the report says.
        count: From a batch to its examples on this rank; by default the length of the first
            tensor in it.
        evaluate: Called before each save; returns the metrics to save with it.
        early_stopping: A rule that is asked after each save; the loop ends when it says so, and
            a run that was stopped by it shows nothing when it is started again. It knows what
            is committed: with `background` it may say so one save later.
        every_seconds: Save after this time, too, if it was longer since the last save.
        every_examples: Save at multiples of this number, too, besides the edges.
        save_on_signal: Signals that ask for a last checkpoint at the end of the step; then
            the process ends with status 128 + number. The old handlers are called as well.
        deadline_seconds: The log says when a step did not end so long after a signal.
        background: Save in the background; edges then cost a copy of the state.
        config, hyperparameters, loss, frozen, generators, buffers: As for `save`.
        replay: Whether to run a stored probe when the run goes on, as for `restore`.
        run: The objects, as for `capture`.

    Raises:
        UsageError: an argument contradicts another, or a batch cannot be counted.
    """

    def __init__(
        self,
        store: ckptfmt.Store | str | os.PathLike[str],
        progress: Progress,
        *,
        loader: Iterable[Any],
        count: Callable[[Any], int] = data.examples_in,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        early_stopping: EarlyStopping | None = None,
        every_seconds: float = math.inf,
        every_examples: int | None = None,
        save_on_signal: int | Iterable[int] = (),
        deadline_seconds: float = 30.0,
        background: bool = False,
        config: Any = None,
        hyperparameters: Mapping[str, Any] | None = None,
        loss: object = None,
        frozen: str | Iterable[str] = (),
        replay: proving.When = "auto",
        **run: Any,
    ) -> None:
        if not (every_seconds > 0 and deadline_seconds > 0):  # nor NaN
            raise UsageError(
                "seconds must be > 0", every=every_seconds, deadline=deadline_seconds
            )
        if every_examples is not None and every_examples < 1:
            raise UsageError("every_examples must be >= 1", found=every_examples)
        self.store = store if isinstance(store, ckptfmt.Store) else ckptfmt.open(store)
        self.progress = progress
        self.report: LoadReport | None = (
            None  # what was restored; None before, and at the start
        )
        self._loader, self._count, self._evaluate = loader, count, evaluate
        self._stopping = early_stopping
        self._every_seconds, self._every_examples = every_seconds, every_examples
        signals = [save_on_signal] if isinstance(save_on_signal, int) else save_on_signal
        self._watch = loops.Watch(signals, deadline_seconds)
        self._background = background
        self._facts = {"config": config, "loss": loss}
        self._hyperparameters = hyperparameters
        self._replay = replay
        self._frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        batches = getattr(loader, "batch_sampler", None)
        self._batches = batches if isinstance(batches, data.BatchSampler) else None
        if self._batches is not None:
            run.setdefault("sampler", self._batches)
        self._run = run if self._batches is not None else {"loader": loader, **run}
        self._group = ranks.Ranks() if ranks.rank_and_world()[1] > 1 else None
        self._cost = loops.Cost()
        self._saved_seen = 0
        self._update = "auto"

    @property
    def saving_cost(self) -> float:
        """The part of the time since the first batch that went into saving, 0 to 1."""
        return self._cost.part

    def applied(self, *, update: bool) -> None:
        """Tell, within a step, whether the optimizer took it: for loops that skip some.

        A step whose gradients were not finite is `applied(update=False)`. Without a call,
        each `accumulation` batches count as one update.
        """
        self._update = "applied" if update else "skipped"

    def __iter__(self) -> Iterator[Any]:
        """Yield batches until the stop point.

        Raises:
            SystemExit: after a signal, with the checkpoint committed.
        """
        self._resume()
        self._cost.begin()
        self._saved_seen = self.progress.seen
        if not self.progress.remaining or (self.report and self._has_stopped()):
            return
        with self._watch:
            for batch in self._passes():
                yield batch
                if self._end_of_step(self._agreed(batch)):
                    break
            self.store.latest()  # raises what a save in the background has failed with

    def _resume(self) -> None:
        found = running.resume(self.store, replay=self._replay, **self._facts, **self._run)
        if found is not None:
            checkpoint, self.report = found
            self.progress = Progress.restore(checkpoint.counters)

    def _passes(self) -> Iterator[Any]:
        """Yield batches, pass after pass, without touching the generators of the training."""
        # A loader that goes on within a pass draws as if it began one, where the run that was
        # not interrupted drew nothing; with workers it may also draw while they read ahead.
        again = self.report is not None and isinstance(self._loader, objects.Stateful)
        own = [g for _, g in objects.generators_of("", self._loader)] if again else []
        while True:
            trained, loaded = (
                generators.States(torch.default_generator),
                generators.States(*own),
            )
            batches = iter(self._loader)  # draws a seed for its workers
            trained.put_back()
            if not getattr(self._loader, "num_workers", 0):
                loaded.put_back()
            empty = True
            for batch in batches:
                empty = False
                yield batch
            if empty and not again:
                raise UsageError("the loader gave no batch", loader=type(self._loader).__name__)
            if empty:  # it was saved at the end of a pass
                loaded.put_back()
            again, own = False, []

    def _agreed(self, batch: Any) -> _Step:
        """Return what all ranks say of a step: they have to save at the same one."""
        mine = _Step(self._count(batch), int(self._is_time()), self._watch.noted or 0)
        if self._group is None:
            return mine
        said = [_Step(*one) for one in self._group.share(list(mine))]
        examples = sum(one.examples for one in said)
        return _Step(
            examples=min(examples, self._left_in_pass()),  # without a sampler's padding
            is_time=max(one.is_time for one in said),
            signal=max(one.signal for one in said),
        )

    def _left_in_pass(self) -> int:
        """Return how many examples are left of a pass that a DistributedSampler may pad."""
        sampler = getattr(self._loader, "sampler", None)
        if not isinstance(sampler, torch.utils.data.DistributedSampler):
            return 2**63 - 1
        size = len(sampler.dataset)  # type: ignore[arg-type]  # it would not work without
        return size - self.progress.seen % size

    def _end_of_step(self, step: _Step) -> bool:
        due = self.progress.advance(step.examples, update=self._update)
        self._update = "auto"
        if self._batches is not None:
            self._batches.consumed(step.examples)
        waiting = self.progress.seen - self.progress.applied - self.progress.skipped
        stop = due.stop
        asked = not waiting and (step.is_time or step.signal or self._is_multiple())
        if due.checkpoint or asked:
            self._save(due, last=due.stop or bool(step.signal))
            stop = due.stop or self._has_stopped()
        if step.signal and not waiting:
            self.store.close()
            raise SystemExit(loops.EXIT_STATUS + step.signal)
        return stop

    def _has_stopped(self) -> bool:
        """Whether early stopping says so; rank 0 decides for all."""
        if self._stopping is None:
            return False
        stop = self._stopping.judge(self.store.history()).stop
        return stop if self._group is None else bool(self._group.share([stop])[0][0])

    def _is_multiple(self) -> bool:
        """Whether a multiple of `every_examples` was reached or passed since the last save."""
        n = self._every_examples
        return n is not None and self.progress.seen // n > self._saved_seen // n

    def _is_time(self) -> bool:
        return time.monotonic() - self._cost.saved_at >= self._every_seconds

    def _save(self, due: Due, *, last: bool) -> None:
        metrics = dict(self._evaluate()) if self._evaluate is not None else {}
        before = time.monotonic()
        saved = running.save(
            self.store,
            counters=self.progress.state(),
            metrics=metrics,
            hyperparameters=self._hyperparameters,
            background=self._background and not last,
            group=self._group,
            frozen=self._frozen,
            **self._facts,
            **self._run,
        )
        self._saved_seen = self.progress.seen
        self._cost.add(time.monotonic() - before)
        _log.info(
            "saved %s at %d examples; saving takes %.2g %% of the time",
            saved,
            due.seen,
            100 * self._cost.part,
        )
