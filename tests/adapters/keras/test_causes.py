"""Six reasons why a loaded model predicts otherwise, each made real, found, and taken away.

The outputs are first shown to differ; then the true cause must come first in the diagnosis;
then the cause goes, and the verdict must be "identical". On each backend.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import threading
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from nets import data, net, trained

import ckptfmt
import ckptfmt_keras
from ckptfmt.checks import LoadReport, Replay
from ckptfmt.errors import MismatchError

X = data()[0][:5]


def outputs(model: Any, x: Any = X) -> Any:
    return np.array(keras.ops.convert_to_numpy(model(x, training=False))).astype(np.float32)


def differ(a: Any, b: Any) -> bool:
    return bool(np.any(a != b))


def first(replay: Replay | None) -> tuple[str, str]:
    assert replay is not None
    assert replay.verdict == "different"
    return replay.causes[0].name, replay.causes[0].strength


def verdict(report: LoadReport) -> str:
    assert report.replay is not None
    return str(report.replay.verdict)


def loaded(saved: ckptfmt.Checkpoint, **options: Any) -> tuple[Any, LoadReport]:
    reports: list[LoadReport] = []
    model = ckptfmt_keras.load_model(saved, report=reports.append, **options)
    return model, reports[0]


@pytest.fixture
def saved(store: ckptfmt.Store) -> ckptfmt.Checkpoint:
    model = trained(net())
    found = ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, X))
    assert isinstance(found, ckptfmt.Checkpoint)
    return found


def test_a_clean_reload_is_identical(saved: ckptfmt.Checkpoint) -> None:
    model, report = loaded(saved)

    assert verdict(report) == "identical"
    assert report.findings == ()
    assert ckptfmt_keras.diagnose(saved, model).verdict == "identical"
    again = ckptfmt_keras.restore(saved, net())
    assert (verdict(again), again.findings) == ("identical", ())


# ---- 1 random initialisation


def larger() -> Any:
    """Return the saved network with one more layer, which begins at random."""
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(6), layers.Dense(3, name="head")], name="larger"
    )


def test_an_array_left_at_its_random_beginning(store: ckptfmt.Store) -> None:
    model = larger()
    probe = ckptfmt_keras.probe(model, X)
    whole: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    state = ckptfmt_keras.capture(model)
    del state["model"]["0002.kernel"]
    part = store.save(state, probe=probe, architecture=whole.architecture)
    keras.utils.set_random_seed(8)
    other, clean = larger(), larger()
    with pytest.raises(MismatchError, match="head/kernel"):
        ckptfmt_keras.restore(part, other)
    report = ckptfmt_keras.restore(part, other, strict=False, replay="always")

    assert differ(outputs(other), outputs(model))
    assert first(report.replay) == ("missing array", "observed")
    assert report.replay is not None
    assert "head/kernel" in report.replay.causes[0].evidence
    assert verdict(ckptfmt_keras.restore(whole, clean)) == "identical"


# ---- 2 floating-point precision


def test_another_dtype_policy(saved: ckptfmt.Checkpoint) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    narrow = net()
    keras.config.set_dtype_policy("float32")
    wide = net()
    report = ckptfmt_keras.restore(saved, narrow, optimizer=False)
    clean = ckptfmt_keras.restore(saved, wide)

    assert differ(outputs(narrow), outputs(wide))
    assert first(report.replay) == ("precision", "proven")
    assert [layer.dtype_policy.name for layer in narrow.layers] == ["mixed_bfloat16"] * 4
    assert verdict(clean) == "identical"


def test_autocast_of_torch(saved: ckptfmt.Checkpoint, backend: str) -> None:
    if backend != "torch":
        pytest.skip("autocast is torch's")
    import torch

    model = net()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = ckptfmt_keras.restore(saved, model)
        narrow = outputs(model)

    assert differ(narrow, outputs(model))
    assert first(report.replay) == ("precision", "proven")
    assert verdict(ckptfmt_keras.restore(saved, model)) == "identical"


# ---- 3 environment

PREDICTING = """
import json, sys, warnings
# Keras imports what is installed, and these do not know NumPy 1 any more.
sys.modules["jax"] = sys.modules["tensorflow"] = None
warnings.simplefilter("ignore")  # NumPy 2 warns of the overflow that NumPy 1 avoids
import numpy as np
import keras
import ckptfmt, ckptfmt_keras

