"""What torch's settings are: they decide about kernels, precision and the order of sums."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


def record() -> dict[str, Any]:
    """Return the settings of torch that can change what a model computes, as plain values.

    What this release does not have, or refuses to tell, is None; so is what only a device
    tells that was not started. Takes well below a millisecond; starts no device.
    """
    cuda, cudnn, matmul = torch.cuda, torch.backends.cudnn, torch.backends.cuda.matmul
    seen = cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "cudnn": _ask(cudnn.version) if seen else None,
        "devices": _devices(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": _ask(lambda: torch.backends.cpu.get_cpu_capability()),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "default_device": _ask(lambda: str(torch.get_default_device())),
        "seed": torch.initial_seed(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32_matmul_precision": _ask(torch.get_float32_matmul_precision),
        "mkldnn": _ask(lambda: bool(torch.backends.mkldnn.enabled)),
        "cudnn.enabled": _ask(lambda: bool(cudnn.enabled)),
        "cudnn.benchmark": _ask(lambda: bool(cudnn.benchmark)),
        "cudnn.deterministic": _ask(lambda: bool(cudnn.deterministic)),
        "cudnn.allow_tf32": _ask(lambda: bool(cudnn.allow_tf32)),
        "cuda.matmul.allow_tf32": _ask(lambda: bool(matmul.allow_tf32)),
        "cuda.matmul.allow_fp16_reduced_precision_reduction": _ask(
            lambda: bool(matmul.allow_fp16_reduced_precision_reduction)
        ),
        "cuda.matmul.allow_bf16_reduced_precision_reduction": _ask(
            lambda: bool(matmul.allow_bf16_reduced_precision_reduction)
        ),
    }


def _devices() -> list[str] | None:
    """Return the names of the accelerators: of a torch without CUDA none, else None until CUDA
    is started."""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return []
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]


def _ask(question: Callable[[], Any]) -> Any:
    """Return an answer, or None: torch refuses where the old and the new names of a setting
    were mixed, and warns of the old ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return question()
        except (AttributeError, RuntimeError):
            return None
