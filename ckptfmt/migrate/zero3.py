"""DeepSpeed's ZeRO stage 3, joined: each parameter is cut among all ranks.

Rank r has elements r·n to (r + 1)·n of every parameter, n = ⌈elements / ranks⌉; the last ones
are padding. Its parts lie behind one another in `fp32_flat_groups`, in the order of
`param_shapes`, some parameters in each, and so does what the optimizer keeps. Weights that are
not trained are cut the same way, by name (`frozen_param_fragments`). The 16-bit weights
themselves are not saved. Layout: `deepspeed/utils/zero_to_fp32.py`; sets of 0.19.8 were made
with it, and each array is that of its own converters, bit by bit.
"""

from __future__ import annotations

import math
from typing import Any, Final

from ckptfmt.migrate import zero
from ckptfmt.migrate.source import Attributed, Lazy, Note, Record, named

FLAT: Final = "fp32_flat_groups"
BASE: Final = "optimizer_state_dict"
FROZEN: Final = "frozen_param_fragments"
MASTER: Final = "32-bit master weights: a run of ZeRO stage 3 saves no others"

Tree = dict[Any, Any]


def join(models: list[Tree], ranks: list[Tree]) -> tuple[Tree, list[Note]] | str:
    """Return the tree of the whole and its notes, or why there is none."""
    model = models[0]
    shapes = zero.shapes_of(model["param_shapes"])
    if shapes is None or not all(zero.same(_what(m), _what(model)) for m in models):
        return "a parameter's place is not clear"
    if model.get("mp_world_size") not in (1, None):
        return "the model itself is cut among processes"
    states: list[Any] = [rank.get("optimizer_state_dict") for rank in ranks]
    for state in states:
        if not isinstance(state, dict) or zero.stage(state) != 3:
            return "the parts are not all of ZeRO stage 3"
        if state.get("partition_count") != len(ranks) or state.get("ds_zero_partition_groups"):
            return "a rank's part is missing or of another cut"
    bases: list[Any] = [state.get(BASE) for state in states]
    if not all(isinstance(b, dict) and b.keys() == {"state", "param_groups"} for b in bases):
        return "the optimizer's state is of an unknown form"
    if not all(zero.same(base["param_groups"], bases[0]["param_groups"]) for base in bases):
        return "the ranks have other options for one group"
    flats = [_flats(state) for state in states]
    every = {name: shape for group in shapes for name, shape in group.items()}
    names = _divided(every, flats[0], len(ranks))
    if names is None or [_sizes(flat) for flat in flats] != [_sizes(flats[0])] * len(flats):
        return "the parts have more or fewer elements than the parameters"
    groups = zero.stepped(bases[0]["param_groups"], names)
    if groups is None:
        return "the groups of parameters do not agree"
    cut = _Cut(every, names, flats)
    optimizer = cut.optimizer([base["state"] for base in bases])
    if isinstance(optimizer, str):
        return optimizer
    whole = module(models, cut.masters(_weights(model)))
    if isinstance(whole, str):
        return whole
    root = {
        **{key: value for key, value in model.items() if key != FROZEN},
        "module": whole,
        "optimizer": {"groups": groups, "state": optimizer},
        "zero": {str(n): _rest(models[n], ranks[n], every, n) for n in range(len(ranks))},
    }
    return root, [Note(path="module", text=MASTER), *_notes(states, cut)]


def _what(model: Tree) -> tuple[Any, Any, Any]:
    frozen = model.get("frozen_param_shapes")
    return (
        zero.shapes_of(model.get("param_shapes")),
        zero.shapes_of(frozen) if frozen else None,
        model.get("dp_world_size"),
    )


def _flats(state: Tree) -> list[Lazy]:
    """Return a rank's parts; a tensor that carries a name of DeepSpeed is a record."""
    found = state.get(FLAT)
    parts = [_bare(part) for part in found] if isinstance(found, list) else []
    arrays = [part for part in parts if isinstance(part, Lazy) and len(part.shape) == 1]
    return arrays if len(arrays) == len(parts) else []


def _bare(part: Any) -> Any:
    is_tensor = isinstance(part, Record) and part.cls == "torch.Tensor" and len(part.args) == 1
    return part.args[0] if is_tensor else part


def _sizes(flat: list[Lazy]) -> list[tuple[Any, int]]:
    return [(part.dtype, part.shape[0]) for part in flat]