@keras.saving.register_keras_serializable()
class Brightened(keras.Model):
    # As image code often does: numbers of type uint8, then an offset.
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, pixels, training=False):
        values = np.asarray(keras.ops.convert_to_numpy(pixels)).ravel().tolist()
        bright = [float(np.uint8(p) + 100) for p in values]
        return self.scale * keras.ops.convert_to_tensor(np.array(bright, np.float32))

model, store = Brightened(), ckptfmt.open(sys.argv[2])
model.build((2,))
x = np.array([10, 200], dtype=np.uint8)
if sys.argv[1] == "save":
    ckptfmt_keras.save_model(model, store, probe=ckptfmt_keras.probe(model, x))
print(json.dumps({
    "numpy": np.__version__,
    "outputs": keras.ops.convert_to_numpy(model(x)).tolist(),
    "replay": ckptfmt_keras.restore(store.latest(), model).replay.to_dict(),
}))
"""


def in_environment(folder: pathlib.Path, numpy: str | None, act: str) -> Any:
    """Run in a process of its own, with the NumPy that lies in a folder in front of ours."""
    script = folder / "predicting.py"
    script.write_text(PREDICTING)
    ours = [str(p) for p in (pathlib.Path(ckptfmt.__file__).parents[1], *sys.path) if str(p)]
    path = os.pathsep.join([*([numpy] if numpy else []), *ours])
    ran = subprocess.run(
        [sys.executable, str(script), act, str(folder / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.skipif(
    not os.environ.get("CKPTFMT_OLD_NUMPY"),
    reason="CKPTFMT_OLD_NUMPY names no folder with NumPy 1.26; `make test-keras` makes one",
)
def test_another_version_of_a_library(tmp_path: pathlib.Path, backend: str) -> None:
    if backend != "torch":
        pytest.skip("the other backends need NumPy 2")
    old = os.environ["CKPTFMT_OLD_NUMPY"]
    before = in_environment(tmp_path, old, "save")
    after = in_environment(tmp_path, None, "load")

    assert before["numpy"].startswith("1.26")
    assert int(after["numpy"].split(".")[0]) >= 2
    assert before["outputs"] == [110.0, 300.0]
    assert after["outputs"] == [110.0, 44.0]
    replay = after["replay"]
    assert (replay["verdict"], replay["causes"][0]["name"]) == ("different", "environment")
    assert "NEP 50" in replay["causes"][0]["evidence"]
    again = in_environment(tmp_path, old, "load")
    assert again["replay"]["verdict"] == "identical"


# ---- 4 preprocessing


class Scaler:
    """Standardise, with statistics that were fitted once."""

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: Any) -> Any:
        return ((x - self.mean) / self.std).astype(np.float32)

    def config(self) -> dict[str, float]:
        return {"mean": self.mean, "std": self.std}


def test_other_statistics_of_a_scaler(store: ckptfmt.Store) -> None:
    model, fitted = trained(net()), Scaler(0.25, 0.5)
    saved: Any = ckptfmt_keras.save_model(
        model,
        store,
        probe=ckptfmt_keras.probe(model, X, prepare=fitted),
        preprocessing=fitted.config(),
        artifacts={"labels.txt": b"a\nb\n"},
    )
    other = Scaler(0.3, 0.5)
    found, report = loaded(
        saved,
        inputs=ckptfmt_keras.Inputs(
            prepare=other, preprocessing=other.config(), artifacts={"labels.txt": b"b\na\n"}
        ),
    )

    assert differ(outputs(found, fitted(X)), outputs(found, other(X)))
    assert first(report.replay) == ("preprocessing", "observed")
    assert {f.name for f in report.findings} == {"preprocessing/mean", "artifacts/labels.txt"}
    _, clean = loaded(
        saved,
        inputs=ckptfmt_keras.Inputs(
            prepare=Scaler(**saved.preprocessing),
            preprocessing=saved.preprocessing,
            artifacts=saved.artifacts,
        ),
    )
    assert verdict(clean) == "identical"
    assert clean.findings == ()


def test_other_statistics_of_a_layer(store: ckptfmt.Store) -> None:
    model = trained(net())
    fitted, other = layers.Normalization(mean=0.25, variance=4.0), layers.Normalization()
    other.adapt(X)
    saved: Any = ckptfmt_keras.save_model(
        model, store, probe=ckptfmt_keras.probe(model, X, prepare=fitted)
    )
    _, wrong = loaded(saved, inputs=ckptfmt_keras.Inputs(prepare=other))
    _, right = loaded(saved, inputs=ckptfmt_keras.Inputs(prepare=fitted))

    assert differ(outputs(model, fitted(X)), outputs(model, other(X)))
    assert first(wrong.replay) == ("preprocessing", "observed")
    assert verdict(right) == "identical"


# ---- 5 non-deterministic operations


@keras.saving.register_keras_serializable()
class Racing(keras.Model):  # type: ignore[misc]  # untyped
    """Adds parts in the order in which threads finish, as atomic additions on a GPU do."""

    def __init__(self, ordered: bool = False) -> None:
        super().__init__()
        self.how = {"ordered": ordered}  # no setting that the adapter looks at

    def build(self, shape: Any) -> None:
        start = keras.initializers.Constant((10.0 ** np.linspace(-4, 4, 24)).tolist())
        self.kernel = self.add_weight(shape=(24,), initializer=start, name="kernel")

    def get_config(self) -> dict[str, Any]:
        return {}

    def call(self, x: Any, training: bool = False) -> Any:
        kernel = np.array(keras.ops.convert_to_numpy(self.kernel))
        given = np.array(keras.ops.convert_to_numpy(x)).ravel()[:32].astype(np.float32)
        total, lock = np.zeros(32, np.float32), threading.Lock()
        begin = threading.Barrier(24)

        def add(n: int) -> None:
            nonlocal total
            if not self.how["ordered"]:
                begin.wait()
            part = kernel[n] * np.sin(given * np.float32(7 * n + 1))
            with lock:
                total = total + part * np.float32((-1) ** n * 1e4)

        threads = [threading.Thread(target=add, args=(n,)) for n in range(24)]
        for thread in threads:
            thread.start()
            if self.how["ordered"]:
                thread.join()
        for thread in threads:
            thread.join()
        return keras.ops.convert_to_tensor(total - total.mean())


def test_a_sum_in_the_order_in_which_threads_finish(store: ckptfmt.Store) -> None:
    racing, ordered = Racing(), Racing(ordered=True)
    racing.build((5, 8))
    ordered.build((5, 8))
    runs = [outputs(racing) for _ in range(20)]
    assert any(differ(run, runs[0]) for run in runs)  # really differs
    assert not any(differ(outputs(ordered), outputs(ordered)) for _ in range(20))
    tight = {"absolute": 0.0, "relative": 0.0}
    saved: Any = ckptfmt_keras.save_model(
        racing, store, probe=ckptfmt_keras.probe(racing, X, **tight)
    )
    for _ in range(50):  # a run may agree with the stored one by chance
        replay = ckptfmt_keras.diagnose(saved, racing)
        if replay.verdict == "different" and replay.causes[0].name != "unknown":
            break

    assert first(replay) == ("non-determinism", "proven")
    fixed: Any = ckptfmt_keras.save_model(
        ordered, store, probe=ckptfmt_keras.probe(ordered, X, **tight)
    )
    again = Racing(ordered=True)
    again.build((5, 8))
    assert verdict(ckptfmt_keras.restore(fixed, again)) == "identical"


# ---- 6 format and version


class First(layers.Layer):  # type: ignore[misc]  # untyped
    """A layer as the first release of its code had it: the constant is not in the config."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.epsilon = 1e-3

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        x = x * 0.01  # small variance: epsilon matters
        variance = keras.ops.mean(keras.ops.square(x), axis=-1, keepdims=True)
        return self.scale * x / keras.ops.sqrt(variance + self.epsilon)


