"""The rules of examples as the clock, in Keras' `fit`: docs/virtual-epochs.md has them all."""

from __future__ import annotations

import logging
import math
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from nets import bits, compiled, data, net
from test_fit import Stop, StopAfter, fitted

import ckptfmt
from ckptfmt.errors import MismatchError, UsageError
from ckptfmt.training import Progress
from ckptfmt_keras import Checkpoint, fit_virtual

TOTAL, EDGES = 200, (50, 100, 150, 200)


class Halt(keras.callbacks.Callback):
    """Stops the training within an epoch, as Keras' own callbacks for bad losses do."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        self.model.stop_training = self.left == 0


def run(
    url: Any,
    *,
    stop_after: float = math.inf,
    model: Any = None,
    examples: Any = None,
    batch_size: int = 10,
    on_resume: Callable[[Progress], object] | None = None,
    callbacks: tuple[Any, ...] = (),
    dataset_size: int | None = None,
) -> tuple[Any, Any, Checkpoint]:
    """Train 200 examples in 4 virtual epochs, or go on."""
    keras.utils.set_random_seed(7)
    model = model or net()
    checkpoint = Checkpoint(url, every_examples=30)
    try:
        history = fit_virtual(
            model, examples or data(),
            Progress(total=TOTAL, virtual_epochs=4) if dataset_size is None else
            Progress(dataset_size=dataset_size, stop_point="4.5", virtual_epochs=4),
            checkpoint=checkpoint, callbacks=[*callbacks, StopAfter(stop_after)],
            batch_size=batch_size, on_resume=on_resume,
        )  # fmt: skip
    finally:
        checkpoint.store.close()
    return model, history, checkpoint


def edges(url: Any) -> list[int]:
    with ckptfmt.open(url) as store:
        return [c.counters["seen"] for c in store if c.counters["complete"]]


def more(count: int) -> tuple[Any, Any]:
    """Return the data with so many examples more."""
    x, y = data()
    return np.concatenate([x, x[:count]]), np.concatenate([y, y[:count]])


# ---- rule 1: another batch size


def test_rule_1_another_batch_size_moves_no_edge(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=7)
    _, history, checkpoint = run(tmp_path / "run", batch_size=16)

    found = edges(tmp_path / "run")
    assert len(found) == 4
    assert all(0 <= at - edge < 16 for at, edge in zip(found, EDGES, strict=True))
    assert history.epoch == [0, 1, 2, 3]
    assert checkpoint.progress is not None
    fed = [(one.from_seen, one.global_batch) for one in checkpoint.progress.segments]
    assert fed == [(0, 10), (60, 16)]  # the newest checkpoint was at 60


def test_rule_1_a_schedule_of_steps_is_a_finding(tmp_path: pathlib.Path) -> None:
    def scheduled() -> Any:
        rate = keras.optimizers.schedules.CosineDecay(0.01, 100)
        return compiled(net(), optimizer=keras.optimizers.Adam(rate))

    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=7, model=scheduled())
    _, _, checkpoint = run(tmp_path / "run", model=scheduled(), batch_size=16)

    assert checkpoint.report is not None
    assert [finding.name for finding in checkpoint.report.findings] == ["schedule"]


# ---- rules 5 to 7: data that grows, a stop point that moves


def test_rule_5_data_that_grew_is_refused_until_it_is_declared(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=7)
    model = net()
    before = bits(model)

    with pytest.raises(MismatchError, match=r"declare\(dataset_size=60\)"):
        run(tmp_path / "run", model=model, examples=more(12))
    assert bits(model, "model", "optimizer") == {
        path: leaf for path, leaf in before.items() if not path.startswith("rng")
    }
    _, _, checkpoint = run(
        tmp_path / "run",
        examples=more(12),
        on_resume=lambda progress: progress.declare(dataset_size=60),
    )

    assert checkpoint.progress is not None
    assert checkpoint.progress.total == TOTAL  # the same examples shown: comparable
    fed = [(one.from_seen, one.dataset_size) for one in checkpoint.progress.segments]
    assert fed == [(0, 48), (60, 60)]
    assert edges(tmp_path / "run") == list(EDGES)


def test_rule_5_a_size_that_is_not_that_of_the_arrays_is_refused(
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(MismatchError, match="another length"):
        run(tmp_path / "run", dataset_size=40)
    assert len(ckptfmt.open(tmp_path / "run")) == 0


def test_rule_6_a_longer_run_keeps_the_old_gap(tmp_path: pathlib.Path) -> None:
    run(tmp_path / "run")
    _, history, _ = run(tmp_path / "run", on_resume=lambda progress: progress.extend(total=300))

    assert edges(tmp_path / "run") == [50, 100, 150, 200, 250, 300]
    assert history.epoch == [0, 1, 2, 3, 4, 5]


def test_rule_7_a_stop_point_below_what_was_seen_stops_at_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=14)
    before = edges(tmp_path / "run")

    _, history, checkpoint = run(
        tmp_path / "run", on_resume=lambda progress: progress.extend(total=90)
    )

    assert checkpoint.seen == 120
    assert history.epoch == [0, 1]
    assert edges(tmp_path / "run") == before == [50, 100]


# ---- rules 10 to 12: windows, several steps at once, the middle of a virtual epoch


@pytest.mark.parametrize("stop_after", [4, 8])
def test_rule_10_a_window_of_gradients_goes_on(tmp_path: pathlib.Path, stop_after: int) -> None:
    def accumulating() -> Any:
        adam = keras.optimizers.Adam(0.01, gradient_accumulation_steps=4)
        return compiled(net(), optimizer=adam)

    expected, whole, first = run(tmp_path / "whole", model=accumulating())
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=stop_after, model=accumulating())
    with ckptfmt.open(tmp_path / "run") as store:
        saved = store.latest().counters
    model, history, again = run(tmp_path / "run", model=accumulating())

    assert saved["applied"] < saved["seen"]  # within a window
    assert bits(model) == bits(expected)
    assert history.history == whole.history
    assert edges(tmp_path / "run") == list(EDGES)
    assert first.progress is not None
    assert again.progress is not None
    assert again.progress.state() == first.progress.state()
    assert again.progress.updates == 5  # of 20 batches


def test_rule_11_several_steps_an_execution_resolve_edges(
    tmp_path: pathlib.Path, backend: str
) -> None:
    if backend == "torch":
        pytest.skip("Keras has no steps_per_execution on torch")

    def several() -> Any:
        return compiled(net(), steps_per_execution=2)

    expected, whole, _ = run(tmp_path / "whole", model=several())
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=5, model=several())
    model, history, checkpoint = run(tmp_path / "run", model=several())

    # 5 batches to an edge: Keras' last execution of an epoch has the one that is left.
    assert edges(tmp_path / "whole") == edges(tmp_path / "run") == list(EDGES)
    assert bits(model) == bits(expected)
    assert history.history == whole.history
    assert checkpoint.seen == TOTAL


def test_rule_12_the_next_edge_is_unchanged_after_a_stop_within(tmp_path: pathlib.Path) -> None:
    expected, _, first = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "run", stop_after=8)
    with ckptfmt.open(tmp_path / "run") as store:
        newest = store.latest().counters
        assert not newest["complete"]
        assert 50 < newest["seen"] < 100
    model, _, again = run(tmp_path / "run")

    assert edges(tmp_path / "run") == list(EDGES)
    assert bits(model) == bits(expected)
    assert first.progress is not None
    assert again.progress is not None
    assert again.progress.state() == first.progress.state()  # no data was shown twice


# ---- rule 14: whoever stops within an epoch


def test_rule_14_a_stop_within_a_virtual_epoch_is_saved_as_incomplete(
    tmp_path: pathlib.Path,
) -> None:
    expected, _, _ = run(tmp_path / "whole")

    run(tmp_path / "run", callbacks=(Halt(7),))

    with ckptfmt.open(tmp_path / "run") as store:
        newest = store.latest().counters
        assert (newest["seen"], newest["complete"], newest["virtual_epoch"]) == (70, False, 1)
    model, _, _ = run(tmp_path / "run")  # goes on at the next example
    assert bits(model, "model", "optimizer") == bits(expected, "model", "optimizer")


def test_rule_14_an_epoch_that_was_stopped_is_not_a_whole_one(store: ckptfmt.Store) -> None:
    fitted(net(), Halt(7), Checkpoint(store))

    assert [c.counters["keras"] for c in store] == [
        {"epoch": 1, "batches": 0, "epochs": 3},
        {"epoch": 1, "batches": 2, "epochs": 3},
    ]


def test_a_signal_at_an_edge_ends_after_the_validation_and_the_save(
    tmp_path: pathlib.Path,
) -> None:
    class Ask(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 4:
                signal.raise_signal(signal.SIGUSR2)

    keras.utils.set_random_seed(7)
    checkpoint = Checkpoint(tmp_path / "run", save_on_signal=[signal.SIGUSR2])
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as caught:
            fit_virtual(
                net(), data(), Progress(total=TOTAL, virtual_epochs=4), checkpoint=checkpoint,
                callbacks=[Ask()], batch_size=10, validation_data=data(),
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGUSR2, before)

    assert caught.value.code == 128 + signal.SIGUSR2
    with ckptfmt.open(tmp_path / "run") as store:
        newest = store.latest()
        assert (newest.counters["seen"], newest.counters["complete"]) == (50, True)
        assert "val_loss" in newest.metrics


# ---- rule 16: generators that end


def test_rule_16_data_that_ran_out_is_told(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = data()
    batches = ((x[at : at + 10], y[at : at + 10]) for at in (0, 10, 20, 30))

    with caplog.at_level(logging.WARNING, "ckptfmt"), pytest.warns(match="ran out of data"):
        net().fit(batches, epochs=2, verbose=0, shuffle=False, callbacks=[Checkpoint(store)])

    assert any("the data ran out" in record.getMessage() for record in caplog.records)


def test_rule_16_a_generator_that_ends_before_the_stop_point_is_an_error(
    tmp_path: pathlib.Path,
) -> None:
    x, y = data()
    with pytest.raises(UsageError, match="exhausted"):
        run(tmp_path / "run", examples=iter([(x[:10], y[:10])] * 3))
