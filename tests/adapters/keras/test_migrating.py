"""Files that Keras wrote, migrated, and back in a live model or in a file that Keras reads."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import pytest

import ckptfmt_keras
from ckptfmt import errors, migrate

CORPUS = pathlib.Path(__file__).parents[2] / "corpus" / "files"


def _model(width: int = 5) -> Any:
    """Return a model with weights that differ each time."""
    layers = [
        keras.Input((6, 4)),
        keras.layers.LSTM(width),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(3, activation="relu"),
        keras.layers.Dense(2),
    ]
    model = keras.Sequential(layers)
    model.set_weights(
        [
            np.random.default_rng(n).random(w.shape, np.float32)
            for n, w in enumerate(model.weights)
        ]
    )
    return model


def _predicted(model: Any) -> bytes:
    x = np.random.default_rng(0).random((3, 6, 4), np.float32)
    return np.asarray(model.predict(x, verbose=0)).tobytes()


@pytest.mark.parametrize("file", ["a.weights.h5", "a.keras", "a.h5"])
@pytest.mark.filterwarnings("ignore")  # Keras: .h5 is legacy
def test_a_migrated_file_of_keras_gives_equal_predictions(
    file: str, tmp_path: pathlib.Path
) -> None:
    model = _model()
    (model.save_weights if "weights" in file else model.save)(tmp_path / file)
    checkpoint = migrate.migrate(tmp_path / file, tmp_path / "store", verify=True).checkpoint
    target = keras.models.clone_model(model)
    assert _predicted(target) != _predicted(model)

    ckptfmt_keras.load_migrated(checkpoint, target)

    assert _predicted(target) == _predicted(model)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_keras_2_comes_into_a_model_of_keras_3(tmp_path: pathlib.Path) -> None:
    """A real file of Keras 2.0, against what Keras 3's own reader of old files makes of it."""
    file = CORPUS / "keras-h5-keon-ddqn" / "cartpole-ddqn.h5"
    checkpoint = migrate.migrate(file, tmp_path / "store").checkpoint
    sizes = [checkpoint.arrays[path].shape for path in checkpoint.arrays]
    first, *rest = [shape for shape in sizes if len(shape) == 2]

    def build() -> Any:
        layers = [keras.layers.Dense(shape[1], activation="relu") for shape in (first, *rest)]
        return keras.Sequential([keras.Input((first[0],)), *layers])

    expected, found = build(), build()
    expected.load_weights(file)
    ckptfmt_keras.load_migrated(checkpoint, found)

    x = np.random.default_rng(0).random((4, first[0]), np.float32)
    both = [np.asarray(model.predict(x, verbose=0)).tobytes() for model in (expected, found)]
    assert both[0] == both[1]
    assert any(both[0])


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path: pathlib.Path) -> None:
    _model().save_weights(tmp_path / "a.weights.h5")
    checkpoint = migrate.migrate(tmp_path / "a.weights.h5", tmp_path / "store").checkpoint
    other = _model(width=7)
    before = _predicted(other)

    with pytest.raises(errors.MismatchError, match="does not take these weights"):
        ckptfmt_keras.load_migrated(checkpoint, other)

    assert _predicted(other) == before


def test_a_checkpoint_of_the_adapter_says_how_to_write_weights(tmp_path: pathlib.Path) -> None:
    checkpoint = ckptfmt_keras.save_model(_model(), tmp_path / "run")

    with pytest.raises(errors.UsageError, match="save_weights"):
        migrate.export(checkpoint, tmp_path / "x.weights.h5")
