"""Save a model on this backend, or load what others saved: run as a script.

python across.py save FOLDER
python across.py load FOLDER...     prints what each predicts, and its losses going on
"""

from __future__ import annotations

import json
import os
import sys
import warnings

if os.environ.get("KERAS_BACKEND") != "tensorflow":
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # Keras looks for it: seconds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import keras
import numpy as np
from nets import data, net, trained

import ckptfmt_keras


def save(folder: str) -> None:
    """Train a little and save."""
    keras.utils.set_random_seed(5)
    ckptfmt_keras.save_model(trained(net(first="body", last="head")), folder)


def load(folder: str) -> dict[str, object]:
    """Load, predict, and take a step without dropout."""
    model = ckptfmt_keras.load_model(folder)
    predicted = np.asarray(model.predict(data()[0], verbose=0), np.float64)
    dropout = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    dropout.rate = 0.0
    iterations = int(model.optimizer.iterations)
    model.train_on_batch(*data())
    after = np.asarray(model.predict(data()[0], verbose=0), np.float64)
    return {
        "keras": keras.__version__,
        "predicted": predicted.tolist(),
        "iterations": iterations,
        "after": after.tolist(),
    }


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(sys.argv[2])
    else:
        json.dump([load(folder) for folder in sys.argv[2:]], sys.stdout)
