"""Weights of a checkpoint that was migrated from Keras 1, 2 or 3, into a model built by code.

Their names are those of the file they came from. It is written once more, and Keras itself
reads it: `.weights.h5` by the structure of the model, `.h5` by the order of its layers.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import ckptfmt
from ckptfmt import migrate
from ckptfmt.errors import MismatchError


def load_migrated(checkpoint: ckptfmt.Checkpoint, model: Any) -> None:
    """Fill a built model with weights that `ckptfmt migrate` took from a file of Keras.

    The model must have the layers of the saved one in their order. All or nothing: where Keras
    refuses the weights, the model keeps those it had. The optimizer is left alone.

    Raises:
        MismatchError: the weights do not fit the model.
        UsageError: the checkpoint did not come from Keras: use `restore`.
        UnsupportedError: h5py is not installed.
        IntegrityError, BackendError: as for any load.
    """
    is_keras_3 = any("/vars/" in path for path in checkpoint.arrays)
    before = model.get_weights()
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "x.weights.h5" if is_keras_3 else "x.h5")
        migrate.export(checkpoint, file)
        try:
            model.load_weights(file)
        except (ValueError, KeyError, TypeError) as error:
            model.set_weights(before)
            raise MismatchError(
                "Keras does not take these weights for this model",
                checkpoint=checkpoint.number,
                problem=str(error)[:500],
            ) from error
