"""Tensors as NumPy arrays: over the same memory where that is possible, bit for bit always.

NumPy lacks bfloat16 and the 8-bit floats; ml_dtypes has them, and both libraries agree on the
bits, so a tensor is viewed as integers of its width on one side and as its type on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from ckptfmt.errors import StateError

Array: TypeAlias = npt.NDArray[Any]
View: TypeAlias = Callable[[torch.Tensor, str], Array]  # as `view` below

# torch dtype → (integers of its width, NumPy dtype); only those torch cannot hand to NumPy.
_FOREIGN: Final[dict[torch.dtype, tuple[torch.dtype, np.dtype[Any]]]] = {
    torch.bfloat16: (torch.int16, np.dtype(ml_dtypes.bfloat16)),
    torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
    torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
    torch.float8_e4m3fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    torch.float8_e5m2fnuz: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
}
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    _FOREIGN[torch.float8_e8m0fnu] = (torch.uint8, np.dtype(ml_dtypes.float8_e8m0fnu))
_BY_NUMPY: Final = {array: (bits, tensor) for tensor, (bits, array) in _FOREIGN.items()}
_NATIVE: Final = {
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32,
    torch.uint64, torch.int64, torch.float16, torch.float32, torch.float64, torch.complex64,
    torch.complex128,
}  # fmt: skip
_PLAIN: Final = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def check(tensor: torch.Tensor, path: str) -> None:
    """Raise unless every bit of the tensor can be stored and found again.

    Raises:
        StateError: sparse, quantised, without data, a subclass, or of a dtype that has no
            portable form. The message names the way out.
    """
    kind = type(tensor)
    if tensor.is_nested:
        _refuse(path, "is a nested one", "store the tensors of tensor.unbind()")
    if torch.nn.parameter.is_lazy(tensor):
        _refuse(path, "is not initialised yet", "run one batch through the model first")
    if tensor.device.type == "meta":
        _refuse(path, "is on the meta device and has no data", "materialise the model first")
    if tensor.layout is not torch.strided:
        _refuse(
            path,
            f"has the layout {tensor.layout}",
            "store its indices and values, or tensor.to_dense()",
        )
    if tensor.is_quantized:
        _refuse(
            path,
            f"is quantised ({tensor.dtype})",
            "store tensor.int_repr(), tensor.q_scale() and tensor.q_zero_point()",
        )
    if tensor._is_zerotensor():
        _refuse(path, "stands for zeros that have no memory", "use tensor.clone()")
    if kind not in _PLAIN:
        _refuse(
            path,
            f"is a {kind.__module__}.{kind.__qualname__}, whose meaning is in its class",
            "store the plain tensors it is made of",
        )
    if tensor.dtype not in _NATIVE and tensor.dtype not in _FOREIGN:
        _refuse(path, f"has the dtype {tensor.dtype}", "convert it, or store tensor.view(...)")


def is_in_memory(tensor: torch.Tensor) -> bool:
    """Return whether a view of the tensor's own memory can be handed to NumPy."""
    return tensor.device.type == "cpu" and not tensor.is_conj() and not tensor.is_neg()


def is_expanded(tensor: torch.Tensor) -> bool:
    """Return whether one row in memory stands for many, as after `expand`."""
    return any(
        not step and n > 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


def unexpanded(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that has memory of its own: one of equal rows."""
    for axis, (n, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if not step and n > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def view(tensor: torch.Tensor, path: str) -> Array:
    """Return the tensor as an array: its own memory on the CPU, else a copy of it.

    Raises:
        StateError: it cannot be stored exactly; see `check`.
    """
    check(tensor, path)
    plain = tensor.detach()
    if not is_in_memory(plain):
        plain = plain.resolve_conj().resolve_neg().cpu()
    if plain.dtype in _FOREIGN:
        bits, dtype = _FOREIGN[plain.dtype]
        array: Array = plain.view(bits).numpy().view(dtype)
        return array
    return plain.numpy()


def tensor_of(array: Array) -> torch.Tensor:
    """Return a CPU tensor over the memory of a writable array.

    Raises:
        StateError: torch has no such dtype.
    """
    known = _BY_NUMPY.get(array.dtype)
    if known is not None:
        bits, dtype = known
        return torch.from_numpy(array.view(_numpy(bits))).view(dtype)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise StateError(f"torch has no dtype {array.dtype}") from error


def numpy_dtype(tensor: torch.Tensor) -> np.dtype[Any]:
    """Return the dtype that `view` gives; the tensor's data is not touched."""
    if tensor.dtype in _FOREIGN:
        return _FOREIGN[tensor.dtype][1]
    return torch.empty((), dtype=tensor.dtype, device="cpu").numpy().dtype


def torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the torch dtype of an array's dtype.

    Raises:
        StateError: torch has none.
    """
    return tensor_of(np.empty((), dtype)).dtype


def _numpy(bits: torch.dtype) -> np.dtype[Any]:
    return torch.empty((), dtype=bits, device="cpu").numpy().dtype


def _refuse(path: str, what: str, way_out: str) -> None:
    raise StateError(f"this tensor {what} and cannot be stored: {way_out}", path=path)
