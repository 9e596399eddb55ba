"""What is measured at a save; and what stored metrics decide: the best, and when to stop."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from nets import bits, data, net
from test_fit import Stop, StopAfter, fitted, virtual

import ckptfmt
import ckptfmt_keras
from ckptfmt.errors import UsageError
from ckptfmt.training import EarlyStopping, Progress
from ckptfmt_keras import Checkpoint, Resume, fit_virtual, load_model

RULE = EarlyStopping(monitor="val/loss", patience=96)  # two epochs


def told(*values: float) -> Any:
    """Return what measures these values, one after the other."""
    coming: Iterator[float] = iter(values)
    return lambda: {"val/loss": next(coming)}


# ---- evaluate="at_save"


def test_at_save_measures_the_weights_that_are_saved(tmp_path: pathlib.Path) -> None:
    x, y = data()
    models = []
    for measure in (False, True):
        keras.utils.set_random_seed(9)
        models.append(model := net())
        options = {"evaluate": "at_save", "validation_data": (x[:20], y[:20])}
        checkpoint = Checkpoint(
            tmp_path / str(measure), save_freq=3, **(options if measure else {})
        )
        fitted(model, checkpoint, shuffle=False)

    assert bits(models[0], "model", "optimizer") == bits(models[1], "model", "optimizer")
    saved = list(checkpoint.store)
    assert len(saved) == 5
    for one in saved:  # in the middle of an epoch, where the running means say something else
        again = load_model(one).evaluate(x[:20], y[:20], verbose=0, return_dict=True)
        assert one.metrics["val_loss"] == float(again["loss"])
        assert one.metrics["val_loss"] != one.metrics["train/loss+train-mode"]


def test_at_save_takes_the_validation_data_of_fit_virtual(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path / "run", every_examples=30, evaluate="at_save")

    history = fit_virtual(
        net(), data(), Progress(total=100, virtual_epochs=2), checkpoint=checkpoint,
        batch_size=10, validation_data=data(),
    )  # fmt: skip

    # The loss was averaged over the examples that were counted.
    assert not [record for record in caplog.records if record.name == "ckptfmt"]
    saved = list(checkpoint.store)
    assert [one.counters["seen"] for one in saved] == [30, 50, 60, 90, 100]
    assert all("val_loss" in one.metrics for one in saved)
    # Those at edges were measured once, by the validation.
    assert [saved[1].metrics["val_loss"], saved[4].metrics["val_loss"]] == (
        history.history["val_loss"]
    )


def test_at_save_without_data_is_refused_before_the_first_step(store: ckptfmt.Store) -> None:
    model = net()
    before = bits(model, "model", "optimizer")

    with pytest.raises(UsageError, match="validation_data="):
        fitted(model, Checkpoint(store, evaluate="at_save"))
    with pytest.raises(UsageError, match="at_save"):
        Checkpoint(store, evaluate="sometimes")  # type: ignore[arg-type]
    assert bits(model, "model", "optimizer") == before


# ---- the best


def test_the_best_survives_a_restart(tmp_path: pathlib.Path) -> None:
    for values in ((0.3, 0.1), (0.4, 0.2)):
        checkpoint = Checkpoint(
            tmp_path / "run", monitor="val/loss", save_best_only=True, evaluate=told(*values)
        )
        epochs = 2 * (1 + (values[0] == 0.4))
        fitted(net(), checkpoint, Resume(checkpoint), epochs=epochs)
        checkpoint.store.close()

    with ckptfmt.open(tmp_path / "run") as store:
        assert [c.number for c in store] == [2, 4]  # 0.2 did not take the place of 0.1
        assert store.best("val/loss").number == 2


def test_a_late_metric_makes_the_best(store: ckptfmt.Store) -> None:
    fitted(net(), Checkpoint(store, evaluate=told(0.3, math.nan, 0.5)))
    assert store.best("val/loss").number == 1

    store.annotate(2, {"metrics.val_late": 0.7})
    store.annotate(3, {"metrics.val_late": 0.2})

    assert store.best("val_late").number == 3


# ---- early stopping by the stored metrics


def test_early_stopping_survives_a_restart(tmp_path: pathlib.Path) -> None:
    def run(url: Any, values: tuple[float, ...], stop_after: float = math.inf) -> Any:
        keras.utils.set_random_seed(7)
        model = net()
        checkpoint = Checkpoint(url, early_stopping=RULE, evaluate=told(*values))
        resume = Resume(checkpoint)
        try:
            history = fitted(model, StopAfter(stop_after), checkpoint, resume, epochs=9)
        finally:
            checkpoint.store.close()
        return history.epoch

    values = (0.5, 0.3, math.nan, 0.4, 0.35)  # NaN is no improvement, and no end
    assert run(tmp_path / "whole", values) == [0, 1, 2, 3]
    with pytest.raises(Stop):
        run(tmp_path / "run", values, 13)  # in the third epoch

    assert run(tmp_path / "run", values[2:]) == [0, 1, 2, 3]  # it remembers how long it waited
    assert run(tmp_path / "run", ()) == [0, 1, 2, 3]  # and trains nothing once it has stopped


def test_early_stopping_of_virtual_epochs(tmp_path: pathlib.Path) -> None:
    def run(values: tuple[float, ...]) -> Any:
        checkpoint = Checkpoint(
            tmp_path / "run",
            early_stopping=EarlyStopping(monitor="val/loss", patience=100),
            evaluate=told(*values),
        )
        history = fit_virtual(
            net(), data(), Progress(total=400, virtual_epochs=8), checkpoint=checkpoint,
            batch_size=10,
        )  # fmt: skip
        checkpoint.store.close()
        return history.epoch, checkpoint.seen

    assert run((0.5, 0.6, 0.7, 0.1)) == ([0, 1, 2], 150)
    assert run((0.1,)) == ([0, 1, 2], 150)


# ---- resume(model, store)


def test_resume_restores_at_once_and_goes_on_within_fit(
    tmp_path: pathlib.Path, backend: str
) -> None:
    shuffle = backend != "tensorflow"  # it shuffles where nobody can restore it
    keras.utils.set_random_seed(7)
    expected = net()
    whole = fitted(expected, Checkpoint(tmp_path / "whole"), epochs=3, shuffle=shuffle)
    keras.utils.set_random_seed(7)
    fitted(first := net(), Checkpoint(tmp_path / "run"), epochs=2, shuffle=shuffle)
    keras.utils.set_random_seed(11)
    model = net()

    going_on = ckptfmt_keras.resume(model, tmp_path / "run")

    assert going_on.initial_epoch == 2
    assert going_on.report is not None
    assert bits(model, "model", "optimizer") == bits(first, "model", "optimizer")
    history = fitted(model, going_on.checkpoint, going_on, epochs=3, shuffle=shuffle)
    assert bits(model) == bits(expected)
    assert history.history == whole.history


def test_resume_of_an_empty_store_begins(tmp_path: pathlib.Path) -> None:
    model = net()

    going_on = ckptfmt_keras.resume(model, tmp_path / "run")

    assert (going_on.initial_epoch, going_on.report) == (0, None)
    assert fitted(model, going_on.checkpoint, going_on, epochs=1).epoch == [0]


def test_resume_refuses_weights_alone(tmp_path: pathlib.Path) -> None:
    fitted(model := net(), Checkpoint(tmp_path / "run", save_weights_only=True), epochs=1)

    with pytest.raises(UsageError, match="weights alone"):
        ckptfmt_keras.resume(model, tmp_path / "run")


def test_a_run_that_has_ended_has_its_history(tmp_path: pathlib.Path) -> None:
    model, history, _ = virtual(tmp_path / "run")

    again, same, _ = virtual(tmp_path / "run")

    assert (same.epoch, same.history) == (history.epoch, history.history)
    assert bits(again) == bits(model)


# ---- counting


def test_a_loss_metric_of_the_callers_is_not_trusted(tmp_path: pathlib.Path) -> None:
    """As in Keras' own guide, it counts steps."""

    class Own(keras.Sequential):
        def __init__(self) -> None:
            super().__init__([keras.Input((8,)), keras.layers.Dense(3)])
            self.mean = keras.metrics.Mean(name="loss")

        @property
        def metrics(self) -> list[Any]:
            return [self.mean]

    model = Own()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    with pytest.raises(UsageError, match="batch_size="):
        model.fit(*data(), verbose=0, callbacks=[Checkpoint(tmp_path / "run")])


def test_what_the_loss_did_not_count_is_told(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    counting = ckptfmt_keras.checkpointing.Counter()
    model = net()
    model.train_on_batch(*data())  # builds the metrics
    counting.begin(model)
    model.train_on_batch(*(np.concatenate([part, part]) for part in data()))

    counting.known = 40
    counting.check(model)

    assert "40 examples" in caplog.text
