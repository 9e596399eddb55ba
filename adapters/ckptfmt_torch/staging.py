"""Tensors of CUDA devices on their way to the host.

    device ─► pinned memory, on a stream of its own ─► array     all queued, one wait at the end

Pinned memory comes from PyTorch's caching host allocator and goes back there with the arrays:
the next save gets the same blocks, and none before the copies into it have ended.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from typing import Final

import torch

from ckptfmt_torch import tensors

_log: Final = logging.getLogger("ckptfmt")


class Staging:
    """The copies of one capture; `finish` before the arrays are read."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._copies: dict[Hashable, tuple[weakref.ref[torch.Tensor], tensors.Array]] = {}

    def view(self, tensor: torch.Tensor, path: str) -> tensors.Array:
        """Return a tensor as an array: its own memory on the CPU, else a copy under way.

        Tensors of one memory get one array, so that tied ones are known to be tied.

        Raises:
            StateError: it cannot be stored exactly; see `tensors.check`.
        """
        tensors.check(tensor, path)
        if not _is_on_cuda(tensor) and tensors.is_in_memory(tensor):
            return tensors.view(tensor, path)
        memory = _memory(tensor)
        known = self._copies.get(memory)
        if known is not None and known[0]() is not None:  # else others may have its memory now
            return known[1]
        own = self._copied(tensor.detach()) if _is_on_cuda(tensor) else tensor
        array = tensors.view(own, path)
        self._copies[memory] = weakref.ref(tensor), array
        return array

    def finish(self) -> None:
        """Wait until all copies have ended; what the tensors become after it is not seen."""
        for stream in self._streams.values():
            stream.synchronize()

    def _copied(self, tensor: torch.Tensor) -> torch.Tensor:
        stream = self._streams.get(tensor.device)
        if stream is None:
            stream = torch.cuda.Stream(tensor.device)  # type: ignore[no-untyped-call]
            self._streams[tensor.device] = stream
        # After what the training has queued, and again for what `state_dict()` computes.
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            plain = tensor.resolve_conj().resolve_neg()
            host = _pinned(plain)
            host.copy_(plain, non_blocking=True)
        tensor.record_stream(stream)  # a temporary one: its memory is not reused before
        return host


def _is_on_cuda(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def _memory(tensor: torch.Tensor) -> Hashable:
    """Return what tells which elements a tensor has."""
    if not tensor.numel():
        return id(tensor)
    return (
        tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(),
        tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def _pinned(like: torch.Tensor) -> torch.Tensor:
    """Return pinned memory; any other where the system refuses it, which is only slower."""
    try:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=True)
    except RuntimeError as error:
        _log.warning("no pinned memory for a save, which takes longer so: %s", error)
        return torch.empty(like.shape, dtype=like.dtype, device="cpu")
