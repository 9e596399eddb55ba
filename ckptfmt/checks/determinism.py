"""What both `deterministic(seed)` have in common: the frameworks are set in their adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

from ckptfmt.errors import UsageError

WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
_SIZES: Final = (":4096:8", ":16:8")  # the two that cuBLAS documents as reproducible


@dataclass(frozen=True, slots=True, kw_only=True)
class Determinism:
    """What was set, and what stays open."""

    seed: int
    settings: dict[str, object]  # name → value, as it is in force now
    remaining: tuple[str, ...]  # what may still differ between two runs


def check_seed(seed: object) -> None:
    """Refuse a seed that not every generator takes.

    Raises:
        UsageError: it is no int from 0 to 2**32 - 1, the range of NumPy's.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UsageError("expected a seed from 0 to 2**32 - 1", found=seed)


def unhashed(variables: Mapping[str, str]) -> Iterator[str]:
    """Say so if hashes of text are random in this process: that is settled when it starts."""
    if not variables.get("PYTHONHASHSEED", "random").isdigit():
        yield (
            "the order of sets of str differs between processes: start Python with"
            " PYTHONHASHSEED set"
        )


def workspace(variables: MutableMapping[str, str], *, started: bool) -> Iterator[str]:
    """Give cuBLAS a workspace of fixed size, and say so if that may be too late.

    Args:
        variables: Of the environment; this is where it is given.
        started: Whether a GPU is in use already: cuBLAS reads the variable only then.
    """
    if variables.get(WORKSPACE) in _SIZES:
        return
    variables[WORKSPACE] = _SIZES[0]
    if started:
        yield f"{WORKSPACE} was set after cuBLAS may have read it"
