"""What a batch costs when nothing is due: counted in calls, which no busy machine changes."""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Callable
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest
from nets import bits, data, net

import ckptfmt
from ckptfmt.training import Progress
from ckptfmt_keras import Checkpoint, counting, fit_virtual

BATCHES = 40
MOST = 10  # functions of ours at a batch; each costs a fraction of a microsecond, when warm


class Tallied(Checkpoint):
    """Counts the functions that run within its hooks, by batch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[Tally[str]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.calls.append(Tally())
        self._tallied(super().on_train_batch_begin, batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tallied(super().on_train_batch_end, batch, logs)

    def _tallied(self, hook: Callable[..., None], *arguments: Any) -> None:
        def note(frame: FrameType, event: str, _: Any) -> None:
            if event == "call":
                self.calls[-1][frame.f_code.co_qualname] += 1

        sys.setprofile(note)
        try:
            hook(*arguments)
        finally:
            sys.setprofile(None)


def examples() -> tuple[Any, Any]:
    x, y = data()
    return np.resize(x, (10 * BATCHES, 8)), np.resize(y, 10 * BATCHES)


def test_a_batch_of_fit_reads_nothing(store: ckptfmt.Store) -> None:
    checkpoint = Tallied(store, save_freq=10**9, every_seconds=10**9)

    net().fit(*examples(), batch_size=10, epochs=2, verbose=0, callbacks=[checkpoint])

    assert len(checkpoint.calls) == 2 * BATCHES
    for number, calls in enumerate(checkpoint.calls):
        if number % BATCHES:  # the first of an epoch tells the size of a batch
            assert calls.total() <= MOST, calls
            assert not any("_read" in name for name in calls)
    assert checkpoint.seen == 20 * BATCHES


def test_a_batch_of_fit_virtual_makes_no_record(store: ckptfmt.Store) -> None:
    checkpoint = Tallied(store, every_examples=10**9)

    fit_virtual(
        net(), examples(), Progress(total=10 * BATCHES, virtual_epochs=1),
        checkpoint=checkpoint, batch_size=10,
    )  # fmt: skip

    for calls in checkpoint.calls[1:-1]:  # the first begins to count, the last saves
        assert calls.total() <= MOST, calls
    assert checkpoint.progress is not None
    assert checkpoint.progress.updates == BATCHES


# ---- counted late, and right


class Measures(keras.callbacks.Callback):
    """Measures the model within an epoch, and at its end, on more data than was trained on."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            self.model.evaluate(*(np.concatenate([part] * 3) for part in data()), verbose=0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.evaluate(*(part[:7] for part in data()), verbose=0)


@pytest.mark.parametrize("first", [True, False])
def test_who_measures_within_an_epoch_changes_no_count(
    store: ckptfmt.Store, first: bool
) -> None:
    checkpoint = Checkpoint(store, save_freq=4)
    callbacks = [Measures(), checkpoint] if first else [checkpoint, Measures()]

    net().fit(*data(), batch_size=10, epochs=3, verbose=0, callbacks=callbacks)

    # Batches of 10 and one of 8 in each epoch.
    assert [c.counters["seen"] for c in store] == [40, 78, 116]
    assert checkpoint.seen == 144


@pytest.mark.parametrize("first", [True, False])
def test_who_measures_within_an_epoch_moves_no_edge(store: ckptfmt.Store, first: bool) -> None:
    checkpoint = Checkpoint(store, virtual_epochs=Progress(total=144, virtual_epochs=4))
    callbacks = [Measures(), checkpoint] if first else [checkpoint, Measures()]

    net().fit(*data(), batch_size=10, epochs=3, verbose=0, callbacks=callbacks)

    # Edges at 36, 72, 108, 144, each at the end of the batch that reaches it.
    assert [c.counters["seen"] for c in store] == [40, 78, 116, 144]


def test_the_count_can_be_read_at_any_batch(store: ckptfmt.Store) -> None:
    found = []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            found.append(checkpoint.seen)

    checkpoint = Checkpoint(store)
    models = []
    for callbacks in ([checkpoint, Reads()], [Checkpoint(store)]):
        keras.utils.set_random_seed(3)
        models.append(net())
        models[-1].fit(*data(), batch_size=10, epochs=1, verbose=0, callbacks=callbacks)

    assert found == [10, 20, 30, 40, 48]
    assert bits(models[0]) == bits(models[1])


def test_the_metrics_of_a_model_are_left_alone_after_fit(store: ckptfmt.Store) -> None:
    model = net()
    reset = model.reset_metrics
    model.fit(*data(), verbose=0, callbacks=[checkpoint := Checkpoint(store)])

    assert model.reset_metrics == reset
    model.evaluate(*data(), verbose=0)
    assert checkpoint.seen == 48
    counting.unwatch(model)  # nothing is watched: nothing happens
