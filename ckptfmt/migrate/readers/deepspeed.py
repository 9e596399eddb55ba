"""DeepSpeed's sets of ZeRO stages 1 and 2, joined: weights, and an optimizer cut among ranks.

`mp_rank_00_model_states.pt` has the weights and `param_shapes`: for each group of parameters
name → shape, in the order in which they were laid behind one another. Each rank's
`zero_pp_rank_<r>_mp_rank_00_optim_states.pt` (`bf16_zero_…` of a run in bfloat16) has its
stretch of every group, as 32-bit master weights and as what the optimizer keeps. Joined by rank
and cut by shape they are what they were; padding at the end makes up a multiple of twice the
ranks. The corpus has a set of 0.6.4; sets of 0.19.8 were made with it and joined.

The join is proven, not believed: every number must agree, and a master weight that is read
must round to the weight itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate import registry
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.readers import folder as folders
from ckptfmt.migrate.source import Array, Contents, Lazy, Note, Record

MODEL: Final = "mp_rank_00_model_states.pt"
LATEST: Final = "latest"  # a file with the name of a folder beside it
_MEMBER: Final = re.compile(
    r"mp_rank_00_model_states\.pt|(bf16_)?zero_pp_rank_\d+_mp_rank_00_optim_states\.pt"
)
_WITHOUT: Final = frozenset({"deepspeed", "shards", "folder", "archive"})
_MASTER: Final = "single_partition_of_fp32_groups"
_BASE: Final = "base_optimizer_state"
_STAGE_3: Final = "zero_pp_rank_0_mp_rank_00_model_states.pt"  # weights are cut, too
_STAGES: Final = "only ZeRO stages 1 and 2 are joined"
MAX_RANKS: Final = 100_000
MAX_SHARED: Final = 16  # elements of what all parameters of a group share: a step


def read(place: Place) -> Contents | None:
    """Return a whole set, named by its folder, the one above or any of its files, or None."""
    prefix = _prefix(place)
    if prefix is None:
        return _apart(place, "", _STAGES) if place.folder.has(_STAGE_3) else None
    model = _opened(place.folder, prefix + MODEL)
    if model is None or "param_shapes" not in model.root:
        return None
    world = model.root.get("dp_world_size")
    if type(world) is not int or not 0 < world <= MAX_RANKS:
        return None
    sets = [[f"{prefix}{kind}zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(world)]
            for kind in ("", "bf16_")]  # fmt: skip
    names = next((names for names in sets if any(map(place.folder.has, names))), None)
    if names is None:
        return None  # not cut among ranks
    ranks: list[dict[Any, Any]] = []
    for name in names:
        place.folder.inside(name, said_by=prefix + MODEL)
        rank = _opened(place.folder, name)
        if rank is None:
            raise FormatError("a part of a DeepSpeed set holds no names", file=name)
        ranks.append(rank.root)
    joined = _join(model.root, ranks)
    if isinstance(joined, str):
        return _apart(place, prefix, joined)
    root, notes = joined
    return Contents(
        format="deepspeed-zero",
        root=root,
        files=(*((LATEST,) if prefix else ()), prefix + MODEL, *names),
        producer=f"DeepSpeed {_version(model.root)}",
        notes=(*notes, *_strangers(place, {prefix + MODEL, *names, LATEST})),
        roles={"ds_config": "hyperparameters"},
    )


def _prefix(place: Place) -> str | None:
    """Return what stands before the names of the files of a set, or None without one."""
    folder = place.folder
    if place.name not in (None, LATEST):
        return "" if _MEMBER.fullmatch(str(place.name)) and folder.has(MODEL) else None
    if folder.has(MODEL):
        return ""
    if not folder.has(LATEST) or folder.span(LATEST).nbytes > 4096:
        return None
    tag = bytes(folder.span(LATEST).data).decode("utf-8", "replace").strip()
    if not tag or "/" in tag or tag in (".", "..") or not folder.has(f"{tag}/{MODEL}"):
        return None
    folder.inside(f"{tag}/{MODEL}", said_by=LATEST)
    return f"{tag}/"


def _opened(folder: Names, name: str) -> Contents | None:
    found = registry.find(Place(folder, name), without=_WITHOUT)
    return found if found is not None and isinstance(found.root, dict) else None


def _apart(place: Place, prefix: str, why: str) -> Contents | None:
    """Return the files one by one, with the reason why they are not joined."""
    if place.name is not None or prefix:
        return None
    found = folders.read(place)
    note = Note(path="", text=f"the optimizer's parts are not joined: {why}")
    return None if found is None else replace(found, notes=(*found.notes, note))


def _version(model: dict[Any, Any]) -> str:
    found = model.get("ds_version")
    return found[:40] if isinstance(found, str) else "of an unknown version"


def _strangers(place: Place, known: set[str]) -> Iterator[Note]:
    if place.name is None:
        for name in (*place.folder.names(), *place.folder.others()):
            if name not in known and not any(one.startswith(f"{name}/") for one in known):
                yield Note(path=name, text="left out: no part of the DeepSpeed set")


def _join(
    model: dict[Any, Any], ranks: list[dict[Any, Any]]
) -> tuple[dict[str, Any], list[Note]] | str:
    """Return the tree of the whole and its notes, or why there is none."""
    weights = model.get("module")
    groups = model["param_shapes"]
    groups = groups if isinstance(groups, list) else [groups]
    states = [rank.get("optimizer_state_dict") for rank in ranks]
    if not isinstance(weights, dict) or model.get("optimizer") is not None:
        return "there are no weights beside them"
    if model.get("mp_world_size") not in (1, None):
        return "the model itself is cut among processes"
    if not all(isinstance(s, dict) and _stage(s) in (1, 2) for s in states):
        return _STAGES
    shapes = [{k: _shape(v) for k, v in group.items()} for group in groups
              if isinstance(group, dict)]  # fmt: skip
    flat = [name for group in shapes for name in group]
    if len(shapes) != len(groups) or len(set(flat)) != len(flat):
        return "a parameter's place is not clear"
    for name, shape in ((n, s) for group in shapes for n, s in group.items()):
        weight = weights.get(name)
        if type(name) is not str or not isinstance(weight, Lazy) or weight.shape != shape:
            return "a parameter has another shape than its weight"
    return _Join(weights, shapes, states).root(model, ranks)  # type: ignore[arg-type]


def _stage(state: dict[Any, Any]) -> Any:
    found = state.get("zero_stage")
    if isinstance(found, Record) and len(found.args) == 1:  # a member of an enumeration
        return found.args[0]
    return found


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Record) and value.cls == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, list | tuple) and all(type(n) is int and n >= 0 for n in value):
        return tuple(value)
    return None


class _Join:
    def __init__(
        self,
        weights: dict[Any, Any],
        shapes: list[dict[str, tuple[int, ...]]],
        states: list[dict[str, Any]],
    ) -> None:
        self._weights, self._shapes, self._states = weights, shapes, states
        self._master: dict[str, Lazy] = {}
        self._state: dict[str, dict[str, Any]] = {}
        self._notes: list[Note] = []

    def root(
        self, model: dict[Any, Any], ranks: list[dict[Any, Any]]
    ) -> tuple[dict[str, Any], list[Note]] | str:
        """Return the tree and the notes, or why the parts cannot be joined."""
        bases: list[Any] = [state.get(_BASE) for state in self._states]
        if not all(
            isinstance(b, dict) and b.keys() == {"state", "param_groups"} for b in bases
        ):
            return "the optimizer's state is of an unknown form"
        options: list[Any] = [b["param_groups"] for b in bases]
        count = len(self._shapes)
        if not isinstance(options[0], list) or len(options[0]) != count:
            return "the groups of parameters do not agree"
        if not all(_same(one, options[0]) for one in options):
            return "the ranks have other options for one group"
        for n in range(count):
            why = self._group(n, [b["state"] for b in bases])
            if why:
                return why
        named = [
            {**group, "params": list(names)}
            for group, names in zip(options[0], self._shapes, strict=True)
        ]
        rest = {str(n): _without_parts(rank) for n, rank in enumerate(ranks)}
        root = {
            **{key: value for key, value in model.items() if key != "optimizer"},
            "optimizer": {"groups": named, "state": self._state},
            "master": self._master,
            "zero": rest,
        }
        return root, self._notes

    def _group(self, n: int, states: list[Any]) -> str | None:
        """Cut one group's stretches; return what is wrong with them."""
        parts = []
        for state in self._states:
            masters, counts = state.get(_MASTER), state.get("partition_count")
            count = counts[n] if isinstance(counts, list) and n < len(counts) else counts
            one = masters[n] if isinstance(masters, list) and n < len(masters) else None
            if not isinstance(one, Lazy) or len(one.shape) != 1 or count != len(self._states):
                return "a rank's part is missing or of another cut"
            parts.append(one)
        sizes = [part.shape[0] for part in parts]
        needed = sum(map(math.prod, self._shapes[n].values()))
        align = 2 * len(parts)
        if sum(sizes) < needed or -(-needed // align) != -(-sum(sizes) // align):
            return "the parts have more or fewer elements than the parameters"
        slots: list[Any] = [s.get(n, {}) if isinstance(s, dict) else None for s in states]
        if not all(isinstance(s, dict) and s.keys() == slots[0].keys() for s in slots):
            return "the ranks keep other things for one group"
        self._cut(n, parts, needed)
        for key in slots[0]:
            found = [slot[key] for slot in slots]
            arrays = [v for v in found if isinstance(v, Lazy) and len(v.shape) == 1]
            if len(arrays) == len(found) and _fits(arrays, sizes):
                self._cut(n, arrays, needed, key)
            elif _same(found, [found[0]] * len(found)):
                for name in self._shapes[n]:
                    self._state.setdefault(name, {})[key] = _again(found[0])
            else:
                return f"{key!r} of the ranks is neither cut like the weights nor the same"
        return None

    def _cut(self, n: int, parts: list[Lazy], needed: int, key: str | None = None) -> None:
        whole = _Whole(parts)
        at = 0
        for name, shape in self._shapes[n].items():
            if key is None:
                self._master[name] = whole.cut(name, at, shape, self._weights[name])
            else:
                self._state.setdefault(name, {})[key] = whole.cut(name, at, shape)
            at += math.prod(shape)
        if whole.size > needed:
            path = f"{_MASTER if key is None else key}/{n}"
            self._notes.append(
                Note(path=path, text=f"left out the padding: {whole.size - needed} elements")
            )


def _fits(arrays: list[Lazy], sizes: list[int]) -> bool:
    """Tell whether these are cut as the master weights; only the last may have padding."""
    same_type = len({array.dtype for array in arrays}) == 1
    found = [array.shape[0] for array in arrays]
    return same_type and found[:-1] == sizes[:-1] and found[-1] >= sizes[-1]


class _Whole:
    """The stretches of all ranks behind one another; only those that are asked for are read."""

    def __init__(self, parts: list[Lazy]) -> None:
        self._parts = parts
        self.size = sum(part.shape[0] for part in parts)

    def cut(
        self, name: str, at: int, shape: tuple[int, ...], weight: Lazy | None = None
    ) -> Lazy:
        """Return the elements from `at` on as one array; `weight` is what it must round to."""
        dtype = self._parts[0].dtype
        end = at + math.prod(shape)

        def load() -> Array:
            found, start = [np.empty(0, dtype)], 0
            for part in self._parts:
                low, high = max(at, start), min(end, start + part.shape[0])
                if low < high:
                    found.append(part.load()[low - start : high - start])
                start += part.shape[0]
            whole = np.concatenate(found).reshape(shape)
            if weight is not None:
                _prove(name, whole, weight.load())
            return whole

        return Lazy(dtype, shape, load)


def _prove(name: str, master: Array, weight: Array) -> None:
    with np.errstate(all="ignore"):
        rounded = master.astype(weight.dtype)
        same = (rounded == weight) | ((rounded != rounded) & (weight != weight))
    if not same.all():
        raise FormatError(
            "a master weight does not round to the weight: these files are not of one save; "
            "a file in a folder of its own is read alone",
            file=MODEL, path=name, differing=int(np.size(same) - np.count_nonzero(same)),
        )  # fmt: skip


def _without_parts(rank: dict[Any, Any]) -> dict[Any, Any]:
    state = rank["optimizer_state_dict"]
    rest = {key: value for key, value in state.items() if key not in (_MASTER, _BASE)}
    return {**rank, "optimizer_state_dict": rest}


def _again(value: Any) -> Any:
    return Lazy(value.dtype, value.shape, value.load) if isinstance(value, Lazy) else value


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values of ranks are equal; what is not plain never is."""
    if isinstance(one, Lazy) and isinstance(other, Lazy):
        small = one.shape == other.shape and math.prod(one.shape) <= MAX_SHARED
        return small and one.dtype == other.dtype and bool((one.load() == other.load()).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one is None or (isinstance(one, bool | int | float | str) and one == other)
