"""A model saved and loaded again is the same model, or an error says what is in the way."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from nets import bits, compiled, data, net, outputs, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.errors import MismatchError, NotFoundError, UsageError


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer with layers inside, one of them in a list within a list."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.dense = layers.Dense(units)
        self.more = [[layers.Dense(units)], {"last": layers.Dense(units)}]

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.dense.build(shape)
        inner = (*shape[:-1], self.units)
        self.more[0][0].build(inner)
        self.more[1]["last"].build(inner)
        self.built = True

    def call(self, x: Any) -> Any:
        return self.more[1]["last"](self.more[0][0](self.dense(x)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that is built when it sees its first batch."""

    def __init__(self, units: int = 5, **options: Any) -> None:
        super().__init__(**options)
        self.units = units
        self.hidden = layers.Dense(units, activation="relu")
        self.block = Block(4)
        self.out = layers.Dense(3)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.block(self.hidden(x)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def functional() -> Any:
    first = keras.Input((8,), name="examples")
    x = layers.Dense(6, activation="relu")(first)
    return compiled(keras.Model(first, layers.Dense(3)(layers.Add()([x, layers.Dense(6)(x)]))))


def nested() -> Any:
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.BatchNormalization()])
    deeper = keras.Sequential([inner, layers.Dense(6)])
    return compiled(keras.Sequential([keras.Input((8,)), deeper, layers.Dense(3)]))


def subclassed() -> Any:
    return compiled(Subclassed())


def shared() -> Any:
    first = keras.Input((8,))
    twice = layers.Dense(8)
    return compiled(keras.Model(first, layers.Dense(3)(twice(twice(first)))))


def recurrent() -> Any:
    return compiled(
        keras.Sequential(
            [
                keras.Input((8,)),
                layers.Reshape((4, 2)),
                layers.Bidirectional(layers.GRU(3, return_sequences=True, dropout=0.1)),
                layers.LSTM(3),
                layers.Dense(3),
            ]
        )
    )


def accumulating() -> Any:
    model = net()
    return compiled(model, optimizer=keras.optimizers.SGD(
        0.1, momentum=0.9, gradient_accumulation_steps=3))  # fmt: skip


def averaging() -> Any:
    return compiled(net(), optimizer=keras.optimizers.AdamW(use_ema=True))


def scheduled() -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 100)
    return compiled(net(), optimizer=keras.optimizers.Adafactor(schedule))


def mixed() -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    return net()


def answer(model: Any, given: Any) -> bytes:
    """Return what a model says, in inference, as bytes."""
    found: bytes = keras.ops.convert_to_numpy(model(given, training=False)).tobytes()
    return found


ZOO = {f.__name__: f for f in (
    net, functional, nested, subclassed, shared, recurrent, accumulating, averaging, scheduled,
    mixed,
)}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_a_model_comes_back_with_all_it_had(store: ckptfmt.Store, name: str) -> None:
    model = trained(ZOO[name]())
    saved = ckptfmt_keras.save_model(model, store)
    keras.config.set_dtype_policy("float32")
    expected, predicted = bits(model, "model", "optimizer"), outputs(model)

    again = ckptfmt_keras.load_model(saved)

    assert bits(again, "model", "optimizer") == expected
    assert outputs(again) == predicted


@pytest.mark.parametrize("name", ZOO)
def test_a_model_built_by_code_is_filled_and_goes_on(store: ckptfmt.Store, name: str) -> None:
    model = trained(ZOO[name]())
    saved = ckptfmt_keras.save_model(model, store)
    keras.config.set_dtype_policy("float32")
    other = ZOO[name]()

    report = ckptfmt_keras.restore(saved, other)

    assert report.ok
    assert report.findings == ()
    assert bits(other) == bits(model)
    x, y = data()
    again = ckptfmt_keras.capture(model)["rng"]  # both steps begin with the same generators
    losses = []
    for one in (model, other):
        ckptfmt_keras.generators.plan(again, one, "rng")[0]()
        losses.append(one.train_on_batch(x, y))
    assert losses[0] == losses[1]
    assert bits(model, "model", "optimizer") == bits(other, "model", "optimizer")


def test_two_inputs_and_a_stateful_rnn(store: ckptfmt.Store) -> None:
    a = keras.Input((4, 2), batch_size=4, name="a")
    b = keras.Input((3,), batch_size=4, name="b")
    x = layers.GRU(3, stateful=True)(a)
    model = keras.Model({"a": a, "b": b}, layers.Dense(1)(layers.Concatenate()([x, b])))
    model.compile("rmsprop", "mse")
    given = {"a": np.ones((4, 4, 2), np.float32), "b": np.ones((4, 3), np.float32)}
    model(given)  # moves the state on; torch cannot train a stateful GRU
    saved = ckptfmt_keras.save_model(model, store)

    again = ckptfmt_keras.load_model(saved)

    assert bits(again, "model", "optimizer") == bits(model, "model", "optimizer")
    assert answer(again, given) == answer(model, given)


