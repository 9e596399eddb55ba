"""A restore fills everything or changes nothing, and says what differs."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import pytest
from keras import layers
from nets import bits, compiled, net, outputs, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.errors import IntegrityError, MismatchError, NotFoundError, UsageError
from ckptfmt_keras import restoring


def test_another_architecture_is_an_error_before_a_byte_is_read(
    store: ckptfmt.Store, tmp_path: pathlib.Path
) -> None:
    saved = ckptfmt_keras.save_model(trained(net()), store)
    for file in (tmp_path / "run" / "data").iterdir():
        file.write_bytes(b"")  # whoever reads this, fails otherwise
    other = compiled(keras.Sequential([
        keras.Input((8,)), layers.Dense(6, activation="tanh"), layers.BatchNormalization(),
        layers.Dropout(0.3), layers.Dense(3),
    ]))  # fmt: skip
    before = bits(other)

    with pytest.raises(MismatchError, match=r"'relu'.*'tanh'"):
        ckptfmt_keras.restore(saved, other)
    assert bits(other) == before


def test_a_missing_layer_is_named(store: ckptfmt.Store) -> None:
    saved = ckptfmt_keras.save_model(trained(net()), store)
    other = compiled(keras.Sequential([keras.Input((8,)), layers.Dense(3)]))
    before = bits(other)

    with pytest.raises(MismatchError):
        ckptfmt_keras.restore(saved, other, strict=False)
    assert bits(other) == before


def test_a_further_layer_is_an_error_with_the_list(store: ckptfmt.Store) -> None:
    model = net()
    saved = ckptfmt_keras.save_model(trained(model), store)
    model.add(layers.Dense(3, name="more"))
    compiled(model)
    before = bits(model)

    with pytest.raises(MismatchError, match="more"):
        ckptfmt_keras.restore(saved, model)
    with pytest.raises(MismatchError, match="more/bias"):
        ckptfmt_keras.load_weights(saved, model)
    assert bits(model) == before


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_arrays_are_read_where_they_belong(
    store: ckptfmt.Store, policy: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch into the memory of the variables; else what is freed is given back."""
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(6), layers.Dense(3)])
    saved = ckptfmt_keras.save_model(model, store)
    expected = bits(model)
    for variable in model.weights:
        variable.assign(variable + 1)
    assigned: list[Any] = []
    given_back: list[bool] = []
    assign = type(model.weights[0]).assign
    monkeypatch.setattr(restoring._Assigned, "_EVERY", 1)
    monkeypatch.setattr(restoring, "give_back", lambda: given_back.append(True))
    monkeypatch.setattr(
        type(model.weights[0]), "assign",
        lambda variable, value: assigned.append(variable) or assign(variable, value),
    )  # fmt: skip

    ckptfmt_keras.restore(saved, model, rng=False)

    assert bits(model) == expected
    assert len(assigned) == len(given_back) == (0 if backend == "torch" else 4)


def test_damage_changes_nothing(store: ckptfmt.Store, tmp_path: pathlib.Path) -> None:
    saved = ckptfmt_keras.save_model(trained(net()), store)
    for file in (tmp_path / "run" / "data").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    other = net()
    before = bits(other)

    with pytest.raises(IntegrityError):
        ckptfmt_keras.restore(saved, other)
    assert bits(other) == before


def test_a_dtype_policy_that_differs_is_a_finding(store: ckptfmt.Store) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    saved = ckptfmt_keras.save_model(trained(net()), store)
    keras.config.set_dtype_policy("float32")
    other = net()

    report = ckptfmt_keras.restore(saved, other)

    assert {finding.name for finding in report.findings} >= {
        "architecture/dtype_policy", "architecture/policies",
    }  # fmt: skip
    assert "mixed_bfloat16" in repr([f.saved for f in report.findings])


def test_a_loss_scale_that_is_not_there_is_an_error(store: ckptfmt.Store) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    saved = ckptfmt_keras.save_model(trained(net()), store)
    keras.config.set_dtype_policy("float32")

    with pytest.raises(MismatchError, match="optimizer/"):
        ckptfmt_keras.restore(saved, net())


def test_another_optimizer_is_an_error(store: ckptfmt.Store) -> None:
    saved = ckptfmt_keras.save_model(trained(net()), store)
    other = compiled(net(), optimizer="sgd")
    before = bits(other)

    with pytest.raises(MismatchError, match="optimizer/slots/velocity"):
        ckptfmt_keras.restore(saved, other)
    assert bits(other) == before
    ckptfmt_keras.restore(saved, other, optimizer=False)
    assert bits(other, "model") != before


def test_names_of_layers_do_not_matter(store: ckptfmt.Store) -> None:
    model = trained(net(first="alpha", last="omega"))
    saved = ckptfmt_keras.save_model(model, store)
    other = net(first="eins", last="zwei")

    assert ckptfmt_keras.restore(saved, other).findings == ()
    assert bits(other) == bits(model)


def test_fine_tuning_takes_what_is_selected(store: ckptfmt.Store) -> None:
    model = trained(net(first="body", last="head"))
    saved = ckptfmt_keras.save_model(model, store)
    other = net(first="trunk", last="new")
    before = bits(other, "model")

    report = ckptfmt_keras.load_weights(
        saved, other, select="body/**", rename={"body": "trunk"}
    )

    assert report.matched == ("trunk/bias", "trunk/kernel")
    after = bits(other, "model")
    assert after["model/0000.kernel"] == bits(model)["model/0000.kernel"]
    assert after["model/0006.kernel"] == before["model/0006.kernel"]


def test_fine_tuning_names_what_does_not_fit(store: ckptfmt.Store) -> None:
    saved = ckptfmt_keras.save_model(trained(net(first="body", last="head")), store)
    other = net(first="trunk", last="new")
    before = bits(other)

    with pytest.raises(NotFoundError, match="nothing in the model matches"):
        ckptfmt_keras.load_weights(saved, other, select="nobody/*")
    with pytest.raises(MismatchError, match="body/bias"):
        ckptfmt_keras.load_weights(saved, other, select="body/*")
    with pytest.raises(UsageError):
        ckptfmt_keras.load_weights(saved, other, view="other")
    assert bits(other) == before


def test_averages_are_a_view_of_the_checkpoint(store: ckptfmt.Store) -> None:
    names = {"first": "a", "last": "b"}
    model = trained(compiled(net(**names), optimizer=keras.optimizers.Adam(use_ema=True)))
    average = bits(model, "optimizer")["optimizer/slots/average/0000.kernel"]
    saved = ckptfmt_keras.save_model(model, store)
    with pytest.raises(NotFoundError, match="use_ema"):
        ckptfmt_keras.load_weights(
            ckptfmt_keras.save_model(trained(net()), store), net(), view="ema"
        )
    other = net(**names)
    # The names that Keras gives are numbered on: those of the batch norm are mapped by hand.
    inner = {f"{model.layers[1].name}": other.layers[1].name}

    ckptfmt_keras.load_weights(saved, other, view="ema", rename=inner)

    assert bits(other, "model")["model/0000.kernel"] == average
    assert bits(model, "model")["model/0000.kernel"] != average


def test_outputs_are_those_of_the_saved_model(store: ckptfmt.Store) -> None:
    model = trained(net())
    saved = ckptfmt_keras.save_model(model, store)
    expected = outputs(model)
    trained(model)
    assert outputs(model) != expected

    ckptfmt_keras.restore(saved, model)

    assert outputs(model) == expected
