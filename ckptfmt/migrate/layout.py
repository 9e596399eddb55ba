"""Where the parts of a source go: standard sections, counters, settings. Pure.

Decided by the names that trainers give to the top level of what they save, and by what is
below a name: settings hold no arrays, weights do. Names below are never changed, except those
of an optimizer's parameters (`optimizers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, Final

import numpy as np

from ckptfmt.errors import FormatError
from ckptfmt.migrate import modules, optimizers
from ckptfmt.migrate.source import Contents, Lazy, Path, children, dotted, walk

SETTINGS: Final = "hyperparameters", "architecture"  # metadata beside the tree: no arrays

# Names of a trainer's parts → section. Compared in lower case.
SECTIONS: Final[Mapping[str, Iterable[str]]] = {
    "model": (
        "model", "state_dict", "model_state_dict", "model_state", "model_dict", "module", "net",
        "network", "params", "weights", "module_state_dict", "net_state_dict", "target",
        "model_weights", "layers", "_layer_checkpoint_dependencies",
    ),
    "optimizer": (
        "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict",
        "optimizer_state", "optimizer_dict", "opt_state", "optim", "optim_dict", "optim_state",
        "optimizer_weights",
    ),
    "scheduler": (
        "scheduler", "schedulers", "lr_schedulers", "lr_scheduler", "scheduler_state_dict",
        "lr_scheduler_state_dict", "scheduler_state",
    ),
    "scaler": ("scaler", "grad_scaler", "scaler_state_dict", "amp_scaling_state",
               "native_amp_scaling_state", "loss_scaler"),
    "ema": ("ema", "ema_state_dict", "model_ema", "ema_state", "ema_model", "state_dict_ema"),
    "rng": ("rng", "rng_state", "rng_states", "random_state", "random_states"),
    "callbacks": ("callbacks",),
    "hyperparameters": (
        "hyper_parameters", "hparams", "hyperparameters", "args", "config", "cfg", "opt",
        "options", "kwargs", "train_config", "model_args", "training_args",
    ),
}  # fmt: skip
_SECTION_OF: Final = {name: section for section, names in SECTIONS.items() for name in names}
_COUNTS: Final = (int, float)
# No branch of an unknown name becomes a section that is called like one of ours.
_RESERVED: Final = frozenset({"", "counters", "extra", "module", *SECTIONS, *SETTINGS})


@dataclass(frozen=True, slots=True)
class Move:
    """Where one part of a source goes."""

    source: Path | None  # None: made of a part that goes elsewhere, too
    target: Path  # section and what is below; or counters, hyperparameters, architecture
    around: tuple[Any, ...] = ()  # containers of the source that it lies in


@dataclass(slots=True)
class Layout:
    """A source arranged for the store; values still as the reader gave them."""

    state: dict[str, Any] = field(default_factory=dict)  # section → part of the tree
    counters: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # hyperparameters, architecture
    moves: list[Move] = field(default_factory=list)  # in the source's order
    notes: list[str] = field(default_factory=list)

    def part(self, target: Path) -> Any:
        """Return what goes to the target of one of the moves."""
        found: Any = _branch(self, target)
        for component in target[target[0] == "counters" :]:
            found = found[component]
        return found


@dataclass(frozen=True, slots=True)
class _Part:
    """A branch or leaf near the top of a source."""

    path: Path
    value: Any
    section: str | None  # that its name stands for
    around: tuple[Any, ...]

    @property
    def name(self) -> str:
        return str(self.path[-1])


def arrange(contents: Contents) -> Layout:
    """Return where everything goes."""
    layout = Layout()
    root = contents.root
    if _is_named(root):
        _place(layout, list(_parts((), (root,), contents)))
    else:
        target: Path = ("model", "value") if isinstance(root, Lazy) else ("model",)
        put(layout, target, root)
        layout.moves.append(Move((), target))
    modules.unpack(layout.state)
    if "module" in layout.state:
        layout.moves = [Move(None, ("model",)), *map(_as_module, layout.moves)]
    layout.notes += optimizers.rekey(layout.state)
    return layout


def _as_module(move: Move) -> Move:
    return replace(move, target=("module",)) if move.target == ("model",) else move


def _is_named(node: Any) -> bool:
    return isinstance(node, dict) and bool(node) and all(type(key) is str for key in node)


def _parts(above: Path, around: tuple[Any, ...], contents: Contents) -> Iterator[_Part]:
    """Yield what is near the top: below a branch that only holds parts, these (Composer)."""
    for key, value in around[-1].items():
        section = _section(key, value, contents)
        if not above and section in (None, "model"):
            inner = value if _is_named(value) else {}
            known = {_section(name, child, contents) for name, child in inner.items()}
            if {"model", "optimizer"} <= known or (key == "state" and "model" in known):
                yield from _parts((key,), (*around, inner), contents)
                continue
        yield _Part((*above, key), value, section, around)


def _section(key: str, value: Any, contents: Contents) -> str | None:
    """Return the section that a key near the top names, or None."""
    section = contents.roles.get(key) or _SECTION_OF.get(key.lower())
    told = section in SETTINGS and key in contents.roles
    if section is None or not (told or children(value) or isinstance(value, Lazy)):
        return None
    if section in SETTINGS and holds_arrays(value):
        return "optimizer" if key.lower() == "opt" and isinstance(value, dict) else None
    return section


def _place(layout: Layout, parts: list[_Part]) -> None:
    named = Counter(part.section for part in parts)
    # Without a part that is called the model, loose arrays and unknown branches are the model.
    loose = not any(named[section] for section in ("model", "rng", "optimizer"))
    taken: set[Path] = set()
    for part in parts:
        if part.section is not None:
            alone = named[part.section] == 1 and not isinstance(part.value, Lazy)
            target: Path = (part.section,) if alone else (part.section, part.name)
        elif type(part.value) in _COUNTS:
            target = ("counters", "source_seen" if part.name == "seen" else part.name)
        elif loose and holds_arrays(part.value):
            target = ("model", part.name)
        elif children(part.value) and part.name not in _RESERVED:
            target = (part.name,)
        else:
            target = ("extra", part.name)
        target = _free(target, part.path, taken)
        taken |= {target[:n] for n in range(1, len(target) + 1)}
        put(layout, target, part.value)
        layout.moves.append(Move(part.path, target, part.around))


def _free(target: Path, source: Path, taken: set[Path]) -> Path:
    """Return a place that nothing has, nor is inside of: another name when there is need.

    The name of the branch around it comes before the part's own; a number after it is last.
    """
    *above, name = target
    texts = [str(name), "_".join(map(str, source))]
    names = chain(texts, (f"{texts[-1]}_{n}" for n in count(2)))
    return next(place for text in names if (place := (*above, text)) not in taken)


def put(layout: Layout, target: Path, value: Any) -> None:
    """Put one part into a layout.

    Raises:
        FormatError: something is there already.
    """
    into = _branch(layout, target)
    if len(target) > 1 and target[0] != "counters":
        into = into.setdefault(target[0], {})
    if target[-1] in into:
        raise FormatError("two parts of the source would go to one place", path=dotted(target))
    into[target[-1]] = value


def _branch(layout: Layout, target: Path) -> dict[Any, Any]:
    if target[0] == "counters":
        return layout.counters
    return layout.settings if target[0] in SETTINGS else layout.state


def holds_arrays(value: Any) -> bool:
    """Tell whether there is an array at or below a node."""
    return any(isinstance(leaf, Lazy | np.ndarray) for _, leaf in walk(value))
