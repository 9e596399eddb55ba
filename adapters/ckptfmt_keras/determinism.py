"""Ask Keras and its backend for the same bits each time, and say what they cannot promise."""

from __future__ import annotations

import os
from typing import Final

import keras

from ckptfmt.checks.determinism import Determinism as Determinism
from ckptfmt.checks.determinism import check_seed, unhashed, workspace
from ckptfmt_keras import numerics

_ALWAYS: Final = (
    "another release of Keras or its backend, another backend, device or driver may give other"
    " bits",
    "a different number of threads may sum in another order",
    "custom layers and code outside Keras decide for themselves",
)


def deterministic(seed: int) -> Determinism:
    """Seed Python, NumPy, Keras and its backend, and choose deterministic operations.

    Call it first: layers take their seeds when they are made, cuBLAS and XLA read their
    settings at the first use of a GPU. It is recorded in the environment of every checkpoint
    that `save_model` and `Checkpoint` make.

    On torch `use_deterministic_algorithms` and cuDNN's flags are set, on TensorFlow
    `enable_op_determinism`, on JAX the XLA flag for GPUs.

    Args:
        seed: 0 to 2**32 - 1, the range of NumPy's.

    Raises:
        UsageError: the seed is out of range.
    """
    check_seed(seed)
    keras.utils.set_random_seed(seed)
    own = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}
    remaining = (*_ALWAYS, *unhashed(os.environ), *own[keras.backend.backend()]())
    found = numerics.record()
    keys = ("backend", "seed", "op_determinism", "cudnn.deterministic", "cudnn.benchmark")
    settings = {key: found[key] for key in keys if key in found}
    return Determinism(seed=seed, settings=settings, remaining=remaining)


def _torch() -> list[str]:
    import torch

    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    remaining = list(workspace(os.environ, started=started))
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return ["operations without a deterministic form raise an error when they run", *remaining]


def _jax() -> list[str]:
    flags = os.environ.get("XLA_FLAGS", "")
    if numerics.XLA_FLAG in flags.split():
        return []
    os.environ["XLA_FLAGS"] = f"{flags} {numerics.XLA_FLAG}".strip()
    text = f"JAX may have read XLA_FLAGS before: start Python with {numerics.XLA_FLAG} in it"
    return [text]


def _tensorflow() -> list[str]:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    return ["operations without a deterministic form raise an error when they run"]
