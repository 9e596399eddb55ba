"""A plain `fit` goes on in the order of its data, or says that it may not."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from nets import SIZE, bits, data, net
from test_fit import Stop, StopAfter

from ckptfmt_keras import Checkpoint, Resume, ordering

BATCH = 12  # four batches an epoch


class Shuffled(keras.utils.PyDataset):
    """Shuffles by a generator of its own at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.places = np.arange(SIZE)
        self.rng = np.random.default_rng(4)

    def __len__(self) -> int:
        return SIZE // BATCH

    def __getitem__(self, number: int) -> Any:
        x, y = data()
        here = self.places[number * BATCH :][:BATCH]
        return x[here], y[here]

    def on_epoch_end(self) -> None:
        self.rng.shuffle(self.places)


class Remembers(Shuffled):
    """The same, and says how far it is."""

    def state_dict(self) -> dict[str, Any]:
        return {"places": self.places.copy(), "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.places[:] = state["places"]
        self.rng.bit_generator.state = state["rng"]


class InOrder(Shuffled):
    """The same batches in each epoch, which `fit` shuffles."""

    on_epoch_end = keras.utils.PyDataset.on_epoch_end


def loader(seed: int | None) -> Any:
    import torch

    x, y = data()
    examples = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    torch.manual_seed(5)  # which Keras does on torch only
    own = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(examples, BATCH, shuffle=True, generator=own)


def generator() -> Iterator[Any]:
    x, y = data()
    while True:
        for at in range(0, SIZE, BATCH):
            yield x[at : at + BATCH], y[at : at + BATCH]


def tf_data(*, shuffled: bool) -> Any:
    import tensorflow as tf

    found = tf.data.Dataset.from_tensor_slices(data())
    return (found.shuffle(SIZE, seed=1) if shuffled else found).batch(BATCH).prefetch(2)


def run(url: Any, source: Any, stop_after: float, **options: Any) -> tuple[Any, Resume]:
    keras.utils.set_random_seed(7)
    model = net()
    resume = Resume(checkpoint := Checkpoint(url))
    try:
        model.fit(
            source, epochs=4, verbose=0, callbacks=[StopAfter(stop_after), checkpoint, resume],
            **options,
        )  # fmt: skip
    finally:
        checkpoint.store.close()
    return model, resume


def reasons(resume: Resume) -> list[str]:
    assert resume.report is not None
    return [one.reason for one in resume.report.findings if one.name == "data"]


@pytest.mark.parametrize(
    "source",
    [InOrder, Remembers, lambda: loader(None), lambda: loader(3)],
    ids=["PyDataset", "state_dict", "DataLoader", "own generator"],
)
def test_a_fit_goes_on_in_the_order_of_its_data(
    tmp_path: pathlib.Path, source: Callable[[], Any]
) -> None:
    options = {"shuffle": source is InOrder}  # the others do it themselves
    whole, _ = run(tmp_path / "whole", source(), math.inf, **options)
    with pytest.raises(Stop):
        run(tmp_path / "run", source(), 10, **options)
    model, resume = run(tmp_path / "run", source(), math.inf, **options)

    assert bits(model, "model", "optimizer") == bits(whole, "model", "optimizer")
    assert reasons(resume) == []


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (Shuffled, {}, "Shuffled changes with each epoch"),
        (generator, {"steps_per_epoch": 3, "shuffle": False}, "a generator begins anew"),
        (InOrder, {"steps_per_epoch": 3}, "an epoch is no pass"),
    ],
    ids=["PyDataset", "generator", "steps_per_epoch"],
)
def test_data_whose_order_is_not_known_is_told(
    tmp_path: pathlib.Path,
    source: Callable[[], Any],
    options: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Stop):
        run(tmp_path / "run", source(), 5, **options)  # in the second epoch
    assert "another order" not in caplog.text
    _, resume = run(tmp_path / "run", source(), math.inf, **options)

    (found,) = reasons(resume)
    assert reason in found
    assert reason in caplog.text


def test_a_release_that_hides_the_data_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "_iterator", lambda: None)
    with pytest.raises(Stop):
        run(tmp_path / "run", InOrder(), 5, shuffle=False)
    _, resume = run(tmp_path / "run", InOrder(), math.inf, shuffle=False)

    (found,) = reasons(resume)
    assert "does not show" in found


@pytest.mark.parametrize("shuffled", [True, False])
def test_what_tensorflow_shuffles_is_told(
    tmp_path: pathlib.Path, shuffled: bool, backend: str
) -> None:
    if backend != "tensorflow":
        pytest.skip("the others shuffle where a checkpoint has the generator")
    x, y = data()
    given: list[tuple[Any, dict[str, Any]]] = [
        (x, {"y": y, "shuffle": shuffled}),
        (tf_data(shuffled=shuffled), {"shuffle": False}),
    ]
    for number, (source, options) in enumerate(given):
        with pytest.raises(Stop):
            run(tmp_path / str(number), source, 7, **options)
        _, resume = run(tmp_path / str(number), source, math.inf, **options)
        assert len(reasons(resume)) == shuffled
