"""A checkpoint back into live objects: planned and checked whole, then filled in place.

manifest ─► plan per object ─► report ─► small state ─► verify + fill tensors ─► settings, RNG
            no data read so far          ╰─ read, fits ╰─ in their own memory, on their device
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

import ckptfmt
from ckptfmt.checks import Finding, LoadReport, compare
from ckptfmt.checks.environment import Policy
from ckptfmt.errors import MismatchError, NotFoundError, UsageError
from ckptfmt.tree import join
from ckptfmt_torch import (
    building,
    capturing,
    generators,
    modules,
    naming,
    objects,
    optimizers,
    proving,
    ranks,
    telling,
    tensors,
    values,
)

Casts: TypeAlias = Mapping[torch.dtype, torch.dtype]
Place: TypeAlias = np.ndarray[Any, Any] | Callable[[np.ndarray[Any, Any]], None]


@dataclass(kw_only=True)
class _Plan:
    """All that a restore will do; nothing has been changed yet."""

    places: dict[str, torch.Tensor] = field(default_factory=dict)  # stored path → where to
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)  # stored path → as stored
    extras: list[tuple[nn.Module, Any]] = field(default_factory=list)
    optimizers: list[optimizers.Plan] = field(default_factory=list)
    stateful: list[tuple[objects.Stateful, dict[str, Any]]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stored: dict[str, tuple[str, Sequence[int]]] = field(default_factory=dict)
    wanted: dict[str, tuple[str, Sequence[int]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    errors: list[MismatchError] = field(default_factory=list)
    reads: list[Callable[[], None]] = field(default_factory=list)  # plan what only data tells
    origins: dict[str, str] = field(default_factory=dict)  # of parameters: name → stored name
    partly: bool = False  # only what was selected


def restore(
    checkpoint: ckptfmt.Checkpoint,
    *,
    strict: bool = True,
    select: str | Sequence[str] | None = None,
    rename: naming.Rename | None = None,
    map_dtype: Casts | None = None,
    generators: Mapping[str, generators.Generator] | None = None,
    rng: bool = True,
    buffers: str = "persistent",
    config: Any = None,
    differences: Sequence[Finding] = (),
    replay: proving.When = "auto",
    inputs: proving.Inputs | None = None,
    environment: Policy = "warn",
    progress: Callable[[str, int, int], None] | None = None,
    **run: Any,
) -> LoadReport:
    """Continue from a checkpoint: fill the objects in place, the generators last.

    All is compared before data is read, and verified before a tensor is touched; after an error
    all objects are as they were, tensors keep identity and device. Partly filled they are after
    Ctrl-C meanwhile, and when damage is found on remote storage, which says so.

    Args:
        strict: Whether a tensor without a stored array, or the reverse, is an error.
        select: Globs over stored names of the model, such as "backbone.*" or "backbone/**":
            only these are restored; what they do not reach stays as it is. For fine-tuning.
        rename: From stored names of the model to names here: a dict of names or of leading
            parts of names, or a function.
        map_dtype, differences: Casts that are allowed, stored dtype to dtype here; findings.
        config: As given to `save`, to be compared.
        generators, rng, buffers, run: As for `capture`.
        replay: Run a stored probe "always" (raising what the model raises), "never" or "auto":
            if one process restores all of it, uncast; what goes wrong is then a finding.
        inputs: How the model's inputs are made here; what differs is a finding.
        environment: If it may change results: "off", "warn" (log it), "strict" (refuse it).
        progress: Called with (phase, done, total bytes).

    Returns:
        What was matched; findings: what differs, or was not used; why predictions differ.

    Raises:
        MismatchError, NotFoundError: checkpoint and objects disagree; `select` matches nothing.
        IntegrityError, BackendError: data is damaged, or storage failed.
    """
    partly = bool(not strict or select or rename or map_dtype)
    when: proving.When = "never" if replay == "auto" and partly else replay
    proof = proving.begin(checkpoint, when, inputs, environment, run.get("model"))
    other = [] if partly else building.differences(checkpoint, run.get("model"), config)
    names, told = naming.Names.of(select, rename), [*differences, *proof.findings(), *other]
    plan, restore_rng, report = _planned(
        objects.collect(run, generators), checkpoint, names, map_dtype or {}, told,
        buffers=buffers, strict=strict, rng=rng,
    )  # fmt: skip
    _apply(plan, checkpoint, progress, resumes=select is None)
    try:
        return proving.completed(proof, report, checkpoint, run.get("model"), plan.places)
    finally:
        restore_rng()


def _planned(
    found: objects.Objects,
    checkpoint: ckptfmt.Checkpoint,
    names: naming.Names,
    casts: Casts,
    findings: list[Finding],
    *,
    buffers: str,
    strict: bool,
    rng: bool,
) -> tuple[_Plan, Callable[[], None], LoadReport]:
    """Return what to do, what restores the generators, and the report."""
    content = checkpoint.tree()
    plan = _Plan(findings=findings, partly=bool(names.patterns))
    _plan_modules(plan, found, content, checkpoint, names, buffers=buffers, strict=strict)
    _plan_others(plan, found, content, checkpoint)
    saved = _saved_generators(content, checkpoint) if rng else {}
    _checked(plan, casts, checkpoint, strict=strict)  # before any data is read
    for read in plan.reads:
        with _noted(plan):
            read()
    restore_rng = _plan_rng(plan, saved, found)
    return plan, restore_rng, _checked(plan, casts, checkpoint, strict=strict)


def _plan_modules(
    plan: _Plan,
    found: objects.Objects,
    content: Mapping[str, Any],
    checkpoint: ckptfmt.Checkpoint,
    names: naming.Names,
    *,
    buffers: str,
    strict: bool,
) -> None:
    for path, module in found.modules.items():
        stored = objects.at(content, path, checkpoint)
        chosen = names if path.split("/")[0] == "model" else naming.Names.of()
        _plan_module(plan, module, stored, path, chosen, buffers=buffers, strict=strict)


def _plan_module(
    plan: _Plan,
    module: nn.Module,
    stored: Any,
    path: str,
    names: naming.Names,
    *,
    buffers: str,
    strict: bool,
) -> None:
    live = modules.named_tensors(module, buffers=buffers)
    for name, tensor in live.items():
        tensors.check(tensor, join(path, name))
    extras = modules.named_extras(module)
    chosen = {names.here(name): name for name in stored if names.wants(name)}
    if names.patterns and not chosen:
        raise NotFoundError("nothing in the model matches", select=names.patterns)
    if len(chosen) < sum(names.wants(name) for name in stored):
        raise UsageError("rename gives two stored arrays one name", section=path)
    before = objects.prefix(path)
    for here, name in chosen.items():
        value = stored[name]
        if here in extras:
            read = functools.partial(_read_extra, plan, extras[here], value, join(path, name))
            plan.reads.append(read)
            continue
        below = join(path, here)
        plan.origins[before + here] = before + name
        if not values.is_array(value):
            plan.problems.append(f"{below} is extra state that the module here does not take")
            continue
        plan.stored[below] = str(value.dtype), value.shape
        if here in live:
            plan.places[join(path, name)] = live[here]
            plan.dtypes[join(path, name)] = value.dtype
            if tensors.is_expanded(live[here]) and value.shape == live[here].shape:
                rows = functools.partial(_check_rows, plan, live[here], value, below)
                plan.reads.append(rows)
    for name, tensor in live.items():
        if not names.patterns or name in chosen:
            plan.wanted[join(path, name)] = str(tensors.numpy_dtype(tensor)), tensor.shape
    plan.problems += [
        f"{join(path, name)} (extra state) is missing" for name in extras.keys() - chosen.keys()
        if strict and not names.patterns
    ]  # fmt: skip


def _read_extra(plan: _Plan, owner: nn.Module, stored: Any, path: str) -> None:
    now = owner.get_extra_state()
    plan.extras.append((owner, values.like(values.loaded(stored), now, path)))


def _check_rows(plan: _Plan, live: torch.Tensor, stored: Any, path: str) -> None:
    """Note it if what is stored for an expanded tensor has rows that differ."""
    rows = np.asarray(stored)
    one = rows[tuple(slice(n) for n in tensors.unexpanded(live).shape)]
    if np.broadcast_to(one, rows.shape).tobytes() != rows.tobytes():
        plan.problems.append(
            f"{path} is expanded here, one row in memory for all, and the stored rows differ:"
            " give it memory of its own with clone()"
        )


def _plan_others(
    plan: _Plan,
    found: objects.Objects,
    content: Mapping[str, Any],
    checkpoint: ckptfmt.Checkpoint,
) -> None:
    for path, optimizer in found.optimizers.items():
        _plan_optimizer(
            plan, optimizer, objects.at(content, path, checkpoint), found.names, path
        )
    for path, value in found.stateful.items():
        stored = objects.at(content, path, checkpoint)
        if isinstance(value, torch.amp.GradScaler) and bool(stored) != value.is_enabled():
            plan.findings.append(telling.other_scaler(path, was=bool(stored)))
            continue
        plan.reads.append(functools.partial(_read_state, plan, value, stored, path))
    plan.findings += map(telling.positionless, found.positionless)


def _read_state(plan: _Plan, value: objects.Stateful, stored: Any, path: str) -> None:
    state = values.like(values.loaded(stored), value.state_dict(), path)
    plan.stateful.append((value, state))


def _plan_optimizer(
    plan: _Plan,
    optimizer: torch.optim.Optimizer,
    stored: Any,
    names: objects.Names,
    path: str,
) -> None:
    with _noted(plan):
        part = optimizers.plan(
            optimizer, stored, names, path, origins=plan.origins, partly=plan.partly
        )
        plan.optimizers.append(part)
        plan.places |= part.places
        plan.findings += part.findings
        plan.problems += part.problems
        plan.reads += part.reads


@contextlib.contextmanager
def _noted(plan: _Plan) -> Iterator[None]:
    """Note what does not fit, to name it beside all else that does not."""
    try:
        yield
    except MismatchError as error:
        plan.errors.append(error)


def _saved_generators(
    content: Mapping[str, Any], checkpoint: ckptfmt.Checkpoint
) -> dict[int, Any]:
    """Return the state of the generators of each rank, none of it read.

    Raises:
        NotFoundError: there is none.
    """
    saved = ranks.saved_generators(content)
    if 0 not in saved:
        way = "it has no generators, as one that was migrated; restore with rng=False"
        objects.at(content, capturing.RNG, checkpoint, way)  # raises: there is none
    return saved


def _plan_rng(
    plan: _Plan, saved: Mapping[int, Any], found: objects.Objects
) -> Callable[[], None]:
    rank, world = ranks.rank_and_world()
    if not saved:  # they were not asked for
        return _nothing
    if len(saved) != world:
        plan.findings.append(telling.other_world(len(saved), world))
    with _noted(plan):
        if rank not in saved:
            seed = ranks.seed_of(values.loaded(saved[0]), rank)
            return functools.partial(ranks.seed_all, seed)
        apply, findings = generators.plan(
            values.loaded(saved[rank]), found.generators, f"{capturing.RNG} of rank {rank}"
        )
        plan.findings += findings
        return apply
    return _nothing


def _report(plan: _Plan, casts: Casts) -> LoadReport:
    allowed = {(str(_array_dtype(a)), str(_array_dtype(b))) for a, b in casts.items()}
    stored = {
        path: (
            plan.wanted[path][0]
            if path in plan.wanted and (dtype, plan.wanted[path][0]) in allowed
            else dtype,
            shape,
        )
        for path, (dtype, shape) in plan.stored.items()
    }
    return compare(stored, plan.wanted, findings=plan.findings)


def _array_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return tensors.numpy_dtype(torch.empty((), dtype=dtype, device="cpu"))


def _nothing() -> None:
    """Restore no generator."""


def _checked(
    plan: _Plan, casts: Casts, checkpoint: ckptfmt.Checkpoint, *, strict: bool
) -> LoadReport:
    report = _report(plan, casts)
    errors = list(plan.errors)
    if plan.problems:
        errors.append(MismatchError("; ".join(plan.problems), checkpoint=checkpoint.number))
    try:
        if strict or report.shape_mismatches or report.dtype_mismatches:
            report.raise_for_mismatch(checkpoint=f"{checkpoint.number:010d}")
    except MismatchError as error:
        errors.append(error)
    if len(errors) > 1:
        raise MismatchError("; ".join(error.message for error in errors))
    if errors:
        raise errors[0]
    return report


def _apply(
    plan: _Plan,
    checkpoint: ckptfmt.Checkpoint,
    progress: Callable[[str, int, int], None] | None,
    *,
    resumes: bool,
) -> None:
    with contextlib.ExitStack() as undo:  # each is undone, even when another fails at it
        for value, _ in plan.stateful:
            undo.callback(value.load_state_dict, copy.deepcopy(value.state_dict()))
        for owner, _ in plan.extras:
            undo.callback(owner.set_extra_state, copy.deepcopy(owner.get_extra_state()))
        for value, state in plan.stateful:
            value.load_state_dict(state)
        for owner, state in plan.extras:
            owner.set_extra_state(state)
        checkpoint.fill(_places(plan), resumes=resumes, progress=progress)
        undo.pop_all()
    for part in plan.optimizers:
        part.apply()


def _places(plan: _Plan) -> dict[str, Place]:
    """Return where each stored array goes: a tensor's own memory, or a function."""
    places: dict[str, Place] = {}
    for path, tensor in plan.places.items():
        same = plan.dtypes.get(path, tensors.numpy_dtype(tensor)) == tensors.numpy_dtype(tensor)
        direct = same and tensors.is_in_memory(tensor) and not tensors.is_expanded(tensor)
        places[path] = tensors.view(tensor, path) if direct else functools.partial(_put, tensor)
    return places


def _put(tensor: torch.Tensor, array: np.ndarray[Any, Any]) -> None:
    own = tensors.unexpanded(tensor.detach())
    with torch.no_grad():
        own.copy_(tensors.tensor_of(array)[tuple(slice(n) for n in own.shape)])