def _divided(
    shapes: dict[str, tuple[int, ...]], flat: list[Lazy], world: int
) -> list[list[str]] | None:
    """Return the parameters in each of a rank's parts, or None when they do not fill them."""
    todo = list(shapes)[::-1]
    found = []
    for part in flat:
        room = part.shape[0]
        names = []
        while room > 0 and todo:
            names.append(todo.pop())
            room -= -(-math.prod(shapes[names[-1]]) // world)
        if room:
            return None
        found.append(names)
    return None if todo or not found else found


class _Cut:
    """Where each parameter is in the parts of all ranks."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        names: list[list[str]],
        flats: list[list[Lazy]],
    ) -> None:
        self.shapes, self.world = shapes, len(flats)
        self.padding = sum(part.shape[0] for flat in flats for part in flat)
        self.padding -= sum(map(math.prod, shapes.values()))
        self._names = names
        self._masters = [list(parts) for parts in zip(*flats, strict=True)]

    def masters(self, weights: Tree) -> dict[str, Lazy]:
        """Return the parameters as 32-bit numbers; those that were not cut must round."""
        rows = [self._arrays(n, parts, weights) for n, parts in enumerate(self._masters)]
        return {name: array for row in rows for name, array in row.items()}

    def _arrays(
        self, n: int, parts: list[Lazy], weights: Tree | None = None
    ) -> dict[str, Lazy]:
        whole, at = zero.Whole(parts), 0
        found = {}
        for name in self._names[n]:
            shape = self.shapes[name]
            stretches = cut_among(math.prod(shape), self.world, parts[0].shape[0], at)
            kept = None if weights is None else weights.get(name)
            is_whole = isinstance(kept, Lazy) and kept.shape == shape
            found[name] = whole.cut(name, stretches, shape, kept if is_whole else None)
            at += -(-math.prod(shape) // self.world)
        return found

    def optimizer(self, states: list[Any]) -> dict[str, Any] | str:
        """Return what the optimizer keeps of each parameter, or why not."""
        found: dict[str, Any] = {name: {} for name in self.shapes}
        for n, parts in enumerate(self._masters):
            rows: list[Any] = [
                state.get(n, {}) if isinstance(state, dict) else None for state in states
            ]
            if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
                return "the ranks keep other things for one group"
            for key in rows[0]:
                values = [_bare(row[key]) for row in rows]
                if _shapes_of(values) == [parts[0].shape] * self.world:
                    arrays: dict[str, Any] = dict(self._arrays(n, values))
                elif zero.same(values, [values[0]] * self.world):
                    arrays = {name: zero.again(values[0]) for name in self._names[n]}
                else:
                    return f"{key!r} of the ranks is neither cut like the weights nor the same"
                for name, array in arrays.items():
                    found[name][key] = array
        return found


def _shapes_of(values: list[Any]) -> list[Any]:
    same_type = len({getattr(value, "dtype", None) for value in values}) == 1
    return [value.shape if isinstance(value, Lazy) and same_type else None for value in values]


def cut_among(count: int, world: int, size: int, at: int) -> list[zero.Stretch]:
    """Return where the elements of one parameter are: rank r's begin at r·size + at."""
    each = -(-count // world)
    found = []
    for rank in range(world):
        here = max(0, min(each, count - rank * each))
        found.append((rank * size + at, rank * size + at + here))
    return found


def module(models: list[Tree], masters: dict[str, Lazy]) -> Tree | str:
    """Return the weights as the model names them, or why not.

    Args:
        masters: The parameters that are trained.
    """
    model = models[0]
    weights, shared = model.get("module"), model.get("shared_params")
    frozen = zero.shapes_of(model.get("frozen_param_shapes") or {})
    if not isinstance(weights, dict) or frozen is None or model.get("optimizer") is not None:
        return "there are no weights beside them"
    found: Tree = dict(masters)
    for name, shape in frozen[0].items():
        array = _frozen(name, shape, models)
        if array is None:
            return "a weight that is not trained has no parts"
        found[name] = array
    for name, other in shared.items() if isinstance(shared, dict) else ():
        if isinstance(other, str) and other in found and name not in found:
            found[name] = found[other]
    buffers = model.get("buffer_names")
    told = buffers if isinstance(buffers, list) else []
    for name, value in weights.items():
        if (
            name not in found
            and isinstance(value, Lazy)
            and not value.nbytes
            and name not in told
        ):
            return "a weight has no parts"
    order = [*weights, *(name for name in found if name not in weights)]
    whole = Attributed((name, found.get(name, weights.get(name))) for name in order)
    whole.attributes = getattr(weights, "attributes", None)
    return whole


def _weights(model: Tree) -> Tree:
    found = model.get("module")
    return found if isinstance(found, dict) else {}


def _frozen(name: str, shape: tuple[int, ...], models: list[Tree]) -> Lazy | None:
    """Return a weight that is not trained, or None when its parts do not add up."""
    rows = [m.get(FROZEN) for m in models]
    parts: list[Any] = [_bare(row.get(name)) if isinstance(row, dict) else None for row in rows]
    count, each = math.prod(shape), -(-math.prod(shape) // len(models))
    if _shapes_of(parts) != [(each,)] * len(parts):
        return None
    return zero.Whole(parts).cut(name, cut_among(count, len(parts), each, 0), shape)


def _rest(model: Tree, rank: Tree, joined: Tree, n: int) -> Tree:
    """Return what one rank has beside the parts."""
    state = {k: v for k, v in rank["optimizer_state_dict"].items() if k not in (FLAT, BASE)}
    found = {**rank, "optimizer_state_dict": state}
    if n == 0:
        return found
    frozen = model.get("frozen_param_shapes") or {}
    own = {k: v for k, v in _weights(model).items() if k not in joined and k not in frozen}
    rest = {key: value for key, value in model.items() if key not in (FROZEN, "module")}
    return {**found, "model": {**rest, "module": own}}


def _notes(states: list[Any], cut: _Cut) -> list[Note]:
    found = []
    if cut.padding:
        text = f"left out the padding: {cut.padding} elements of each array"
        found.append(Note(path=FLAT, text=text))
    tags = {named(key) for state in states for part in state[FLAT] if isinstance(part, Record)
            and isinstance(part.state, dict) for key in part.state}  # fmt: skip
    if tags:
        text = f"left out what was set on the parts: {', '.join(sorted(tags))}"
        found.append(Note(path=FLAT, text=text))
    return found
