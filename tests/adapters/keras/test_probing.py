"""A probe changes nothing, is replayed when asked, and determinism is set and recorded."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import random
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from nets import bits, data, net, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.checks import LoadReport
from ckptfmt.checks.environment import compare
from ckptfmt.errors import MismatchError, NotFoundError, UsageError
from ckptfmt_keras import numerics

X = data()[0][:5]


@keras.saving.register_keras_serializable()
class Writing(keras.Model):  # type: ignore[misc]  # untyped
    """Draws, counts and writes into all that may be an attribute, even in inference."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = layers.Dense(3)
        self.seeds = keras.random.SeedGenerator(3)
        self.calls, self.table = 0, np.zeros(2)
        self.log: list[Any] = []
        self.deep: dict[str, Any] = {"a": [0]}

    def build(self, shape: Any) -> None:
        self.dense.build(shape)
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count"
        )

    def call(self, x: Any, training: bool = False) -> Any:
        self.count.assign(self.count + 1)
        self.calls += 1
        self.table += 1
        self.log.append(self.calls)
        self.deep["a"][0] += 1
        drawn = random.random() + np.random.rand()
        noise = keras.random.normal((3,), seed=self.seeds) + keras.random.normal((3,))
        return self.dense(x) + self.count + 0.1 * noise + 0.1 * drawn

    def position(self) -> Any:
        return [
            self.calls, self.table.tolist(), list(self.log), list(self.deep["a"]),
            np.asarray(keras.ops.convert_to_numpy(self.count)).tolist(),
            bits(self, "model", "rng"),
        ]  # fmt: skip


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what this library logged; frameworks log as they like."""
    return [record.getMessage() for record in caplog.records if record.name == "ckptfmt"]


def test_a_probe_leaves_everything_as_it_was(store: ckptfmt.Store) -> None:
    model = Writing()
    model.build((None, 8))
    model(X)
    before = model.position()
    probe = ckptfmt_keras.probe(model, X)
    saved: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    ckptfmt_keras.diagnose(saved, model)

    assert model.position() == before
    assert not probe.deterministic  # it draws
    assert (probe.dtype, probe.about["backend"]) == ("float32", keras.backend.backend())


def test_the_first_to_draw_leaves_no_generator_behind() -> None:
    keras.utils.set_random_seed(3)
    model = net()
    keras.utils.set_random_seed(3)
    expected = np.asarray(keras.ops.convert_to_numpy(keras.random.normal((3,))))
    keras.utils.set_random_seed(3)
    prepare = layers.Rescaling(0.5)

    def drawing(x: Any) -> Any:
        keras.random.normal((3,))
        return prepare(x)

    ckptfmt_keras.probe(model, X, prepare=drawing)
    found = np.asarray(keras.ops.convert_to_numpy(keras.random.normal((3,))))
    assert found.tobytes() == expected.tobytes()


def test_preprocessing_draws_without_disturbing(store: ckptfmt.Store) -> None:
    def crop(x: Any) -> Any:
        np.random.rand(), random.random(), keras.random.normal((2,))
        return x / 2

    model = trained(net())
    keras.random.normal((2,))
    before = bits(model, "rng")
    probe = ckptfmt_keras.probe(model, X, prepare=crop)
    assert bits(model, "rng") == before
    saved: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    replay = ckptfmt_keras.diagnose(saved, model, inputs=ckptfmt_keras.Inputs(prepare=crop))
    assert replay.verdict == "identical"
    assert bits(model, "rng") == before


def test_augmentation_in_preprocessing_is_refused(store: ckptfmt.Store) -> None:
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(2)])
    images = np.linspace(0, 1, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
    noise = layers.GaussianNoise(0.5)
    with pytest.raises(UsageError, match="turn augmentation off"):
        ckptfmt_keras.probe(model, images, prepare=lambda x: noise(x, training=True))
    off = ckptfmt_keras.probe(model, images, prepare=lambda x: noise(x, training=False))
    assert off.prepared.tobytes() == images.tobytes()


def test_augmenting_layers_of_a_model_are_off(store: ckptfmt.Store) -> None:
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)), layers.GaussianNoise(0.5), layers.RandomFlip(),
            layers.Flatten(), layers.Dense(2),
        ]
    )  # fmt: skip
    images = np.linspace(0, 1, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
    on = [np.array(keras.ops.convert_to_numpy(model(images, training=True))) for _ in range(2)]
    assert on[0].tobytes() != on[1].tobytes()
    probe = ckptfmt_keras.probe(model, images)
    assert probe.deterministic
    saved: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    assert ckptfmt_keras.diagnose(saved, model).verdict == "identical"
    wrong = ckptfmt_keras.diagnose(saved, model, training=True)
    assert (wrong.causes[0].name, wrong.causes[0].strength) == ("train mode", "proven")


def test_a_model_that_changes_its_weights_has_no_probe() -> None:
    class Clipped(keras.Model):  # type: ignore[misc]  # untyped
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(8, 2), name="kernel")

        def call(self, x: Any, training: bool = False) -> Any:
            self.kernel.assign(self.kernel * 0.5)
            return keras.ops.matmul(x, self.kernel)

    model = Clipped()
    model.build((None, 8))
    with pytest.raises(UsageError, match="changes its trainable variables"):
        ckptfmt_keras.probe(model, X)


def test_when_a_probe_is_replayed(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(net())
    none: Any = ckptfmt_keras.save_model(model, store)
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    with pytest.raises(NotFoundError, match="no probe"):
        ckptfmt_keras.restore(none, net(), replay="always")
    with pytest.raises(NotFoundError, match="no probe"):
        ckptfmt_keras.diagnose(none, model)
    with pytest.raises(UsageError, match="replay="):
        ckptfmt_keras.restore(saved, net(), replay="sometimes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Inputs"):
        ckptfmt_keras.restore(saved, net(), inputs={})  # type: ignore[arg-type]

    assert ckptfmt_keras.restore(none, net()).replay is None
    assert ckptfmt_keras.restore(saved, net(), replay="never").replay is None
    assert ckptfmt_keras.restore(saved, net(), strict=False).replay is None
    reports: list[LoadReport] = []
    ckptfmt_keras.load_model(saved, replay="always", report=reports.append)
    ckptfmt_keras.load_model(saved, compile=False, report=reports.append)
    ckptfmt_keras.load_model(saved, replay="never", report=reports.append)
    assert [r.replay and r.replay.verdict for r in reports] == ["identical", "identical", None]
    assert not ours(caplog)


def test_what_goes_wrong_in_a_replay_stops_only_who_asked(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    @keras.saving.register_keras_serializable(package="fails")
    class Fails(keras.Model):  # type: ignore[misc]  # untyped
        works = True

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(8, 2), name="kernel")

        def call(self, x: Any, training: bool = False) -> Any:
            if not self.works:
                raise OSError("no such table")
            return keras.ops.matmul(x, self.kernel)

    model = Fails()
    model.build((None, 8))
    saved: Any = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    Fails.works = False
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        report = ckptfmt_keras.restore(saved, model)
    assert [f.name for f in report.findings] == ["probe"]
    assert "no such table" in caplog.text
    with pytest.raises(OSError, match="no such table"):
        ckptfmt_keras.restore(saved, model, replay="always")


def test_another_environment_is_told_logged_or_refused(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(net())
    saved: Any = ckptfmt_keras.save_model(model, store)
    before = keras.config.epsilon()
    keras.config.set_epsilon(1e-3)
    try:
        other = net()
        untouched = bits(other, "model")
        with pytest.raises(MismatchError, match=r"keras\.epsilon"):
            ckptfmt_keras.restore(saved, other, environment="strict")
        assert bits(other, "model") == untouched
        report = ckptfmt_keras.restore(saved, other, environment="off")
        assert not ours(caplog)
        assert [f.name for f in report.findings] == ["keras.epsilon"]
        with caplog.at_level(logging.WARNING, "ckptfmt"):
            ckptfmt_keras.restore(saved, other)
        assert "keras.epsilon" in caplog.text
    finally:
        keras.config.set_epsilon(before)


def test_settings_are_recorded(store: ckptfmt.Store, backend: str) -> None:
    saved: Any = ckptfmt_keras.save_model(net(), store)
    record = saved.environment
    found = record["extra"]["keras"]

    assert (found["backend"], found["seed"]) == (backend, 7)
    assert (found["floatx"], found["epsilon"]) == ("float32", keras.config.epsilon())
    assert found["op_determinism"] is False
    assert {"devices", "dtype_policy", "image_data_format", "version"} <= found.keys()
    assert saved.check_environment(extra={"keras": numerics.record()}) == []
    other = {**record, "extra": {"keras": {**found, "op_determinism": True}}}
    assert [f.name for f in compare(record, other)] == ["keras.op_determinism"]


DETERMINISTIC = """
import json, sys
import keras, numpy as np
import ckptfmt, ckptfmt_keras
from keras import layers

