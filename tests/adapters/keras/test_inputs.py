"""What `fit` takes, `fit_virtual` takes, and goes on with; strings and numbers with what layers
adapted to.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from nets import SIZE, bits, compiled, data, net
from test_fit import Stop, StopAfter

import ckptfmt
import ckptfmt_keras
from ckptfmt.training import Progress
from ckptfmt_keras import Checkpoint, fit_virtual

BATCH = 9  # 48 examples: five batches and one of three in each pass


def batches() -> Iterator[Any]:
    x, y = data()
    return ((x[at : at + BATCH], y[at : at + BATCH]) for at in range(0, SIZE, BATCH))


def endless() -> Iterator[Any]:
    while True:
        yield from batches()


class Batches(keras.utils.PyDataset):
    """The same batches, by number."""

    def __len__(self) -> int:
        return -(-SIZE // BATCH)

    def __getitem__(self, number: int) -> Any:
        return next(itertools.islice(batches(), number, None))


def tf_data() -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(data()).batch(BATCH).prefetch(2)


def loader() -> Any:
    import torch

    x, y = data()
    examples = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return torch.utils.data.DataLoader(examples, batch_size=BATCH)


SOURCES: dict[str, Callable[[], Any]] = {
    "passes": lambda: batches,
    "endless": endless,
    "list": lambda: list(batches()),
    "PyDataset": Batches,
    "tf.data": tf_data,
    "DataLoader": loader,
}


def run(url: Any, source: Any, stop_after: float = 0) -> tuple[Any, Any]:
    keras.utils.set_random_seed(7)
    model = net()
    with ckptfmt.open(url) as store:
        history = fit_virtual(
            model, source, Progress(total=100, virtual_epochs=2),
            checkpoint=Checkpoint(store, every_examples=20),
            callbacks=[StopAfter(stop_after)], batch_size=BATCH,
        )  # fmt: skip
    return model, history


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    model, history = run(tmp_path_factory.mktemp("whole") / "run", batches)
    return bits(model), history.history


@pytest.mark.parametrize("name", SOURCES)
def test_data_of_each_kind_goes_on_at_the_next_batch(
    tmp_path: pathlib.Path, name: str, backend: str, expected: tuple[dict[str, Any], Any]
) -> None:
    if backend == "torch" and name == "tf.data":
        pytest.skip("one process with torch and TensorFlow: run on the other backends")
    with pytest.raises(Stop):
        run(tmp_path / "run", SOURCES[name](), 9)  # in the second pass
    model, history = run(tmp_path / "run", SOURCES[name]())

    with ckptfmt.open(tmp_path / "run") as store:
        seen = [c.counters["seen"] for c in store if c.counters["complete"]]
    assert seen == [57, 105]
    assert (bits(model), history.history) == expected


@pytest.mark.parametrize("given", [None, 3])
def test_a_loader_that_shuffles_goes_on_in_its_order(
    tmp_path: pathlib.Path, given: int | None
) -> None:
    import torch

    def shuffled() -> Any:
        own = None if given is None else torch.Generator().manual_seed(given)
        torch.manual_seed(next(processes))  # what a process drew before is never the same
        return torch.utils.data.DataLoader(
            loader().dataset, batch_size=BATCH, shuffle=True, generator=own
        )

    processes = itertools.count()
    whole, history = run(tmp_path / "whole", shuffled())
    with pytest.raises(Stop):
        run(tmp_path / "run", shuffled(), 9)  # in the second pass
    again, same = run(tmp_path / "run", shuffled())

    assert bits(again) == bits(whole)
    assert same.history == history.history


def test_data_in_another_order_is_said(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    def turned() -> Iterator[Any]:
        yield from reversed(list(batches()))

    with pytest.raises(Stop):
        run(tmp_path / "run", batches, 9)
    checkpoint = Checkpoint(tmp_path / "run", every_examples=20)
    fit_virtual(
        net(), turned, Progress(total=100, virtual_epochs=2),
        checkpoint=checkpoint, callbacks=[StopAfter(0)], batch_size=BATCH,
    )  # fmt: skip

    assert checkpoint.report is not None
    (found,) = [one for one in checkpoint.report.findings if one.name == "data"]
    assert "another order" in found.reason
    assert "another order" in caplog.text
    assert checkpoint.progress is not None
    assert any(segment.data_replay for segment in checkpoint.progress.segments)


def test_rows_of_a_dictionary_and_weights(tmp_path: pathlib.Path) -> None:
    x, y = data()

    def model() -> Any:
        keras.utils.set_random_seed(7)
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        return compiled(keras.Model({"a": a, "b": b}, layers.Dense(3)(layers.Add()([a, b]))))

    def fitted(url: Any, stop_after: float) -> Any:
        one = model()
        rows = {"a": x[:, :4], "b": x[:, 4:]}
        fit_virtual(
            one, (rows, y, np.linspace(0, 1, SIZE, dtype=np.float32)),
            Progress(total=100, virtual_epochs=2), batch_size=BATCH,
            checkpoint=Checkpoint(url, every_examples=20), callbacks=[StopAfter(stop_after)],
        )  # fmt: skip
        return one

    whole = fitted(tmp_path / "whole", 0)
    with pytest.raises(Stop):
        fitted(tmp_path / "run", 9)
    again = fitted(tmp_path / "run", 0)

    assert bits(again) == bits(whole)
    with ckptfmt.open(tmp_path / "run") as store:
        # Weights of examples do not change how many were seen.
        assert [c.counters["seen"] for c in store if c.counters["complete"]] == [54, 108]


# ---- strings


TEXTS = np.array([["the cat sat"], ["the dog"], ["a cat"], ["sat sat sat"]], dtype=object)


def reader(*, adapted: bool) -> Any:
    """Return a model that reads text, and a category."""
    texts = layers.TextVectorization(max_tokens=9, output_sequence_length=3)
    names = layers.StringLookup()
    numbers = layers.Normalization()
    if adapted:
        texts.adapt(TEXTS[:, 0].astype(str))
        names.adapt(["red", "green", "red"])
        numbers.adapt(data()[0])
    a = keras.Input((1,), dtype="string")
    b = keras.Input((1,), dtype="string")
    c = keras.Input((8,))
    words = layers.Flatten()(layers.Embedding(9, 4)(texts(a)))
    colour = layers.Flatten()(layers.Embedding(9, 2)(names(b)))
    found = layers.Dense(3)(layers.Concatenate()([words, colour, numbers(c)]))
    return compiled(keras.Model([a, b, c], found))


def test_vocabularies_come_back(store: ckptfmt.Store, backend: str) -> None:
    if backend != "tensorflow":
        pytest.skip("tensors of strings exist on TensorFlow only")
    import tensorflow as tf

    model = reader(adapted=True)
    colours = np.array([["red"], ["green"], ["blue"], ["red"]], dtype=object)
    given = [tf.constant(TEXTS), tf.constant(colours), tf.constant(data()[0][:4])]
    answer = np.asarray(model(given, training=False)).tobytes()
    saved = ckptfmt_keras.save_model(model, store)
    assert isinstance(saved, ckptfmt.Checkpoint)

    made = ckptfmt_keras.load_model(saved)
    filled = reader(adapted=False)
    ckptfmt_keras.restore(saved, filled, strict=False)

    assert np.asarray(made(given, training=False)).tobytes() == answer
    assert np.asarray(filled(given, training=False)).tobytes() == answer
    assert bits(made, "model", "optimizer") == bits(model, "model", "optimizer")
