"""What the callbacks save, when, and how a run goes on from it."""

from __future__ import annotations

import math
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from nets import SIZE, bits, compiled, data, net

import ckptfmt
import ckptfmt_keras
from ckptfmt.errors import UsageError
from ckptfmt.training import Progress
from ckptfmt_keras import Checkpoint, Resume, fit_virtual


class Stop(Exception):
    """What ends a run in these tests."""


class StopAfter(keras.callbacks.Callback):
    """Ends a run with an error after so many steps."""

    def __init__(self, steps: float) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stop

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is remembered."""


def fitted(model: Any, *callbacks: Any, epochs: int = 3, **options: Any) -> Any:
    x, y = data()
    given = {"batch_size": 10, "verbose": 0, "validation_data": (x[:9], y[:9]), **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(callbacks), **given)


def virtual(
    url: Any,
    stop_after: float = math.inf,
    source: Any = None,
    model: Any = None,
    **options: Any,
) -> tuple[Any, Any, Checkpoint]:
    """Train 200 examples in 4 virtual epochs; return model, history and checkpoint."""
    keras.utils.set_random_seed(7)
    model = model or net()
    checkpoint = Checkpoint(url, every_examples=30)
    history = fit_virtual(
        model, data() if source is None else source, Progress(total=200, virtual_epochs=4),
        checkpoint=checkpoint, callbacks=[StopAfter(stop_after)], validation_data=data(),
        batch_size=10,
    )  # fmt: skip
    return model, history, checkpoint


# ---- when, and what


def test_each_epoch_has_its_checkpoint(store: ckptfmt.Store) -> None:
    fitted(net(), Checkpoint(store))

    assert [c.counters["seen"] for c in store] == [48, 96, 144]  # batches of 10 and one of 8
    last = store.latest()
    assert last.counters["keras"] == {"epoch": 3, "batches": 0, "epochs": 3}
    assert set(last.metrics) == {
        "val_loss", "val_accuracy", "train/loss+train-mode", "train/accuracy+train-mode",
    }  # fmt: skip


def test_save_freq_counts_batches_over_epochs(store: ckptfmt.Store) -> None:
    fitted(net(), Checkpoint(store, save_freq=4))

    assert [c.counters["seen"] for c in store] == [40, 78, 116]


def test_save_best_only_keeps_the_best_and_the_newest(tmp_path: pathlib.Path) -> None:
    worse = iter([0.3, 0.1, 0.4, 0.2])
    checkpoint = Checkpoint(
        tmp_path / "run", monitor="val/loss", save_best_only=True,
        evaluate=lambda: {"val/loss": next(worse)},
    )  # fmt: skip

    fitted(net(), checkpoint, epochs=4)

    assert [c.number for c in checkpoint.store] == [2, 4]
    assert checkpoint.store.best("val/loss").number == 2


def test_a_value_no_better_than_the_threshold_is_not_kept(tmp_path: pathlib.Path) -> None:
    values = iter([0.5, 0.1, 0.4])
    checkpoint = Checkpoint(
        tmp_path / "run", monitor="val/loss", save_best_only=True, initial_value_threshold=0.2,
        evaluate=lambda: {"val/loss": next(values)},
    )  # fmt: skip

    fitted(net(), checkpoint)

    assert [c.number for c in checkpoint.store] == [2, 3]


def test_nan_is_never_best(tmp_path: pathlib.Path) -> None:
    values = iter([math.nan, 0.4, 0.5])
    checkpoint = Checkpoint(
        tmp_path / "run", monitor="val/loss", save_best_only=True,
        evaluate=lambda: {"val/loss": next(values)},
    )  # fmt: skip

    fitted(net(), checkpoint)

    assert [c.number for c in checkpoint.store] == [2, 3]


def test_a_missing_metric_is_an_error_that_deletes_nothing(tmp_path: pathlib.Path) -> None:
    url = tmp_path / "run"
    fitted(net(), first := Checkpoint(url), epochs=2)
    first.store.close()

    with pytest.raises(UsageError, match="not measured"):
        fitted(net(), Checkpoint(url, monitor="val_f1", save_best_only=True), epochs=1)
    assert [c.number for c in ckptfmt.open(url)] == [1, 2]


def test_measuring_leaves_no_trace(store: ckptfmt.Store, tmp_path: pathlib.Path) -> None:
    models: list[Any] = []
    losses = []
    for measure in (False, True):
        keras.utils.set_random_seed(9)  # of the layers that draw, too
        models.append(model := net())
        url = tmp_path / str(measure)

        def evaluate(model: Any = model) -> dict[str, float]:
            found: dict[str, float] = model.evaluate(*data(), verbose=0, return_dict=True)
            return found

        callback = Checkpoint(url, save_freq=2, evaluate=evaluate if measure else None)
        losses.append(fitted(model, callback, shuffle=False).history)

    first, second = (bits(model, "model", "optimizer") for model in models)
    assert first == second
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_freq": 3, "virtual_epochs": Progress(total=9, virtual_epochs=3)}, "give one"),
        ({"save_freq": 0}, "save_freq"),
        ({"save_freq": "batch"}, "save_freq"),
        ({"monitor": "loss", "save_best_only": True}, "running mean"),
        ({"monitor": "val_thing", "save_best_only": True}, "mode="),
        ({"mode": "up", "save_best_only": True}, "mode="),
        ({"every_seconds": 0}, "seconds"),
        ({"callbacks": [3]}, "callback"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: pathlib.Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Checkpoint(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["out/{epoch:02d}-{val_loss:.2f}.keras", "w.weights.h5"])
def test_a_pattern_of_file_names_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="@best:val_loss"):
        Checkpoint(path)


def test_an_open_store_has_its_own_rules(store: ckptfmt.Store) -> None:
    with pytest.raises(UsageError, match=r"ckptfmt\.open"):
        Checkpoint(store, monitor="val_loss", save_best_only=True)


# ---- resume of a plain fit


def test_a_fit_goes_on_at_the_next_epoch(tmp_path: pathlib.Path, backend: str) -> None:
    def run(url: Any, stop_after: float) -> tuple[Any, Any, Resume]:
        keras.utils.set_random_seed(7)
        model = net()
        early = keras.callbacks.EarlyStopping(patience=9)
        checkpoint = Checkpoint(url, callbacks=[early])
        resume = Resume(checkpoint)
        history = fitted(
            model, early, StopAfter(stop_after), checkpoint, resume, epochs=4,
            shuffle=backend != "tensorflow",  # it shuffles where nobody can restore it
        )  # fmt: skip
        assert model._initial_epoch is None
        assert early.wait + early.best_epoch + 1 == 4
        return model, history, resume

    expected, whole, _ = run(tmp_path / "whole", math.inf)
    with pytest.raises(Stop):
        run(tmp_path / "run", 13)
    model, history, resume = run(tmp_path / "run", math.inf)

    assert resume.report is not None
    assert resume.report.ok
    assert bits(model) == bits(expected)
    assert history.history == whole.history
    assert history.epoch == [0, 1, 2, 3]


def test_weights_alone_cannot_be_resumed(tmp_path: pathlib.Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run", save_weights_only=True)
    fitted(net(), checkpoint, epochs=1)

    assert [s.name for s in checkpoint.store.latest().sections if s.arrays][:1] == ["model"]
    with pytest.raises(UsageError, match="weights alone"):
        Resume(checkpoint)
    with pytest.raises(UsageError, match="weights alone"):
        fitted(net(), other := Checkpoint(tmp_path / "run"), Resume(other))


def test_settings_that_differ_are_findings(tmp_path: pathlib.Path) -> None:
    fitted(net(), Checkpoint(tmp_path / "run"), epochs=1, shuffle=False)
    other = compiled(net(), optimizer=keras.optimizers.Adam(beta_1=0.5))
    resume = Resume(checkpoint := Checkpoint(tmp_path / "run"))

    fitted(other, checkpoint, resume, epochs=2, shuffle=False)

    assert resume.report is not None
    names = [finding.name for finding in resume.report.findings]
    assert names == ["hyperparameters/keras/optimizer/settings/beta_1"]


# ---- virtual epochs


@pytest.mark.parametrize("stop_after", [1, 4, 7, 12])
def test_a_run_goes_on_within_a_virtual_epoch(tmp_path: pathlib.Path, stop_after: int) -> None:
    expected, whole, _ = virtual(tmp_path / "whole")
    with pytest.raises(Stop):
        virtual(tmp_path / "run", stop_after)
    model, history, checkpoint = virtual(tmp_path / "run")

    assert bits(model) == bits(expected)
    assert history.history == whole.history
    assert history.epoch == whole.epoch == [0, 1, 2, 3]
    assert checkpoint.seen == 200


def passes() -> Iterator[Any]:
    """Return one pass in batches of 9, with a shorter one at its end."""
    x, y = data()
    return ((x[at : at + 9], y[at : at + 9]) for at in range(0, SIZE, 9))


def test_streams_go_on_at_the_next_batch(tmp_path: pathlib.Path) -> None:
    expected, whole, checkpoint = virtual(tmp_path / "whole", source=passes)
    with pytest.raises(Stop):
        virtual(tmp_path / "run", 11, source=passes)
    model, history, other = virtual(tmp_path / "run", source=passes)

    # Passes of 48 in batches of 9, 9, 9, 9, 9, 3: edges at 50, 100, 150, 200.
    edges = [c.counters["seen"] for c in checkpoint.store if c.counters["complete"]]
    assert edges == [57, 105, 153, 201]
    assert bits(model) == bits(expected)
    assert history.history == whole.history
    assert other.seen == 201


def test_an_exhausted_generator_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UsageError, match="exhausted"):
        virtual(tmp_path / "run", source=passes())


def test_averages_replace_the_weights_at_the_end_only(tmp_path: pathlib.Path) -> None:
    def model() -> Any:
        keras.utils.set_random_seed(7)
        return compiled(net(), optimizer=keras.optimizers.Adam(use_ema=True))

    expected, _, checkpoint = virtual(tmp_path / "whole", model=model())
    with pytest.raises(Stop):
        virtual(tmp_path / "run", 12, model=model())
    again, _, _ = virtual(tmp_path / "run", model=model())

    assert bits(again) == bits(expected)
    last = checkpoint.store.latest()
    raw, average = last["model/0000.kernel"], last["optimizer/slots/average/0000.kernel"]
    assert np.asarray(average).tobytes() == bits(again)["model/0000.kernel"][2]
    assert np.asarray(raw).tobytes() != np.asarray(average).tobytes()


def test_early_stopping_ends_the_whole(tmp_path: pathlib.Path) -> None:
    keras.utils.set_random_seed(7)
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=9.0, patience=2)
    checkpoint = Checkpoint(tmp_path / "run")

    history = fit_virtual(
        net(), data(), Progress(total=400, virtual_epochs=8), checkpoint=checkpoint,
        batch_size=10, callbacks=[stop], validation_data=data(),
    )  # fmt: skip

    assert history.epoch == [0, 1, 2]
    assert checkpoint.seen == 150


def test_edges_of_the_counter_within_epochs_of_keras(store: ckptfmt.Store) -> None:
    progress = Progress(total=100, virtual_epochs=4)
    checkpoint = Checkpoint(store, virtual_epochs=progress)
    x, y = data()
    arguments = progress.fit_arguments(10)
    assert arguments == {"epochs": 4, "initial_epoch": 0, "steps_per_epoch": 3}

    def endless() -> Iterator[Any]:
        while True:
            yield x[:10], y[:10]

    net().fit(endless(), callbacks=[checkpoint], shuffle=False, verbose=0, **arguments)

    assert [c.counters["seen"] for c in store] == [30, 50, 80, 100]
    assert checkpoint.seen == 100


def test_several_steps_an_execution_count_exactly(store: ckptfmt.Store, backend: str) -> None:
    if backend == "torch":
        pytest.skip("Keras has no steps_per_execution on torch")
    model = compiled(net(), steps_per_execution=2)

    fitted(model, Checkpoint(store), epochs=2)

    assert [c.counters["seen"] for c in store] == [48, 96]


def test_a_train_step_without_a_loss_metric_needs_the_batch_size(
    tmp_path: pathlib.Path,
) -> None:
    model = net()
    model._loss_tracker.name = "other"

    with pytest.raises(UsageError, match="batch_size="):
        fitted(model, Checkpoint(tmp_path / "a"), epochs=1)
    fitted(model, checkpoint := Checkpoint(tmp_path / "b", batch_size=10), epochs=1)
    assert checkpoint.seen == 50


def test_handlers_of_signals_are_put_back(store: ckptfmt.Store) -> None:
    before = signal.getsignal(signal.SIGUSR1)

    fitted(net(), Checkpoint(store, save_on_signal=[signal.SIGUSR1]), epochs=1)

    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_saves_and_ends_with_a_status(store: ckptfmt.Store) -> None:
    class Raise(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1:
                signal.raise_signal(signal.SIGUSR2)

    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with pytest.raises(SystemExit) as caught:
            fitted(net(), Raise(), Checkpoint(store, save_on_signal=[signal.SIGUSR2]))
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert caught.value.code == 128 + signal.SIGUSR2
    assert called == [signal.SIGUSR2]
    assert store.latest().counters["seen"] == 20


def test_the_public_names_are_these() -> None:
    names = {name for name in vars(ckptfmt_keras) if name[0] != "_"}

    assert names >= {"Checkpoint", "Resume", "fit_virtual", "load_model", "save_model"}


def test_the_batch_size_is_recorded_and_another_one_is_said(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(net(), Checkpoint(tmp_path / "run"), epochs=1)
    with ckptfmt.open(tmp_path / "run") as store:
        saved = store.latest().hyperparameters["keras"]["fit"]
    assert (saved["batch_size"], saved["steps"]) == (10, 5)  # four of 10, one of 8

    going_on = Resume(Checkpoint(tmp_path / "run"))
    fitted(net(), going_on.checkpoint, going_on, epochs=2, batch_size=12)

    assert going_on.report is not None
    (found,) = [one for one in going_on.report.findings if one.name.endswith("fit/steps")]
    assert (found.saved, found.now) == (5, 4)
    assert "5 batches, of up to 10 examples" in caplog.text


def test_a_probe_is_saved_with_the_weights_of_each_save(tmp_path: pathlib.Path) -> None:
    x, _ = data()
    models = []
    for others in ([], [Checkpoint(tmp_path / "run", probe=x[:4])]):
        keras.utils.set_random_seed(3)
        models.append(net())
        fitted(models[-1], *others, epochs=2)
    plain, probed = models

    assert bits(probed, "model", "optimizer") == bits(plain, "model", "optimizer")
    reports: list[Any] = []
    ckptfmt_keras.load_model(tmp_path / "run@latest", report=reports.append)
    ckptfmt_keras.load_model(f"{tmp_path}/run@1", report=reports.append)
    assert [report.replay.verdict for report in reports] == ["identical", "identical"]
