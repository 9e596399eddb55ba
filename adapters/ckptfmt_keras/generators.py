"""Random generators: Python's and NumPy's by `ckptfmt.rng`, Keras' and the backend's here.

    {"python": ..., "numpy": ..., "generators": {}, "backend": "torch", "keras": [seed, count],
     "layers": [[seed, count], ...], "torch": uint8[5056], "devices": {"cuda:0": uint8[16]}}

Layers that draw have a seed generator each, which no file of Keras holds. On torch dropout
draws from torch's own generator instead.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import keras
import numpy as np

from ckptfmt import rng
from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError
from ckptfmt_keras import variables

_GLOBAL: Final = "global_seed_generator"  # what keras.random uses without a seed
_STATE: Final = "keras.src.backend.common.global_state"
_OWN: Final = ("backend", "keras", "layers", "torch", "devices")


def capture(model: Any) -> dict[str, Any]:
    """Return the state of every generator a training draws from; nothing is drawn."""
    shared = _shared()
    state = rng.capture()
    state["backend"] = keras.backend.backend()
    state["keras"] = None if shared is None else variables.integers(shared)
    state["layers"] = [variables.integers(seed) for seed in variables.seeds(model)]
    return state | _capture_torch()


def capture_host() -> dict[str, Any]:
    """Return the state of the generators that are not part of a model."""
    return rng.capture() | _capture_torch()


def restore_host(state: Mapping[str, Any]) -> None:
    """Continue where `capture_host` was called."""
    rng.restore({name: value for name, value in state.items() if name not in _OWN})
    _restore_torch(state)


@contextlib.contextmanager
def drawn(model: Any = None) -> Iterator[None]:
    """Let random numbers be drawn, then put generators back, those of a model's layers, too.

    Whether Keras' global generator exists is put back as well: the first to draw makes it.
    """
    host, shared = capture_host(), _global()
    own = [] if model is None else variables.seeds(model)
    seeds = [*own, *([] if shared is None else [shared.state])]
    before = [(seed, variables.integers(seed)) for seed in seeds]
    try:
        yield
    finally:
        restore_host(host)
        for seed, values in before:
            variables.assign_integers(seed, values)
        if _global() is not shared:
            sys.modules[_STATE].set_global_attribute(_GLOBAL, shared)


def reseed(number: int, model: Any = None) -> None:
    """Let all that is drawn from here on be other numbers; within `drawn`."""
    random.seed(number)
    np.random.seed(number)
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(number)
    shared = _shared()
    for seed in [] if model is None else variables.seeds(model):
        variables.assign_integers(seed, [number, 0])
    if shared is not None:
        variables.assign_integers(shared, [number, 0])


def plan(stored: Any, model: Any, path: str) -> tuple[Callable[[], None], list[Finding]]:
    """Check what is stored against what is here; return what restores it, and findings.

    Raises:
        MismatchError: it is no such state, or the model has other seed generators.
    """
    if not isinstance(stored, Mapping) or not set(_OWN) <= stored.keys():
        raise MismatchError("this is no state of generators of this adapter", path=path)
    seeds = variables.seeds(model)
    if len(stored["layers"]) != len(seeds):
        raise MismatchError(
            "the model has another number of layers that draw",
            path=f"{path}/layers",
            expected=len(stored["layers"]),
            found=len(seeds),
        )

    def apply() -> None:
        restore_host(stored)
        for seed, values in zip(seeds, stored["layers"], strict=True):
            variables.assign_integers(seed, values)
        shared = _shared()
        if stored["keras"] is not None and shared is not None:
            variables.assign_integers(shared, stored["keras"])

    here = keras.backend.backend()
    if stored["backend"] == here:
        return apply, []
    finding = Finding(
        severity="warning",
        name=f"{path}/backend",
        saved=stored["backend"],
        now=here,
        reason="each backend draws other numbers from the same seeds: the run goes on, not"
        " with the bits it would have had",
    )
    return apply, [finding]


def _global() -> Any:
    """Return Keras' global seed generator, or None while nobody has used it."""
    get = getattr(sys.modules.get(_STATE), "get_global_attribute", None)
    return None if get is None else get(_GLOBAL)


def _shared() -> Any:
    """Return the state of Keras' global seed generator, or None while nobody has used it."""
    found = _global()
    return None if found is None else found.state


def _capture_torch() -> dict[str, Any]:
    if keras.backend.backend() != "torch":
        return {"torch": None, "devices": {}}
    import torch

    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count() if started else 0)
    return {
        "torch": torch.get_rng_state().numpy().copy(),
        "devices": {f"cuda:{n}": torch.cuda.get_rng_state(n).numpy().copy() for n in devices},
    }


def _restore_torch(state: Mapping[str, Any]) -> None:
    if keras.backend.backend() != "torch" or state["torch"] is None:
        return
    import torch

    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
    for name, device in state["devices"].items():
        number = int(name.removeprefix("cuda:"))
        if started and number < torch.cuda.device_count():
            torch.cuda.set_rng_state(torch.from_numpy(np.array(device)), number)
