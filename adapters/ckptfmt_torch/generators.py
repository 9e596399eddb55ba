"""Random generators: those of Python and NumPy by `ckptfmt.rng`, torch's here.

    {"python": ..., "numpy": ..., "torch": uint8[5056], "devices": {"cuda:0": uint8[16]},
     "generators": {...NumPy's...}, "torch_generators": {"loader": {"device", "state"}}}

CUDA's state had 816 bytes before torch 2.1 and has 16 since: seed and offset of Philox,
before that with 800 bytes of 0xff in front. Both are understood, whichever side runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ckptfmt import rng
from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError, UsageError

PHILOX_NBYTES: Final = 16  # seed and offset, 8 bytes each
OLD_NBYTES: Final = 816  # before torch 2.1
_OWN: Final = ("torch", "devices", "torch_generators")  # the rest is of `ckptfmt.rng`

Bytes: TypeAlias = npt.NDArray[np.uint8]
Generator: TypeAlias = torch.Generator | np.random.Generator


class States:
    """What some generators of torch are at, to be put back."""

    def __init__(self, *generators: torch.Generator) -> None:
        self._before = [(generator, generator.get_state()) for generator in generators]

    def put_back(self) -> None:
        """Let them go on from where they were."""
        for generator, state in self._before:
            generator.set_state(state)


def capture(generators: Mapping[str, Generator] | None = None) -> dict[str, Any]:
    """Return the state of every generator: the global ones, every device's, and those given.

    Raises:
        UsageError: an object given is no generator.
    """
    numpys, torches = _apart(generators or {})
    state = rng.capture(numpys)
    state["torch"] = _bytes(torch.get_rng_state())
    state["devices"] = {
        f"cuda:{n}": _bytes(torch.cuda.get_rng_state(n)) for n in range(_devices())
    }
    state["torch_generators"] = {
        name: {"device": str(generator.device), "state": _bytes(generator.get_state())}
        for name, generator in torches.items()
    }
    return state


def plan(
    stored: Any, generators: Mapping[str, Generator] | None, path: str
) -> tuple[Callable[[], None], list[Finding]]:
    """Check what is stored against what is here; return what restores it, and findings.

    Raises:
        MismatchError: a part is missing or of another kind or length.
        UsageError: an object given is no generator.
    """
    numpys, torches = _apart(generators or {})
    _check(stored, path)
    host = _checked(stored["torch"], torch.get_rng_state(), f"{path}/torch")
    devices, findings = _devices_of(stored["devices"], path)
    saved = stored["torch_generators"]
    if saved.keys() != torches.keys():
        raise MismatchError(
            "the generators given are not those of the save",
            path=f"{path}/torch_generators",
            expected=sorted(saved),
            found=sorted(torches),
        )
    named = {
        name: _checked(
            saved[name]["state"], generator.get_state(), f"{path}/torch_generators/{name}"
        )
        for name, generator in torches.items()
    }
    rest = rng.plan({n: value for n, value in stored.items() if n not in _OWN}, numpys)

    def apply() -> None:
        rest()
        torch.set_rng_state(host)
        for number, state in devices.items():
            torch.cuda.set_rng_state(state, number)
        for name, generator in torches.items():
            generator.set_state(named[name])

    return apply, findings


def _check(stored: Any, path: str) -> None:
    kinds = [type(stored.get(name)) for name in _OWN] if isinstance(stored, Mapping) else []
    if kinds[1:] != [dict, dict] or not all(
        isinstance(one, Mapping) and "state" in one
        for one in stored["torch_generators"].values()
    ):
        raise MismatchError("this is no state of generators of this adapter", path=path)


def convert(state: Bytes, nbytes: int, path: str) -> Bytes:
    """Return a CUDA state in the layout of `nbytes` bytes that this torch has.

    Raises:
        MismatchError: the length is neither.
    """
    if state.nbytes not in (PHILOX_NBYTES, OLD_NBYTES) or nbytes not in (
        PHILOX_NBYTES, OLD_NBYTES,
    ):  # fmt: skip
        raise MismatchError(
            "unknown layout of a CUDA generator's state",
            path=path,
            expected=[PHILOX_NBYTES, OLD_NBYTES],
            found=[state.nbytes, nbytes],
        )
    philox = state[-PHILOX_NBYTES:]
    filler = np.full(nbytes - PHILOX_NBYTES, 0xFF, np.uint8)
    return np.concatenate([filler, philox])


def _devices_of(
    stored: Mapping[str, Any], path: str
) -> tuple[dict[int, torch.Tensor], list[Finding]]:
    here = _devices()
    states = {}
    for name, state in stored.items():
        digits = name.removeprefix("cuda:")
        number = int(digits) if digits.isdecimal() else here  # of another kind: none here
        if number < here:
            length = torch.cuda.get_rng_state(number).numel()
            fit = convert(np.asarray(state), length, f"{path}/devices/{name}")
            states[number] = torch.from_numpy(fit)
    if len(stored) == here:
        return states, []
    finding = Finding(
        severity="warning",
        name=f"{path}/devices",
        saved=len(stored),
        now=here,
        reason=f"{len(states)} of {len(stored)} generators of devices restored; the others"
        " have no device here, and further devices go on as they are seeded",
    )
    return states, [finding]


def _checked(stored: Any, live: torch.Tensor, path: str) -> torch.Tensor:
    state = np.array(stored)
    if state.dtype != np.uint8 or state.shape != tuple(live.shape):
        raise MismatchError(
            "the state of a generator has another layout here: another release or device",
            path=path,
            expected=f"uint8{list(live.shape)}",
            found=f"{state.dtype}{list(state.shape)}",
        )
    return torch.from_numpy(state)


def _apart(
    generators: Mapping[str, Generator],
) -> tuple[dict[str, np.random.Generator], dict[str, torch.Generator]]:
    numpys = {n: g for n, g in generators.items() if isinstance(g, np.random.Generator)}
    torches = {n: g for n, g in generators.items() if isinstance(g, torch.Generator)}
    for name in generators.keys() - numpys.keys() - torches.keys():
        raise UsageError(
            "expected a torch.Generator or a numpy.random.Generator",
            generator=name,
            found=type(generators[name]).__name__,
        )
    return numpys, torches


def _bytes(state: torch.Tensor) -> Bytes:
    return state.cpu().numpy().copy()


def _devices() -> int:
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.device_count() if started else 0
