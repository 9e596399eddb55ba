"""Several training processes: how they talk for a save, and whose generators are whose."""

from __future__ import annotations

import datetime
import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ckptfmt.errors import BackendError, MismatchError


def rank_and_world() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) when nobody started a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Ranks:
    """The processes of `torch.distributed` as a `ckptfmt.group.Group`; nothing is pickled.

    Talks over gloo on the host, beside whatever the training uses. Made by all ranks at the
    same place in their programs, as any process group is.

    Args:
        timeout_seconds: How long an exchange waits for the others; that of a call is not used,
            since a process group has one for all.
    """

    def __init__(self, timeout_seconds: float = 600.0) -> None:
        timeout = datetime.timedelta(seconds=timeout_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.rank, self.size = rank_and_world()

    def gather(self, value: bytes, timeout_seconds: float | None = None) -> list[bytes] | None:
        """Bring one value per rank to rank 0.

        Raises:
            BackendError: a rank did not answer in time.
        """
        try:
            lengths = [
                torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.size)
            ]
            dist.all_gather(
                lengths, torch.tensor([len(value)], device="cpu"), group=self._group
            )
            longest = max(int(length) for length in lengths)
            mine = _tensor(value, longest)
            found = (
                [torch.empty_like(mine) for _ in range(self.size)] if not self.rank else None
            )
            dist.gather(mine, found, dst=0, group=self._group)
        except RuntimeError as error:
            raise self._failed() from error
        if found is None:
            return None
        pairs = zip(found, lengths, strict=True)
        return [one[: int(length)].numpy().tobytes() for one, length in pairs]

    def broadcast(self, value: bytes, timeout_seconds: float | None = None) -> bytes:
        """Return rank 0's value on every rank.

        Raises:
            BackendError: a rank did not answer in time.
        """
        try:
            length = torch.tensor([len(value)], device="cpu")
            dist.broadcast(length, src=0, group=self._group)
            found = _tensor(value if self.rank == 0 else b"", int(length))
            dist.broadcast(found, src=0, group=self._group)
        except RuntimeError as error:
            raise self._failed() from error
        return found.numpy().tobytes()

    def share(self, values: list[int]) -> list[list[int]]:
        """Return the values of every rank, by rank.

        Raises:
            BackendError: a rank did not answer in time.
        """
        mine = torch.tensor(values, dtype=torch.int64, device="cpu")
        found = [torch.zeros_like(mine) for _ in range(self.size)]
        try:
            dist.all_gather(found, mine, group=self._group)
        except RuntimeError as error:
            raise self._failed() from error
        return [one.tolist() for one in found]

    def barrier(self, timeout_seconds: float | None = None) -> None:
        """Return once every rank has called it.

        Raises:
            BackendError: a rank did not arrive in time.
        """
        try:
            dist.barrier(group=self._group)
        except RuntimeError as error:
            raise self._failed() from error

    def _failed(self) -> BackendError:
        return BackendError(
            "a rank of the process group did not answer in time, or is gone",
            rank=self.rank,
            world=self.size,
        )


def _tensor(value: bytes, length: int) -> torch.Tensor:
    array = np.zeros(length, np.uint8)
    array[: min(len(value), length)] = np.frombuffer(value, np.uint8)[:length]
    return torch.from_numpy(array)


def saved_generators(content: Mapping[str, Any]) -> dict[int, Any]:
    """Return the state of the generators of each rank that took part in a save."""
    found = {
        int(rank): own["rng"]
        for rank, own in content.get("rank_local", {}).items()
        if isinstance(own, Mapping) and "rng" in own and str(rank).isdecimal()
    }
    return found or ({0: content["rng"]} if "rng" in content else {})


def seed_of(state: Mapping[str, Any], rank: int) -> int:
    """Return the seed of a rank that did not exist at the save, from what rank 0 had then.

    Raises:
        MismatchError: that is no state of generators.
    """
    if not isinstance(state, Mapping) or "torch" not in state:
        raise MismatchError("this is no state of generators of this adapter", path="rng")
    content = np.asarray(state["torch"]).tobytes()
    digest = hashlib.sha256(content + rank.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes 63 bits and more


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy, torch and all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