class Second(First):
    """The second release made it an argument, and chose another default."""

    def __init__(self, epsilon: float = 1e-5, **options: Any) -> None:
        super().__init__(**options)
        self.epsilon = epsilon

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def released(kind: Any) -> Any:
    """Install one release of the code: its class has the same name as the other's."""
    kind.__name__ = kind.__qualname__ = "RootMean"
    keras.saving.register_keras_serializable(package="theirs", name="RootMean")(kind)
    return kind


def block(kind: Any, **options: Any) -> Any:
    return keras.Sequential([keras.Input((8,)), layers.Dense(4), kind(**options)])


def test_an_old_file_in_code_with_another_default(
    tmp_path: pathlib.Path, store: ckptfmt.Store
) -> None:
    old = block(released(First))
    old.save(tmp_path / "old.keras")
    saved: Any = ckptfmt_keras.save_model(old, store, probe=ckptfmt_keras.probe(old, X))
    released(Second)
    by_keras = keras.saving.load_model(tmp_path / "old.keras")  # silently another function

    assert differ(outputs(by_keras), outputs(old))
    with pytest.raises(MismatchError, match="epsilon"):
        ckptfmt_keras.load_model(saved)
    report = ckptfmt_keras.restore(saved, block(Second), strict=False, replay="always")
    assert first(report.replay) == ("settings", "observed")
    assert report.replay is not None
    assert "1e-05" in report.replay.causes[0].evidence
    same = block(Second, epsilon=1e-3)
    clean = ckptfmt_keras.restore(saved, same, strict=False, replay="always")
    assert verdict(clean) == "identical"


