"""Optimizers out of files of torch, which number their parameters: named in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from ckptfmt.errors import MismatchError
from ckptfmt.tree import join
from ckptfmt_torch import values

REASON: Final = (
    "comes from a file of torch that numbers parameters: taken in the order in which this"
    " optimizer was given them"
)
# State that has the shape of its parameter.
MOMENTS: Final = frozenset({
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "sum", "prev", "step_size", "ax",
})  # fmt: skip

# What torch.optim's classes keep for a parameter. A file names no class, but these tell it.
KEPT: Final[dict[type[torch.optim.Optimizer], frozenset[str]]] = {
    kind: frozenset(names.split())
    for kind, names in {
        torch.optim.SGD: "momentum_buffer",
        torch.optim.Adam: "step exp_avg exp_avg_sq max_exp_avg_sq",
        torch.optim.AdamW: "step exp_avg exp_avg_sq max_exp_avg_sq",
        torch.optim.NAdam: "step mu_product exp_avg exp_avg_sq",
        torch.optim.RAdam: "step exp_avg exp_avg_sq",
        torch.optim.Adamax: "step exp_avg exp_inf",
        torch.optim.Adagrad: "step sum",
        torch.optim.Adadelta: "step square_avg acc_delta",
        torch.optim.RMSprop: "step square_avg momentum_buffer grad_avg",
        torch.optim.Rprop: "step prev step_size",
        torch.optim.ASGD: "step eta mu ax",
    }.items()
}


def by_name(
    optimizer: torch.optim.Optimizer,
    stored: Mapping[str, Any],
    name_of: Callable[[torch.Tensor], str | None],
    path: str,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return groups and state by name, and the number that each name had.

    The n-th number is the n-th parameter this optimizer was given, as its own load_state_dict
    takes them; unlike there, moments have to have the shape of their parameter.

    Args:
        name_of: Name that a parameter is stored under; None for one that is not restored.

    Raises:
        MismatchError: not as many groups or parameters, a moment of another shape, or state
            that this class of optimizer does not keep.
    """
    live = [[name_of(p) for p in group["params"]] for group in optimizer.param_groups]
    saved = [group["params"] for group in stored["param_groups"]]
    counts = [len(members) for members in live]
    if counts != [len(numbers) for numbers in saved] or any(None in names for names in live):
        raise MismatchError(
            "the file numbers its parameters: build the optimizer over all of them, in the"
            " groups and the order of the run that wrote it, and restore all of the model",
            path=path, expected=counts, found=[len(numbers) for numbers in saved],
        )  # fmt: skip
    groups, state, keys = [], {}, {}
    for group, own, names in zip(
        stored["param_groups"], optimizer.param_groups, live, strict=True
    ):
        groups.append({**group, "params": names})
        for number, parameter, name in zip(group["params"], own["params"], names, strict=True):
            kept = stored["state"].get(number)
            keys[str(name)] = number
            if kept:
                _check_class(optimizer, kept, join(f"{path}/state", number))
                _check(kept, parameter, join(f"{path}/state", number), str(name))
                state[str(name)] = kept
    return {"groups": groups, "state": state}, keys


def _check_class(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any], path: str) -> None:
    known = KEPT.get(type(optimizer))
    if known is not None and not known.issuperset(kept):
        raise MismatchError(
            "the file has the state of another optimizer: build that one, or restore without"
            " `optimizer=`",
            path=path, expected=sorted(known), found=sorted(kept),
        )  # fmt: skip


def _check(kept: Mapping[str, Any], parameter: torch.Tensor, path: str, name: str) -> None:
    for key in sorted(kept.keys() & MOMENTS):
        value = kept[key]
        if values.is_array(value) and value.shape != tuple(parameter.shape):
            raise MismatchError(
                "the parameters of this optimizer are in another order, or others",
                path=join(path, key), name=name,
                expected=tuple(parameter.shape), found=value.shape,
            )  # fmt: skip
