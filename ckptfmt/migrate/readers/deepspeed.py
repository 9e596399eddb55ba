"""DeepSpeed's sets of ZeRO, joined: weights, and an optimizer cut among ranks.

Stages 1 and 2: `mp_rank_00_model_states.pt` has the weights and `param_shapes`: for each group
of parameters name → shape, in the order in which they were laid behind one another. Each rank's
`zero_pp_rank_<r>_mp_rank_00_optim_states.pt` (`bf16_zero_…` of a run in bfloat16) has its
stretch of every group, as 32-bit master weights and as what the optimizer keeps. Joined by rank
and cut by shape they are what they were; padding at the end makes up a multiple of twice the
ranks. The corpus has a set of 0.6.4; sets of 0.19.8 were made with it and joined.
Stage 3: each rank has model states of its own, `zero_pp_rank_<r>_mp_rank_00_model_states.pt`,
and the weights, too, are cut (`zero3.py`).

The join is proven, not believed: every number must agree, and a master weight that is read
must round to the weight itself, where that is saved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import registry, zero, zero3
from ckptfmt.migrate.files import Names, Place
from ckptfmt.migrate.readers import folder as folders
from ckptfmt.migrate.source import Contents, Lazy, Note

MODEL: Final = "mp_rank_00_model_states.pt"
UNIVERSAL: Final = "zero/optimizer_state.pt"
LATEST: Final = "latest"  # a file with the name of a folder beside it
CUT: Final = "zero_pp_rank_{}_mp_rank_00_model_states.pt"  # of stage 3
_PART: Final = "{}zero_pp_rank_{}_mp_rank_00_optim_states.pt"
_MEMBER: Final = re.compile(
    r"(zero_pp_rank_\d+_)?mp_rank_00_model_states\.pt"
    r"|(bf16_)?zero_pp_rank_\d+_mp_rank_00_optim_states\.pt"
)
_WITHOUT: Final = frozenset({"deepspeed", "universal", "shards", "folder", "archive"})
_MASTER: Final = "single_partition_of_fp32_groups"
_BASE: Final = "base_optimizer_state"
_STAGES: Final = "the ranks' parts are not of ZeRO stage 1, 2 or 3"
MAX_RANKS: Final = 100_000


def read(place: Place) -> Contents | None:
    """Return a whole set, named by its folder, the one above or any of its files, or None."""
    prefix, first = found_at(place)
    model = None if first is None else opened(place.folder, first)
    if first is None or model is None or "param_shapes" not in model.root:
        return None
    if place.folder.has(prefix + UNIVERSAL):
        return None  # the next reader's
    world = model.root.get("dp_world_size")
    if type(world) is not int or not 0 < world <= MAX_RANKS:
        return None
    is_cut = first != prefix + MODEL
    sets = [[prefix + _PART.format(kind, n) for n in range(world)] for kind in ("", "bf16_")]
    names = next((names for names in sets if any(map(place.folder.has, names))), None)
    if names is None:  # not cut among ranks
        why = "the ranks' parts, which hold the weights, are missing"
        return _apart(place, prefix, why) if is_cut else None
    ranks = _roots(place.folder, names, first)
    if is_cut:
        of_models = [prefix + CUT.format(n) for n in range(world)]
        models = _roots(place.folder, of_models, first)
        joined = zero3.join(models, ranks)
        names = [*of_models, *names]
    else:
        joined = _join(model.root, ranks)
        names = [first, *names]
    if isinstance(joined, str):
        return _apart(place, prefix, joined)
    root, notes = joined
    return Contents(
        format="deepspeed-zero",
        root=root,
        files=(*((LATEST,) if prefix else ()), *names),
        producer=f"DeepSpeed {version(model.root)}",
        notes=(*notes, *strangers(place, {*names, LATEST})),
        roles={"ds_config": "hyperparameters"},
    )


def found_at(place: Place, latest: str = LATEST) -> tuple[str, str | None]:
    """Return what stands before the names of a set's files, and its first one's; or None."""
    folder, first = place.folder, (MODEL, CUT.format(0))
    if place.name not in (None, latest):
        if not _MEMBER.fullmatch(str(place.name)):
            return "", None
        return "", next(filter(folder.has, first), None)
    here = next(filter(folder.has, first), None)
    if here is not None or not folder.has(latest) or folder.span(latest).nbytes > 4096:
        return "", here
    tag = bytes(folder.span(latest).data).decode("utf-8", "replace").strip()
    if not tag or "/" in tag or tag in (".", ".."):
        return "", None
    found = next((name for name in first if folder.has(f"{tag}/{name}")), None)
    if found is None:
        return "", None
    folder.inside(f"{tag}/{found}", said_by=latest)
    return f"{tag}/", f"{tag}/{found}"


def _roots(folder: Names, names: list[str], said_by: str) -> list[dict[Any, Any]]:
    roots: list[dict[Any, Any]] = []
    for name in names:
        folder.inside(name, said_by=said_by)
        rank = opened(folder, name)
        if rank is None:
            raise FormatError("a part of a DeepSpeed set holds no names", file=name)
        roots.append(rank.root)
    return roots


def opened(folder: Names, name: str) -> Contents | None:
    """Return one file of a set that holds names, or None."""
    found = registry.find(Place(folder, name), without=_WITHOUT)
    return found if found is not None and isinstance(found.root, dict) else None


def _apart(place: Place, prefix: str, why: str) -> Contents | None:
    """Return the files one by one, with the reason why they are not joined."""
    if place.name is not None or prefix:
        return None
    found = folders.read(place)
    note = Note(path="", text=f"the optimizer's parts are not joined: {why}")
    return None if found is None else replace(found, notes=(*found.notes, note))


def version(model: dict[Any, Any]) -> str:
    """Return the version that a set says it is of."""
    found = model.get("ds_version")
    return found[:40] if isinstance(found, str) else "of an unknown version"


def strangers(place: Place, known: set[str]) -> Iterator[Note]:
    """Yield a note for whatever lies in a folder beside a set."""
    if place.name is None:
        for name in (*place.folder.names(), *place.folder.others()):
            if name not in known and not any(one.startswith(f"{name}/") for one in known):
                yield Note(path=name, text="left out: no part of the DeepSpeed set")


def _join(
    model: dict[Any, Any], ranks: list[dict[Any, Any]]
) -> tuple[dict[str, Any], list[Note]] | str:
    """Return the tree of the whole and its notes, or why there is none."""
    weights = model.get("module")
    states: list[Any] = [rank.get("optimizer_state_dict") for rank in ranks]
    if not isinstance(weights, dict) or model.get("optimizer") is not None:
        return "there are no weights beside them"
    if model.get("mp_world_size") not in (1, None):
        return "the model itself is cut among processes"
    if not all(isinstance(s, dict) and zero.stage(s) in (1, 2) for s in states):
        return _STAGES
    shapes = zero.shapes_of(model["param_shapes"])
    if shapes is None:
        return "a parameter's place is not clear"
    for name, shape in ((n, s) for group in shapes for n, s in group.items()):
        weight = weights.get(name)
        if not isinstance(weight, Lazy) or weight.shape != shape:
            return "a parameter has another shape than its weight"
    return _Join(weights, shapes, states).root(model, ranks)


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
        if not all(zero.same(one, options[0]) for one in options):
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
        gaps = self._gaps(n)
        if gaps is None:
            return "the gaps between the parameters are of an unknown form"
        needed = sum(map(math.prod, self._shapes[n].values())) + sum(gaps)
        align = 2 * len(parts)
        if sum(sizes) < needed or -(-needed // align) != -(-sum(sizes) // align):
            return "the parts have more or fewer elements than the parameters"
        slots: list[Any] = [s.get(n, {}) if isinstance(s, dict) else None for s in states]
        if not all(isinstance(s, dict) and s.keys() == slots[0].keys() for s in slots):
            return "the ranks keep other things for one group"
        self._cut(n, parts, gaps)
        for key in slots[0]:
            found = [slot[key] for slot in slots]
            arrays = [v for v in found if isinstance(v, Lazy) and len(v.shape) == 1]
            if len(arrays) == len(found) and _fits(arrays, sizes):
                self._cut(n, arrays, gaps, key)
            elif zero.same(found, [found[0]] * len(found)):
                for name in self._shapes[n]:
                    self._state.setdefault(name, {})[key] = zero.again(found[0])
            else:
                return f"{key!r} of the ranks is neither cut like the weights nor the same"
        return None

    def _gaps(self, n: int) -> list[int] | None:
        """Return how many elements are left free behind each parameter, which few runs do."""
        found = self._states[0].get("param_alignment_paddings")
        if found is None:
            return [0] * len(self._shapes[n])
        gaps = found[n] if isinstance(found, list) and n < len(found) else None
        if not isinstance(gaps, list) or len(gaps) != len(self._shapes[n]):
            return None
        return gaps if all(type(gap) is int and gap >= 0 for gap in gaps) else None

    def _cut(self, n: int, parts: list[Lazy], gaps: list[int], key: str | None = None) -> None:
        whole = zero.Whole(parts)
        at = kept = 0
        for (name, shape), gap in zip(self._shapes[n].items(), gaps, strict=True):
            stretch = [(at, at + math.prod(shape))]
            if key is None:
                self._master[name] = whole.cut(name, stretch, shape, self._weights[name])
            else:
                self._state.setdefault(name, {})[key] = whole.cut(name, stretch, shape)
            at += math.prod(shape) + gap
            kept += math.prod(shape)
        if whole.size > kept:
            path = f"{_MASTER if key is None else key}/{n}"
            self._notes.append(
                Note(path=path, text=f"left out the padding: {whole.size - kept} elements")
            )


def _fits(arrays: list[Lazy], sizes: list[int]) -> bool:
    """Tell whether these are cut as the master weights; only the last may have padding."""
    same_type = len({array.dtype for array in arrays}) == 1
    found = [array.shape[0] for array in arrays]
    return same_type and found[:-1] == sizes[:-1] and found[-1] >= sizes[-1]


def _without_parts(rank: dict[Any, Any]) -> dict[Any, Any]:
    state = rank["optimizer_state_dict"]
    rest = {key: value for key, value in state.items() if key not in (_MASTER, _BASE)}
    return {**rank, "optimizer_state_dict": rest}