set_to = ckptfmt_keras.deterministic(11)
model = keras.Sequential([keras.Input((8,)), layers.Dense(16), layers.Dropout(0.5)])
model.add(layers.Dense(2))
model.compile("adam", loss="mse")
x = np.random.rand(32, 8).astype("float32")
model.fit(x, x[:, :2], epochs=2, verbose=0)
saved = ckptfmt_keras.save_model(model, sys.argv[1], probe=ckptfmt_keras.probe(model, x[:3]))
print(json.dumps({
    "bits": [np.asarray(keras.ops.convert_to_numpy(w)).tobytes().hex() for w in model.weights],
    "settings": set_to.settings,
    "remaining": set_to.remaining,
    "recorded": ckptfmt.open_checkpoint(sys.argv[1] + "@1").environment["extra"]["keras"],
}))
"""


def test_determinism_is_set_said_and_recorded(tmp_path: Any, backend: str) -> None:
    def run(name: str, **variables: str) -> Any:
        line = [sys.executable, "-c", DETERMINISTIC, str(tmp_path / name)]
        ran = subprocess.run(
            line, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    first, second = run("a"), run("b", PYTHONHASHSEED="0")
    assert first["bits"] == second["bits"]
    assert first["settings"]["op_determinism"] is True
    assert first["settings"]["backend"] == backend
    assert (first["recorded"]["seed"], first["recorded"]["op_determinism"]) == (11, True)
    assert any("PYTHONHASHSEED" in text for text in first["remaining"])
    assert not any("PYTHONHASHSEED" in text for text in second["remaining"])


def test_the_example_does_what_it_says() -> None:
    example = pathlib.Path(__file__).parents[3] / "examples" / "keras_same_predictions.py"

    ran = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "two runs agree: True" in ran.stdout
    assert "a clean load: identical: 8 outputs, bit for bit" in ran.stdout


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_seeds_out_of_range(seed: Any) -> None:
    with pytest.raises(UsageError, match="seed"):
        ckptfmt_keras.deterministic(seed)
