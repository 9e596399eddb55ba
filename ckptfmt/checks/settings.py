"""What the settings of frameworks that adapters record mean for a model's outputs. Data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ckptfmt.checks.changes import Severity

_OTHER: Final[tuple[Severity, str]] = ("info", "another value of this setting")
_PRECISION: Final[tuple[Severity, str]] = (
    "warning",
    "products are computed in another precision",
)
_KERNELS: Final[tuple[Severity, str]] = ("warning", "other kernels are chosen")
_ORDER: Final[tuple[Severity, str]] = ("info", "sums may run in another order")
_DTYPE: Final[tuple[Severity, str]] = ("warning", "new arrays and layers have another dtype")

# Section of the record and key → how a difference is graded, and why.
SETTINGS: Final[Mapping[tuple[str, str], tuple[Severity, str]]] = {
    ("torch", "default_dtype"): _DTYPE,
    ("torch", "default_device"): ("warning", "new tensors are on another device"),
    ("torch", "float32_matmul_precision"): _PRECISION,
    ("torch", "cuda.matmul.allow_tf32"): _PRECISION,
    ("torch", "cudnn.allow_tf32"): _PRECISION,
    ("torch", "cuda.matmul.allow_fp16_reduced_precision_reduction"): _PRECISION,
    ("torch", "cuda.matmul.allow_bf16_reduced_precision_reduction"): _PRECISION,
    ("torch", "deterministic_algorithms"): _KERNELS,
    ("torch", "cudnn.deterministic"): _KERNELS,
    ("torch", "cudnn.benchmark"): _KERNELS,
    ("torch", "cudnn.enabled"): _KERNELS,
    ("torch", "mkldnn"): _KERNELS,
    ("torch", "cpu_capability"): _ORDER,
    ("torch", "threads"): _ORDER,
    ("torch", "interop_threads"): _ORDER,
    ("torch", "cuda"): ("info", "another release of CUDA: kernels may round differently"),
    ("torch", "cudnn"): ("info", "another release of cuDNN: kernels may round differently"),
    ("torch", "devices"): ("warning", "other accelerators: kernels round differently"),
    ("keras", "backend"): ("warning", "another backend: kernels round differently"),
    ("keras", "floatx"): _DTYPE,
    ("keras", "dtype_policy"): _PRECISION,
    ("keras", "epsilon"): ("warning", "layers that divide add another epsilon"),
    ("keras", "image_data_format"): ("warning", "axes of images are taken in another order"),
    ("keras", "op_determinism"): _KERNELS,
    ("keras", "tensorfloat32"): _PRECISION,
    ("keras", "matmul_precision"): _PRECISION,
    ("keras", "x64"): _DTYPE,
    ("keras", "cudnn.deterministic"): _KERNELS,
    ("keras", "cudnn.benchmark"): _KERNELS,
    ("keras", "threads"): _ORDER,
    ("keras", "devices"): ("warning", "other accelerators: kernels round differently"),
    ("keras", "random"): ("warning", "the same seed draws other numbers"),
}


# What differs between any two runs, or is compared elsewhere.
_PASSED_OVER: Final = frozenset(
    (section, key) for section in ("torch", "keras") for key in ("seed", "version")
)


# None says something of these: torch was not built for it. Of all others it says that nobody
# could tell, since no device was started or the release of the framework has no such setting.
_STATED: Final = frozenset([("torch", "cuda"), ("torch", "hip")])
_FRAMEWORKS: Final = frozenset(section for section, _ in SETTINGS)


def tells(section: str, key: str, values: Mapping[str, object]) -> bool:
    """Tell whether a section of a record says anything about a setting."""
    stated = section not in _FRAMEWORKS or (section, key) in _STATED
    return key in values if stated else values.get(key) is not None


def grade(section: str, key: str) -> tuple[Severity, str] | None:
    """Return (severity, reason) for a setting that differs; None if that says nothing."""
    if (section, key) in _PASSED_OVER:
        return None
    return SETTINGS.get((section, key), _OTHER)