# ---- further causes


def test_training_mode(saved: ckptfmt.Checkpoint) -> None:
    model, _ = loaded(saved)
    training = np.array(keras.ops.convert_to_numpy(model(X, training=True)))
    assert differ(training, outputs(model))
    ckptfmt_keras.restore(saved, model)

    replay = ckptfmt_keras.diagnose(saved, model, training=True)

    assert first(replay) == ("train mode", "proven")
    assert ckptfmt_keras.diagnose(saved, model).verdict == "identical"


def test_averaged_weights(store: ckptfmt.Store) -> None:
    def averaging() -> Any:
        model = net()
        model.compile(keras.optimizers.Adam(use_ema=True, ema_momentum=0.5), loss="mse")
        return model

    model = averaging()
    for _ in range(3):
        model.train_on_batch(X, np.ones((5, 3), np.float32))
    raw = model.get_weights()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    probe = ckptfmt_keras.probe(model, X)
    averaged = outputs(model)
    model.set_weights(raw)
    saved: Any = ckptfmt_keras.save_model(model, store, probe=probe)
    other = averaging()
    report = ckptfmt_keras.restore(saved, other)

    assert differ(outputs(other), averaged)
    assert first(report.replay) == ("averaged weights", "proven")
    assert not differ(outputs(other), outputs(model))  # the experiment is over
    other.optimizer.finalize_variable_values(other.trainable_variables)
    assert ckptfmt_keras.diagnose(saved, other).verdict == "identical"


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_quantized_layers(saved: ckptfmt.Checkpoint) -> None:
    model, _ = loaded(saved)
    before = outputs(model)
    model.quantize("int8")

    assert differ(outputs(model), before)
    assert first(ckptfmt_keras.diagnose(saved, model)) == ("quantization", "observed")


def test_a_changed_weight(saved: ckptfmt.Checkpoint) -> None:
    model, _ = loaded(saved)
    model.layers[-1].bias.assign(np.ones(3, np.float32))

    replay = ckptfmt_keras.diagnose(saved, model)

    assert first(replay) == ("changed array", "observed")
    assert "bias" in replay.causes[0].evidence
