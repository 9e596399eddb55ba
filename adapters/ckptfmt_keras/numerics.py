"""What the settings of Keras and its backend are: they decide about kernels and precision."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

import keras

XLA_FLAG: Final = "--xla_gpu_deterministic_ops=true"


def record() -> dict[str, Any]:
    """Return the settings that can change what a model computes, as plain values.

    The same keys on each backend; what one does not have, or refuses to tell, is None. Takes
    well below a millisecond after the first time.
    """
    backend = keras.backend.backend()
    policy = keras.config.dtype_policy()
    own = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}.get(backend, dict)()
    return {
        "version": keras.__version__,
        "backend": backend,
        "floatx": keras.config.floatx(),
        "dtype_policy": policy.name,
        "epsilon": keras.config.epsilon(),
        "image_data_format": keras.config.image_data_format(),
        "seed": _ask(lambda: _module("keras.src.utils.rng_utils").get_random_seed()),
        **own,
    }


def autocast() -> str | None:
    """Return the dtype of torch's autocast around this call; None elsewhere and without it."""
    if keras.backend.backend() != "torch":
        return None
    import torch

    kind = (
        "cuda" if "cuda" in str(_module("keras.src.backend.torch.core").get_device()) else "cpu"
    )
    if not torch.is_autocast_enabled(kind):
        return None
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")


def _torch() -> dict[str, Any]:
    import torch

    cuda, cudnn = torch.cuda, torch.backends.cudnn
    started: bool = cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [cuda.get_device_name(n) for n in range(cuda.device_count())] if started else []
    return {
        "op_determinism": torch.are_deterministic_algorithms_enabled(),
        "cudnn.deterministic": _ask(lambda: bool(cudnn.deterministic)),
        "cudnn.benchmark": _ask(lambda: bool(cudnn.benchmark)),
        "matmul_precision": _ask(torch.get_float32_matmul_precision),
        "tensorfloat32": _ask(lambda: bool(torch.backends.cuda.matmul.allow_tf32)),
        "threads": torch.get_num_threads(),
        "devices": devices if started or torch.version.cuda is None else None,
    }


def _jax() -> dict[str, Any]:
    import jax

    config: Any = jax.config
    return {
        "op_determinism": XLA_FLAG in os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": _ask(lambda: config.jax_default_matmul_precision),
        "x64": _ask(lambda: bool(config.jax_enable_x64)),
        "random": _ask(lambda: _random(config)),
        "devices": _ask(
            lambda: [d.device_kind for d in jax.local_devices() if d.platform != "cpu"]
        ),
    }


def _random(config: Any) -> str:
    """Return which numbers keys give: `threefry2x32`, partitionable or not."""
    kind = "partitionable" if config.jax_threefry_partitionable else "not partitionable"
    return f"{config.jax_default_prng_impl}, {kind}"


def _tensorflow() -> dict[str, Any]:
    import tensorflow as tf

    private = "tensorflow.python.framework.config"
    experimental, threading = tf.config.experimental, tf.config.threading
    return {
        "op_determinism": _ask(lambda: bool(_module(private).is_op_determinism_enabled())),
        "tensorfloat32": _ask(lambda: experimental.tensor_float_32_execution_enabled()),
        "threads": _ask(  # 0 leaves it to TensorFlow
            lambda: [
                threading.get_intra_op_parallelism_threads(),
                threading.get_inter_op_parallelism_threads(),
            ]
        ),
        "devices": _ask(
            lambda: [
                str(experimental.get_device_details(device).get("device_name"))
                for device in tf.config.list_physical_devices("GPU")
            ]
        ),
    }


def _module(name: str) -> Any:
    """Return a module of a framework that has no public name; None before it is loaded."""
    return sys.modules.get(name)


def _ask(question: Callable[[], Any]) -> Any:
    """Return an answer, or None where this release has none, or refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return question()
        except (AttributeError, RuntimeError, ValueError):
            return None
