"""A checkpoint back into a model: planned and compared whole, then assigned.

manifest ─► architecture ─► plan ─► report ─► verify + assign ─► files ─► generators
            nothing changed yet     ╰──────── one array at a time ────────╯       ─► probe
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import keras
import numpy as np

import ckptfmt
from ckptfmt.checks import Finding, LoadReport, compare
from ckptfmt.checks.environment import Policy
from ckptfmt.errors import MismatchError, NotFoundError
from ckptfmt_keras import (
    architecture,
    assets,
    capturing,
    generators,
    optimizers,
    proving,
    variables,
)
from ckptfmt_keras import callbacks as states
from ckptfmt_keras.variables import Array, Entry

Row: TypeAlias = tuple[str, Sequence[int]]


@dataclass(kw_only=True)
class Plan:
    """All that a restore will do; nothing has been changed yet."""

    places: dict[str, Any] = field(default_factory=dict)  # stored path → variable
    whole: list[tuple[Any, Any]] = field(default_factory=list)  # variable, stored integers
    stored: dict[str, Row] = field(default_factory=dict)
    wanted: dict[str, Row] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def restore(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    callbacks: Iterable[Any] = (),
    strict: bool = True,
    rng: bool = True,
    optimizer: bool = True,
    replay: proving.When = "auto",
    inputs: proving.Inputs | None = None,
    environment: Policy = "warn",
    differences: Sequence[Finding] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> LoadReport:
    """Continue from a checkpoint: fill a model that was built as the saved one was.

    Everything is compared before a byte of data is read, and verified before a variable is
    touched where storage maps files (local disk). An unbuilt model is built with the shapes of
    the saved one, an unbuilt optimizer is built.

    Args:
        model: Of the same architecture; names of layers may differ.
        callbacks: Those given to `capture`.
        strict: Whether another architecture, a variable without a stored array and a stored
            array without a variable are errors. Other shapes and dtypes always are.
        rng: Whether to continue every random generator.
        optimizer: Whether to restore the optimizer of a compiled model, too.
        replay: Run a stored probe "always", "never" or "auto": if `strict`. A difference is
            told in the report and in the log.
        inputs: How the model's inputs are made here, to be compared with then.
        environment: If it may change results: "off", "warn" (log it), "strict" (refuse it).
        differences: Further findings for the report.
        progress: Called with (phase, done, total bytes).

    Returns:
        What was matched, what came of the probe, and findings: dtype policies, versions,
        callbacks, preprocessing, environment that differ.

    Raises:
        MismatchError: checkpoint and model disagree; it names all places.
        NotFoundError: the checkpoint was not saved by this adapter, lacks a section, or the
            probe is to be run always and there is none.
        UsageError: the model cannot be built, or an argument is none of its values.
        IntegrityError: data is damaged.
        BackendError: storage failed.
        Exception: what the model raises if replay="always"; all is restored by then.
    """
    when = "never" if replay == "auto" and not strict else replay
    proof = proving.begin(checkpoint, when, inputs, environment)
    report = _restored(
        checkpoint,
        model,
        callbacks=list(callbacks),
        strict=strict,
        rng=rng,
        optimizer=optimizer,
        findings=[*differences, *proving.findings(proof)],
        progress=progress,
    )
    return proving.completed(proof, report, checkpoint, model)


def _restored(
    checkpoint: ckptfmt.Checkpoint,
    model: Any,
    *,
    callbacks: list[Any],
    strict: bool,
    rng: bool,
    optimizer: bool,
    findings: list[Finding],
    progress: Callable[[str, int, int], None] | None,
) -> LoadReport:
    saved = architecture.recorded(checkpoint)
    content = checkpoint.tree()
    _build(model, saved)
    plan = Plan(findings=[*findings, *check_architecture(saved, model, strict=strict)])
    entries = variables.weights(model)
    _plan_model(plan, content, {entry.key: entry for entry in entries}, saved)
    _plan_states(plan, content.get("states", {}), model)
    if optimizer and getattr(model, "optimizer", None) is not None:
        _plan_optimizer(plan, content, model, entries, checkpoint)
    files = content.get(capturing.ASSETS, {})
    plan.problems += assets.check(files, model)
    plan.findings += states.differences(content.get("callbacks", {}), callbacks)
    restore_rng = _plan_rng(plan, content, model, checkpoint) if rng else None
    report = compare(plan.stored, plan.wanted, findings=plan.findings)
    _raise(plan, report, checkpoint, strict=strict)
    fill(plan, checkpoint, progress, resumes=True)
    assets.restore(files, model)
    assets.finish(model)
    states.restore(loaded(content.get("callbacks", {})), callbacks)
    if restore_rng is not None:
        restore_rng()
    return report


def restore_metrics(checkpoint: ckptfmt.Checkpoint, model: Any) -> bool:
    """Fill the accumulated metrics of an epoch that goes on; False while they are unbuilt.

    Raises:
        MismatchError: the model is compiled with other metrics.
    """
    stored = loaded(checkpoint.tree().get("metrics", {}))
    here = capturing.metric_variables(model)
    if len(here) < len(stored):
        return False
    report = compare(
        {f"metrics/{key}": row(array) for key, array in stored.items()},
        {f"metrics/{key}": variables.described(variable) for key, variable in here.items()},
    )
    report.raise_for_mismatch(checkpoint=f"{checkpoint.number:010d}")
    for key, array in stored.items():
        here[key].assign(array)
    return True


def check_architecture(
    saved: Mapping[str, Any], model: Any, *, strict: bool = True
) -> list[Finding]:
    """Compare what was saved with a model, from the manifest alone; return findings.

    Raises:
        MismatchError: another architecture, of the same Keras, when `strict`.
    """
    now = architecture.describe(model)
    findings = [
        _finding(name, saved.get(name), now[name], "warning",
                 "weights are the same, what is computed with them may be rounded otherwise")
        for name in ("floatx", "dtype_policy", "policies")
        if saved.get(name) != now[name]
    ]  # fmt: skip
    if saved["sha256"] is None or now["sha256"] is None or saved["sha256"] == now["sha256"]:
        return findings
    rows = architecture.parted(
        architecture.essence(saved["config"]), architecture.essence(now["config"])
    )
    other_keras = saved["keras"] != now["keras"]
    if strict and not other_keras:
        shown = [f"{path} was {a!r} and is {b!r} here" for path, a, b in rows[:6]]
        more = [f"... and {len(rows) - 6} more"] if len(rows) > 6 else []
        raise MismatchError(
            "the model is built otherwise than the one that was saved: "
            + "; ".join(shown + more),
            differences=len(rows),
        )
    return findings + [
        _finding(path, a, b, "info" if other_keras else "warning",
                 "the model is built otherwise than the one that was saved")
        for path, a, b in rows
    ]  # fmt: skip


def _finding(name: str, saved: object, now: object, severity: Any, reason: str) -> Finding:
    return Finding(
        severity=severity, name=f"architecture/{name}", saved=saved, now=now, reason=reason
    )


def _build(model: Any, saved: Mapping[str, Any]) -> None:
    config = saved.get("config") or {}
    if not model.built and config.get("build_config"):
        model.build_from_config(config["build_config"])
    variables.check_built(model)


def _plan_model(
    plan: Plan, content: Mapping[str, Any], here: Mapping[str, Entry], saved: Mapping[str, Any]
) -> None:
    labels = {key: entry.label for key, entry in here.items()}
    for key, array in content["model"].items():
        name = f"model/{key} ({labels.get(key) or saved['labels'].get(key)})"
        plan.stored[name] = row(array)
        if key in here:
            plan.places[f"model/{key}"] = here[key].variable
    for key, entry in here.items():
        plan.wanted[f"model/{key} ({entry.label})"] = variables.described(entry.variable)


def _plan_states(plan: Plan, stored: Mapping[str, Any], model: Any) -> None:
    for key, array in stored.items():
        plan.stored[f"states/{key}"] = row(array)
    for key, variable in architecture.carried(model).items():
        plan.wanted[f"states/{key}"] = variables.described(variable)
        if key in stored:
            plan.places[f"states/{key}"] = variable


def _plan_optimizer(
    plan: Plan,
    content: Mapping[str, Any],
    model: Any,
    entries: Sequence[Entry],
    checkpoint: ckptfmt.Checkpoint,
) -> None:
    optimizers.build(model)
    stored = dict(architecture.flat(_section(content, "optimizer", checkpoint), "optimizer"))
    for below, variable in optimizers.located(model.optimizer, entries).items():
        path = f"optimizer/{below}"
        if not optimizers.is_integer(variable):
            plan.wanted[path] = variables.described(variable)
            if path in stored:
                plan.places[path] = variable
        elif isinstance(stored.get(path), int):
            plan.whole.append((variable, stored.pop(path)))
        else:
            plan.problems.append(f"{path} is missing")
    for path, value in stored.items():
        if hasattr(value, "dtype"):
            plan.stored[path] = row(value)
        else:
            plan.problems.append(f"{path} is in the checkpoint, the optimizer here has none")


def _plan_rng(
    plan: Plan, content: Mapping[str, Any], model: Any, checkpoint: ckptfmt.Checkpoint
) -> Callable[[], None]:
    stored = loaded(_section(content, capturing.RNG, checkpoint))
    apply, findings = generators.plan(stored, model, capturing.RNG)
    plan.findings += findings
    return apply


def _section(content: Mapping[str, Any], name: str, checkpoint: ckptfmt.Checkpoint) -> Any:
    if name not in content:
        raise NotFoundError(
            f"the checkpoint has no section {name!r}: restore with {name}=False",
            checkpoint=checkpoint.number,
            present=sorted(content),
        )
    return content[name]


def row(array: Any) -> Row:
    """Return dtype and shape of a stored array; its data is not read."""
    return str(array.dtype), tuple(array.shape)


def _raise(
    plan: Plan, report: LoadReport, checkpoint: ckptfmt.Checkpoint, *, strict: bool
) -> None:
    if plan.problems and strict:
        raise MismatchError("; ".join(plan.problems), checkpoint=checkpoint.number)
    if strict or report.shape_mismatches or report.dtype_mismatches:
        report.raise_for_mismatch(checkpoint=f"{checkpoint.number:010d}")


def fill(
    plan: Plan,
    checkpoint: ckptfmt.Checkpoint,
    progress: Callable[[str, int, int], None] | None,
    *,
    resumes: bool,
) -> None:
    """Read, verify and assign what was planned."""
    assigned = _Assigned()
    places: dict[str, Array | Callable[[Array], None]] = {}
    for path, variable in plan.places.items():
        memory = variables.memory_of(variable)
        places[path] = functools.partial(assigned.add, variable) if memory is None else memory
    checkpoint.fill(places, resumes=resumes, progress=progress)
    for variable, value in plan.whole:
        variables.assign_integers(variable, value)


class _Assigned:
    """Assigns arrays to variables whose memory nobody may write to, as those of JAX.

    What each array replaces is freed, but the allocator of the C library keeps hundreds of
    megabytes of it, in pieces: it is asked to give them back every now and then.
    """

    _EVERY = 1 << 25  # bytes

    def __init__(self) -> None:
        self._since = 0

    def add(self, variable: Any, array: Array) -> None:
        """Assign one array."""
        variable.assign(keras.ops.convert_to_tensor(array, dtype=variable.dtype))
        self._since += array.nbytes
        if self._since >= self._EVERY:
            self._since = 0
            give_back()


def give_back() -> None:
    """Return memory that is free to the system, where the C library is glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def loaded(value: Any) -> Any:
    """Return a tree with lazy arrays read into memory."""
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, Mapping):
        return {key: loaded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(loaded(child) for child in value)
    return value
