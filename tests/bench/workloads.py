"""What is saved and loaded: arrays that come out the same in every process."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
Shapes: TypeAlias = dict[str, tuple[int, ...]]

CHANGED: Final = 0.05  # share of the bytes that differ at the second save
FLOAT32: Final = "float32"
BFLOAT16: Final = "bfloat16"
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    FLOAT32: np.dtype(np.float32),
    BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One state, saved `checkpoints` times."""

    name: str
    title: str
    shapes: Shapes  # path → shape
    dtype: str = FLOAT32
    checkpoints: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of one checkpoint."""
        items = sum(math.prod(shape) for shape in self.shapes.values())
        return DTYPES[self.dtype].itemsize * items

    @property
    def one(self) -> str:
        """The path of the largest array: the one that is read alone."""
        return max(self.shapes, key=lambda path: math.prod(self.shapes[path]))


def workload(name: str, *, quick: bool) -> Workload:
    """Return a workload at full size, or at one that takes no time."""
    family, _, many = name.partition("-")
    if many:
        return _point(family, int(many))
    if name in ("W1", "W3"):
        shapes = adam(layers=2, width=128) if quick else adam(layers=12, width=768)
        titles = {"W1": "Adam state", "W3": "Adam state, second save with 5 % changed"}
        return Workload(name=name, title=titles[name], shapes=shapes)
    if name == "W2":
        return Workload(
            name=name, title="many small arrays", shapes=small(1000 if quick else 20_000)
        )
    if name == "W4":
        shapes = adam(layers=2, width=128) if quick else adam(layers=12, width=768)
        weights = {path: shape for path, shape in shapes.items() if path.startswith("model/")}
        return Workload(name=name, title="bf16 weights", shapes=weights, dtype=BFLOAT16)
    if name == "W5":
        return Workload(
            name=name, title="one large array", shapes=large(512 if quick else 16384)
        )
    if name == "W6":
        shapes = adam_of({"in.weight": (256, 200), "in.bias": (256,), "out.weight": (56, 256)})
        count = 10 if quick else 200
        return Workload(
            name=name, title="a run's checkpoints", shapes=shapes, checkpoints=count
        )
    shapes = adam_of({"in.weight": (16, 16), "in.bias": (16,)})
    count = 30 if quick else 1000
    return Workload(
        name="W7", title="a long run's checkpoints", shapes=shapes, checkpoints=count
    )


def _point(family: str, many: int) -> Workload:
    """Return a point of a curve: so many megabytes, arrays or checkpoints."""
    name = f"{family}-{many}"
    if family == "size":
        shapes: Shapes = {f"model/{n:02d}": (many * 10**6 // 256,) for n in range(64)}
        return Workload(name=name, title=f"{many} MB in 64 arrays", shapes=shapes)
    if family == "arrays":
        shapes = {f"model/block.{n // 20}.{n:06d}": (256,) for n in range(many)}
        return Workload(name=name, title=f"{many} arrays of 1 KiB", shapes=shapes)
    shapes = adam_of({"in.weight": (16, 16), "in.bias": (16,)})
    return Workload(name=name, title=f"{many} checkpoints", shapes=shapes, checkpoints=many)


def adam(*, layers: int, width: int) -> Shapes:
    """Return a transformer's parameters and Adam's two moments of each.

    12 layers of 768 with the vocabulary below: 444 arrays, 1.00 GiB.
    """
    parameters: Shapes = {
        "wte.weight": (4736, width),
        "wpe.weight": (1024, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for layer in range(layers):
        for name, rows in (
            ("attn.qkv", 3 * width),
            ("attn.proj", width),
            ("mlp.up", 4 * width),
        ):
            parameters[f"h.{layer}.{name}.weight"] = (rows, width)
            parameters[f"h.{layer}.{name}.bias"] = (rows,)
        parameters[f"h.{layer}.mlp.down.weight"] = (width, 4 * width)
        parameters[f"h.{layer}.mlp.down.bias"] = (width,)
        for name in ("ln_1", "ln_2"):
            parameters[f"h.{layer}.{name}.weight"] = (width,)
            parameters[f"h.{layer}.{name}.bias"] = (width,)
    return adam_of(parameters)


def adam_of(parameters: Shapes) -> Shapes:
    """Return parameters and their two moments."""
    folders = ("model", "optimizer/exp_avg", "optimizer/exp_avg_sq")
    return {f"{f}/{name}": shape for f in folders for name, shape in parameters.items()}


def small(count: int) -> Shapes:
    """Return `count` arrays of 4 bytes to 64 KiB, 14.2 KiB on average."""
    sizes: list[tuple[int, ...]] = [(), (64,), (256,), (1024,), (64, 64), (128, 128)]
    return {f"model/block.{n // 20}.{n:05d}": sizes[n % len(sizes)] for n in range(count)}


def large(width: int) -> Shapes:
    """Return one square array, 1 GiB at a width of 16384, and 16 of 1/1024 of it beside it."""
    shapes: Shapes = {f"model/small.{n}": (width // 32, width // 32) for n in range(16)}
    return shapes | {"model/large": (width, width)}


def arrays(own: Workload) -> Arrays:
    """Return the workload's arrays; random, so that no codec and no cache can gain."""
    rng = np.random.Generator(np.random.SFC64(len(own.shapes)))
    made = {}
    for path, shape in own.shapes.items():
        array: npt.NDArray[np.float32] = np.empty(shape, np.float32)
        rng.random(dtype=np.float32, out=array)
        made[path] = array.astype(DTYPES[own.dtype], copy=False)
    return made


def blank(own: Workload) -> Arrays:
    """Return arrays to load into: of the right shapes, their memory in use already."""
    dtype = DTYPES[own.dtype]
    return {path: np.full(shape, -1, dtype) for path, shape in own.shapes.items()}


def changed(own: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """Return the paths of whole arrays that make up at most 5 % of the bytes."""
    paths = sorted(own)
    random.Random(5).shuffle(paths)
    left = int(CHANGED * sum(array.nbytes for array in own.values()))
    chosen = []
    for path in paths:
        if own[path].nbytes <= left:
            chosen.append(path)
            left -= own[path].nbytes
    return chosen


def change(own: Arrays, paths: list[str]) -> int:
    """Change arrays in place, as training does; return their bytes."""
    for path in paths:
        np.negative(own[path], out=own[path])
    return sum(own[path].nbytes for path in paths)
