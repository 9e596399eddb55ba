"""What the caller gave, in one list: which object, of which kind, belongs to which section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

import ckptfmt
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.tree import join, unescape
from ckptfmt_torch import generators, modules

# id of a parameter → its names; of tied ones several, the first is the one to store under
Names: TypeAlias = dict[int, list[str]]
OWN = ("rng", "rank_local")  # sections of the adapter
SECTION = {"loader": "data/loader", "sampler": "data/sampler"}  # the others: their own name


@runtime_checkable
class Stateful(Protocol):
    """What torch, torchdata, ignite and accelerate agree on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Continue from such a state."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of a run, by path in the state tree."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    stateful: dict[str, Stateful]
    positionless: tuple[str, ...]  # loaders that cannot say where they are
    generators: dict[str, generators.Generator]
    names: Names  # of each parameter, for the optimizers

    def sections(self) -> set[str]:
        """Return the paths these objects are stored under."""
        return {*self.modules, *self.optimizers, *self.stateful}


def collect(
    run: Mapping[str, Any], named_generators: Mapping[str, generators.Generator] | None
) -> Objects:
    """Sort the objects by kind; a dict of objects counts as several, below one section.

    Raises:
        UsageError: an object has no state to store, or two have one place in the checkpoint.
    """
    modules_: dict[str, nn.Module] = {}
    optimizers: dict[str, torch.optim.Optimizer] = {}
    stateful: dict[str, Stateful] = {}
    positionless: list[str] = []
    found = dict(named_generators or {})
    paths: set[str] = set()
    for path, value in given(run):
        if path in paths or path.split("/")[0] in OWN:
            raise UsageError(
                "this place in the checkpoint is taken: use another name", path=path
            )
        paths.add(path)
        if isinstance(value, nn.Module):
            modules_[path] = value
        elif isinstance(value, torch.optim.Optimizer):
            optimizers[path] = value
        elif isinstance(value, Stateful):
            stateful[path] = value
        elif isinstance(value, torch.utils.data.DataLoader | torch.utils.data.Sampler):
            positionless.append(path)
        else:
            raise UsageError(
                f"{type(value).__name__} has no state_dict() and load_state_dict(): give plain"
                " values as counters= or hyperparameters=",
                argument=path,
            )
        for name, generator in generators_of(path, value):
            found.setdefault(name, generator)
    return Objects(
        modules=modules_,
        optimizers=optimizers,
        stateful=stateful,
        positionless=tuple(positionless),
        generators=found,
        names=_names(modules_),
    )


def given(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each object with its path in the state tree; those that are None are left out."""
    for name, value in run.items():
        path = SECTION.get(name, name)
        if isinstance(value, Mapping):
            for below, one in value.items():
                yield join(path, below), one
        elif value is not None:
            yield path, value


def generators_of(path: str, value: object) -> Iterator[tuple[str, torch.Generator]]:
    """Yield the generators that shuffle the data, which nobody else saves."""
    at = path.rpartition("/")[2]
    own = getattr(value, "generator", None)
    if isinstance(own, torch.Generator):
        yield at, own
    inner = getattr(getattr(value, "sampler", None), "generator", None)
    if isinstance(inner, torch.Generator) and inner is not own:
        yield f"{at}.sampler", inner


def prefix(path: str) -> str:
    """Return what optimizers put before names of parameters; nothing for `model`."""
    return "" if path == "model" else path.removeprefix("model/").replace("/", ".") + "."


def _names(found: Mapping[str, nn.Module]) -> Names:
    names: Names = {}
    for path, module in found.items():
        for name, parameter in modules.named_parameters(module):
            names.setdefault(id(parameter), []).append(prefix(path) + name)
    return names


def expect(kind: type[ckptfmt.Store | ckptfmt.Checkpoint], found: object) -> None:
    """Refuse anything that is not of a kind, such as a path in place of a store.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(found, kind):
        way = {ckptfmt.Store: "ckptfmt.open(path)", ckptfmt.Checkpoint: "store.latest()"}[kind]
        raise UsageError(
            f"expected a {kind.__name__}, such as {way}", found=type(found).__name__
        )


def at(
    content: Mapping[str, Any],
    path: str,
    checkpoint: ckptfmt.Checkpoint,
    way: str = "restore without this object",
) -> Any:
    """Return what a state tree has at the path of an object.

    Args:
        way: What its user can do when it has nothing there.

    Raises:
        NotFoundError: nothing.
    """
    value: Any = content
    for name in map(unescape, path.split("/")):
        if not isinstance(value, Mapping) or name not in value:
            raise NotFoundError(
                f"the checkpoint has no such section: {way}",
                section=path,
                checkpoint=checkpoint.number,
                present=sorted(content),
            )
        value = value[name]
    return value
