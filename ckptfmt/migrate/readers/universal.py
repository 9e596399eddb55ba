"""DeepSpeed's universal folders: each parameter in files of its own, for any number of ranks.

`ds_to_universal.py` makes them of a set: `zero/<name>/fp32.pt` is a parameter as 32-bit
numbers, `exp_avg.pt`, `exp_avg_sq.pt` and `step.pt` what the optimizer keeps of it, each a
tensor or `{"param": tensor, …}`; `zero/optimizer_state.pt` has the rest. Model states lie
beside them as in a set. Of a set of stage 3 the arrays are flat, their shapes are in
`param_shapes`, and steps are in the rest.
"""

from __future__ import annotations

import math
from typing import Any, Final

from ckptfmt.errors import FormatError
from ckptfmt.migrate import registry, zero, zero3
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.readers import deepspeed
from ckptfmt.migrate.source import Contents, Lazy, Note

LATEST: Final = "latest_universal"
_ARRAYS: Final = "exp_avg", "exp_avg_sq"
_KEPT: Final = *_ARRAYS, "step"
_PARTS: Final = frozenset({zero3.FLAT, zero3.BASE})
_WITHOUT: Final = frozenset({"deepspeed", "universal", "shards", "folder", "archive"})


def read(place: Place) -> Contents | None:
    """Return a whole folder, named itself, or by the one above or its model states, or None."""
    prefix, first = deepspeed.found_at(place, LATEST)
    if first is None or not place.folder.has(prefix + deepspeed.UNIVERSAL):
        return None
    return _Reader(place, prefix, first).contents()


def _slots(rest: dict[Any, Any], count: int) -> list[dict[str, Any]]:
    """Return what an optimizer keeps of each of so many groups beside arrays: their steps."""
    base = rest.get(zero3.BASE)
    found = base.get("state") if isinstance(base, dict) else None
    rows = [found.get(n) if isinstance(found, dict) else None for n in range(count)]
    return [
        {key: zero.again(value) for key, value in row.items()
         if key not in _ARRAYS and not (isinstance(value, Lazy) and value.shape)}
        if isinstance(row, dict) else {} for row in rows
    ]  # fmt: skip


class _Reader:
    def __init__(self, place: Place, prefix: str, first: str) -> None:
        self._place, self._prefix, self._first = place, prefix, first
        self._files: dict[str, None] = {LATEST: None} if prefix else {}
        self._notes: list[Note] = []
        self._more: dict[str, Any] = {}  # what is said of an array beside it

    def contents(self) -> Contents | None:
        """Return all of it, or None where the model states are of another kind."""
        model = self._root(self._first)
        shapes = zero.shapes_of(model.get("param_shapes") if isinstance(model, dict) else None)
        if not isinstance(model, dict) or shapes is None:
            return None
        every = {name: shape for group in shapes for name, shape in group.items()}
        master = {name: self._array(name, "fp32", shape) for name, shape in every.items()}
        rest = self._root(self._prefix + deepspeed.UNIVERSAL)
        rest = dict(rest) if isinstance(rest, dict) else {"value": rest}
        slots = _slots(rest, len(shapes))
        state = {
            name: {**slots[n], **self._kept(name, shape)}
            for n, group in enumerate(shapes)
            for name, shape in group.items()
        }
        if taken := _PARTS & rest.keys():
            self._note(
                deepspeed.UNIVERSAL,
                f"left out the first rank's parts: {', '.join(sorted(taken))}",
            )
        groups = rest.pop("param_groups", None)
        named = zero.stepped(groups, [list(group) for group in shapes])
        module = model.get("module")
        root = {
            **{k: v for k, v in model.items() if not (k == "optimizer" and v is None)},
            "optimizer": {"groups": groups if named is None else named, "state": state},
            "universal": {
                "rest": {key: value for key, value in rest.items() if key not in _PARTS},
                "more": self._more,
            },
        }
        if self._first == f"{self._prefix}{deepspeed.MODEL}":
            root["master"] = master
        else:  # of stage 3: there are no weights but these
            root["module"] = self._weights(module, master, model)
        self._beside(module, every)
        return Contents(
            format="deepspeed-universal",
            root=root,
            files=tuple(self._files),
            producer=f"DeepSpeed {deepspeed.version(model)}",
            notes=(*self._notes, *deepspeed.strangers(self._place, {*self._files})),
            roles={"ds_config": "hyperparameters"},
        )

    def _note(self, path: str, text: str) -> None:
        self._notes.append(Note(path=path, text=text))

    def _root(self, name: str) -> Any:
        """Return what one file holds."""
        self._place.folder.inside(name, said_by=self._first)
        found = registry.find(Place(self._place.folder, name), without=_WITHOUT)
        if found is None:
            raise FormatError("no reader knows a part of a universal folder", file=name)
        self._files[name] = None
        return found.root

    def _array(self, name: str, key: str, shape: tuple[int, ...]) -> Lazy:
        file = f"{self._prefix}zero/{name}/{key}.pt"
        found = self._root(file)
        if isinstance(found, dict):
            more = {k: v for k, v in found.items() if k != "param"}
            if more:
                self._more[f"{name}/{key}"] = more
            found = found.get("param")
        if not isinstance(found, Lazy) or math.prod(found.shape) != math.prod(shape):
            raise FormatError(
                "a parameter has another shape than its file", file=file, found=shape
            )
        lazy = found
        return Lazy(lazy.dtype, shape, lambda: lazy.load().reshape(shape))

    def _kept(self, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in _KEPT:
            file = f"{self._prefix}zero/{name}/{key}.pt"
            if self._place.folder.has(file):
                found[key] = (
                    self._root(file) if key == "step" else self._array(name, key, shape)
                )
        return found

    def _weights(self, module: Any, master: dict[str, Lazy], model: dict[Any, Any]) -> Any:
        world = model.get("dp_world_size")
        if type(world) is not int or not 0 < world <= deepspeed.MAX_RANKS:
            raise FormatError("an unknown number of ranks", file=self._first, found=world)
        models = [model, *(self._root(f"{self._prefix}{deepspeed.CUT.format(n)}")
                           for n in range(1, world))]  # fmt: skip
        self._note("module", zero3.MASTER)
        found = zero3.module(models, master)
        if isinstance(found, str):
            raise FormatError("the model states do not fit", file=self._first, problem=found)
        return found

    def _beside(self, module: Any, known: dict[str, Any]) -> None:
        """Note the arrays that stand in the model states, too."""
        for name in module if isinstance(module, dict) else ():
            file = f"{self._prefix}zero/{name}/fp32.pt"
            if name not in known and isinstance(name, str) and self._place.folder.has(file):
                self._note(file, "left out: it is in the model states, too")
