"""The whole run as one state tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptfmt.tree import unescape
from ckptfmt_torch import generators, modules, objects, optimizers, ranks, staging, values

RNG = "rng"


def capture(
    *,
    generators: Mapping[str, generators.Generator] | None = None,
    rng: bool = True,
    buffers: str = "persistent",
    **run: Any,
) -> dict[str, Any]:
    """Return the state of a run as a state tree for `ckptfmt.Store.save`.

    Nothing is copied: arrays share the memory of CPU tensors, so they change when training
    goes on. `save_async` makes its own copy before it returns; tensors of devices are copied
    to the host here, those of CUDA through pinned memory. When `torch.distributed` runs, the
    processes hold replicas, as with DistributedDataParallel: rank 0 returns all, the others
    only what is their own, and they save it together; see `save`.

    Args:
        generators: Further `torch.Generator`s and `numpy.random.Generator`s, by name; those
            of a loader and its sampler are found by themselves.
        rng: Whether to include the random generators of Python, NumPy, torch and each device.
        buffers: "persistent", or "all" to include those torch leaves out of `state_dict`.
        run: The objects: `model`, `optimizer`, `scheduler`, `scaler`, `ema`, `loader`,
            `sampler`, `callbacks`, and any other name. Each is a module, an optimizer,
            something with `state_dict` and `load_state_dict`, a dict of these, or None.

    Returns:
        `model` (names as in `state_dict`, without the prefixes of wrappers), `optimizer`
        (state by parameter name), the others under their names, `data/loader`,
        `data/sampler`, and `rng`, or `rank_local/<rank>/rng` when several processes train.

    Raises:
        UsageError: an object has no state, or an optimizer's parameter belongs to no module.
        StateError: a tensor cannot be stored exactly; the message names the way out.
    """
    found = objects.collect(run, generators)
    state: dict[str, Any] = {}
    if ranks.rank_and_world()[0]:  # replicas: rank 0 has the model, the others their own
        return _with_rng(state, found) if rng else state
    host = staging.Staging()
    for path, module in found.modules.items():
        _put(state, path, modules.capture(module, path, buffers=buffers, view=host.view))
    for path, optimizer in found.optimizers.items():
        _put(state, path, optimizers.capture(optimizer, found.names, path, host.view))
    for path, value in found.stateful.items():
        _put(state, path, values.to_tree(value.state_dict(), path, host.view))
    host.finish()
    return _with_rng(state, found) if rng else state


def _with_rng(state: dict[str, Any], found: objects.Objects) -> dict[str, Any]:
    rank, world = ranks.rank_and_world()
    own = {RNG: generators.capture(found.generators)}
    return state | ({"rank_local": {rank: own}} if world > 1 else own)


def _put(state: dict[str, Any], path: str, value: Any) -> None:
    *above, last = map(unescape, path.split("/"))
    for name in above:
        state = state.setdefault(name, {})
    state[last] = value
