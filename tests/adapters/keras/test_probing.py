"""A loaded Keras model predicts the same, or the diagnosis says why."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from nets import data, net, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.errors import NotFoundError

X = data()[0][:5]


@pytest.fixture
def model() -> Any:
    return trained(net())


def first(replay: Any) -> str:
    assert replay.verdict == "different"
    return str(replay.causes[0].name)


def test_a_clean_reload_is_identical(store: ckptfmt.Store, model: Any) -> None:
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    loaded = ckptfmt_keras.load_model(saved)

    assert ckptfmt_keras.diagnose(saved, loaded).verdict == "identical"


def test_a_changed_weight(store: ckptfmt.Store, model: Any) -> None:
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    loaded = ckptfmt_keras.load_model(saved)
    loaded.layers[-1].bias.assign(np.ones(3, np.float32))

    assert first(ckptfmt_keras.diagnose(saved, loaded)) == "changed array"


def test_another_precision(store: ckptfmt.Store, model: Any) -> None:
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    keras.config.set_dtype_policy("mixed_bfloat16")
    other = net()
    ckptfmt_keras.restore(saved, other, strict=False, rng=False, optimizer=False)

    assert first(ckptfmt_keras.diagnose(saved, other)) == "precision"


def test_another_default_of_a_layer(store: ckptfmt.Store) -> None:
    def block(epsilon: float) -> Any:
        return keras.Sequential(
            [keras.Input((8,)), layers.BatchNormalization(epsilon=epsilon), layers.Dense(3)]
        )

    model, other, same = block(1e-3), block(1e-1), block(1e-3)
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    for one in (other, same):
        one.set_weights(model.get_weights())

    assert first(ckptfmt_keras.diagnose(saved, other)) == "settings"
    assert ckptfmt_keras.diagnose(saved, same).verdict == "identical"


def test_other_preprocessing(store: ckptfmt.Store, model: Any) -> None:
    probe = ckptfmt_keras.probe(model, X, prepare=lambda x: x / 2)
    saved: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    loaded = ckptfmt_keras.load_model(saved)

    other = ckptfmt_keras.diagnose(saved, loaded, prepare=lambda x: x / 3)
    same = ckptfmt_keras.diagnose(saved, loaded, prepare=lambda x: x / 2)

    assert first(other) == "preprocessing"
    assert same.verdict == "identical"


def test_without_a_probe(store: ckptfmt.Store, model: Any) -> None:
    saved: Any = ckptfmt_keras.save_model(model, store)

    with pytest.raises(NotFoundError, match="no probe"):
        ckptfmt_keras.diagnose(saved, model)
