"""Ask torch for the same bits each time, and say what it cannot promise."""

from __future__ import annotations

import os
import random
from typing import Final

import numpy as np
import torch

from ckptfmt.checks.determinism import WORKSPACE, check_seed, unhashed, workspace
from ckptfmt.checks.determinism import Determinism as Determinism

# torch.use_deterministic_algorithms says of each operation what it does: PyTorch's note
# "Reproducibility" and the documentation of that function.
_ALWAYS: Final = (
    "another release of torch, another device or another driver may give other bits",
    "a different number of threads may sum in another order",
    "operations without a deterministic form raise an error when they run",
    "extensions, custom kernels and code outside torch decide for themselves",
    "worker processes of a loader seed Python and NumPy by worker_init_fn only",
)


def deterministic(seed: int, *, warn_only: bool = False) -> Determinism:
    """Seed Python, NumPy and torch, and have torch choose deterministic algorithms.

    Call it before the first use of a GPU: cuBLAS reads its workspace's size only then. What it
    sets is recorded in the environment of every checkpoint that `ckptfmt_torch.save` makes.

    Args:
        seed: 0 to 2**32 - 1, the range of NumPy's.
        warn_only: Warn of operations without a deterministic form instead of refusing them.

    Raises:
        UsageError: the seed is out of range.
    """
    check_seed(seed)
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    remaining = (*_ALWAYS, *workspace(os.environ, started=started), *unhashed(os.environ))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # every device's generator too
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return Determinism(
        seed=seed,
        settings={
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "deterministic_warn_only": warn_only,
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            WORKSPACE: os.environ[WORKSPACE],
        },
        remaining=remaining,
    )