def test_what_preprocessing_layers_adapted_to_comes_back(store: ckptfmt.Store) -> None:
    rows = data()[0]
    normal, lookup = layers.Normalization(), layers.IntegerLookup()
    normal.adapt(rows)
    lookup.adapt(np.array([[5], [7], [7], [9]]))
    buckets = layers.Discretization(num_bins=3)
    buckets.adapt(rows[:, :1])
    first, second = keras.Input((8,)), keras.Input((1,), dtype="int32")
    third = keras.Input((1,))
    model = keras.Model(
        [first, second, third],
        layers.Concatenate()([
            normal(first), layers.Flatten()(layers.Embedding(9, 2)(lookup(second))),
            layers.Flatten()(layers.Embedding(4, 2)(buckets(third))),
        ]),
    )  # fmt: skip
    given = [rows[:4], np.array([[5], [7], [9], [11]], np.int32), rows[:4, :1]]
    expected = answer(model, given)

    again = ckptfmt_keras.load_model(ckptfmt_keras.save_model(model, store))

    assert answer(again, given) == expected


def test_a_url_and_an_address_do_as_well(tmp_path: pathlib.Path) -> None:
    model = trained(net())
    ckptfmt_keras.save_model(model, tmp_path / "run", metrics={"val_loss": 0.5})

    again = ckptfmt_keras.load_model(f"{tmp_path / 'run'}@best:val_loss")

    assert outputs(again) == outputs(model)


def test_what_is_recorded_without_being_asked(store: ckptfmt.Store) -> None:
    saved = ckptfmt_keras.save_model(scheduled(), store, hyperparameters={"width": 6})

    found = store.latest().hyperparameters
    assert found["width"] == 6
    assert found["keras"]["optimizer"]["class"] == "Adafactor"
    assert found["keras"]["optimizer"]["schedule"]["class_name"] == "CosineDecay"
    assert found["keras"]["loss"]["class_name"] == "SparseCategoricalCrossentropy"
    assert found["keras"]["metrics"] == ["accuracy"]
    assert saved.architecture["labels"]["0000.kernel"].endswith("/kernel")
    assert "keras.src" not in repr(saved.architecture["config"])


def test_an_unbuilt_model_is_refused(store: ckptfmt.Store) -> None:
    with pytest.raises(UsageError, match="not built"):
        ckptfmt_keras.save_model(Subclassed(), store)
    with pytest.raises(NotFoundError):
        store.latest()


def test_an_unbuilt_model_is_built_to_be_restored(store: ckptfmt.Store) -> None:
    model = trained(subclassed())
    saved = ckptfmt_keras.save_model(model, store)
    other = subclassed()

    ckptfmt_keras.restore(saved, other)

    assert bits(other) == bits(model)


def test_a_class_that_is_not_registered_is_named(store: ckptfmt.Store) -> None:
    class Unknown(Block):
        """A class that this process knows, and nobody registered."""

    model = compiled(keras.Sequential([keras.Input((8,)), Unknown(3)]))
    saved = ckptfmt_keras.save_model(model, store)

    with pytest.raises(MismatchError, match="Unknown") as caught:
        ckptfmt_keras.load_model(saved)
    assert "register_keras_serializable" in str(caught.value)


def test_a_lambda_is_built_only_when_asked_for(store: ckptfmt.Store) -> None:
    model = keras.Sequential([keras.Input((8,)), layers.Lambda(lambda x: 2 * x)])
    saved = ckptfmt_keras.save_model(model, store)

    with pytest.raises(UsageError, match="Lambda"):
        ckptfmt_keras.load_model(saved)
    assert outputs(ckptfmt_keras.load_model(saved, unsafe=["Lambda"])) == outputs(model)


def test_a_model_without_a_config_is_restored_but_not_made(store: ckptfmt.Store) -> None:
    class Opaque(keras.Model):
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function, self.dense = function, layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.dense(self.function(x))

    model = Opaque(object.__new__)
    model.function = keras.ops.abs
    model(data()[0])
    saved = ckptfmt_keras.save_model(model, store)
    other = Opaque(object.__new__)
    other.function = keras.ops.abs
    other(data()[0])

    ckptfmt_keras.restore(saved, other)

    assert bits(other, "model") == bits(model, "model")
    with pytest.raises(UsageError, match="build it by code"):
        ckptfmt_keras.load_model(saved)


def test_another_checkpoint_is_refused(store: ckptfmt.Store) -> None:
    saved = store.save({"model": {"w": np.ones(3)}})

    with pytest.raises(NotFoundError, match="no Keras model"):
        ckptfmt_keras.load_model(saved)


def test_a_save_does_not_import_tensorflow(tmp_path: pathlib.Path, backend: str) -> None:
    """Keras would, for seconds, where it is installed."""
    if backend == "tensorflow":
        pytest.skip("it is the backend")
    program = (
        "import sys, warnings; warnings.simplefilter('ignore'); import keras, ckptfmt_keras;"
        "model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]);"
        "model.compile('adam', 'mse'); before = 'tensorflow' in sys.modules;"
        "ckptfmt_keras.save_model(model, sys.argv[1]);"
        "ckptfmt_keras.load_model(sys.argv[1]);"
        "assert before or 'tensorflow' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "run"],
        check=False, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
