"""Do two accounts of a run agree? A disagreement is an error or a finding, never a guess."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ckptfmt.errors import MismatchError, UsageError
from ckptfmt.training.progress import Progress
from ckptfmt.training.record import KEY

_DECLARE = "declare it: progress.declare({name}={found!r})"
_EXTEND = "move the stop point: progress.extend(total={found!r})"
_REGRID = (
    "divide the rest anew: progress.extend(total=..., virtual_epochs={found!r}, regrid=True)"
)
_WAYS = {
    "total": _EXTEND,
    "virtual_epochs": _REGRID,
    "stream": "restore the progress of this stream, or begin one for it",
}


def check(
    progress: Progress,
    *,
    total: int | None = None,
    virtual_epochs: int | None = None,
    dataset_size: int | None = None,
    dataset: str | None = None,
    global_batch: int | None = None,
    world: int | None = None,
    accumulation: int | None = None,
    stream: str | None = None,
) -> None:
    """Check that a run that goes on is set up as its progress says; None is not checked.

    Raises:
        MismatchError: something changed that was not declared; names all of it, and for each
            the call that declares it.
    """
    now = progress.segments[-1]
    rows = (
        ("total", progress.total, total),
        ("virtual_epochs", progress.virtual_epochs, virtual_epochs),
        ("dataset_size", now.dataset_size, dataset_size),
        ("dataset", now.dataset, dataset),
        ("global_batch", now.global_batch, global_batch),
        ("world", now.world, world),
        ("accumulation", now.accumulation, accumulation),
        ("stream", progress.stream, stream),
    )
    wrong = [
        f"{name} was {had!r} and is {found!r}: "
        + _WAYS.get(name, _DECLARE).format(name=name, found=found)
        for name, had, found in rows
        if found is not None and found != had
    ]
    if wrong:
        raise MismatchError(
            f"the run is set up in another way than before; {'; '.join(wrong)}",
            seen=progress.seen,
        )


def agree(states: Iterable[Mapping[str, Any]]) -> None:
    """Check that all ranks of a synchronous run say the same of its progress.

    Args:
        states: What `Progress.state` returned on each rank, by rank.

    Raises:
        MismatchError: two disagree; names the first field, and what each says.
        UsageError: one of them is no such state.
    """
    every = [_flat(state) for state in states]
    for rank, other in enumerate(every[1:], start=1):
        for name in dict.fromkeys([*every[0], *other]):
            if every[0].get(name) != other.get(name):
                raise MismatchError(
                    "ranks disagree about the progress of the run: count the global batch on"
                    " each of them, and declare changes on all",
                    field=name,
                    **{"rank_0": every[0].get(name), f"rank_{rank}": other.get(name)},
                )


def _flat(counters: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(counters, Mapping) or not isinstance(counters.get(KEY, {}), Mapping):
        raise UsageError("expected what Progress.state returned on each rank", found=counters)
    inner = {f"{KEY}/{name}": value for name, value in counters.get(KEY, {}).items()}
    return {name: value for name, value in counters.items() if name != KEY} | inner


def findings(
    progress: Progress, *, updates: int | None = None, loader_seen: int | None = None
) -> list[str]:
    """Return in words where other counts disagree with the progress; it stays as it is.

    Args:
        updates: The optimizer's own count of updates, such as Keras' `iterations`. It may have
            wrapped at 2**31, or be of a restored optimizer.
        loader_seen: Examples that the data loader says it handed out. A loader that looked
            ahead, or that was exhausted and began again, says something else.
    """
    found = []
    if updates is not None and updates != progress.updates:
        found.append(
            f"the optimizer counts {updates:,} updates, the progress {progress.updates:,}:"
            " a schedule in steps is not where the examples are"
        )
    if loader_seen is not None and loader_seen != progress.seen:
        found.append(
            f"the loader counts {loader_seen:,} examples, the progress {progress.seen:,}:"
            " data was handed out and not trained on, or trained on twice"
        )
    return found
