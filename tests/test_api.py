"""The public names, pinned: what is here may only grow before the next major version."""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any

import pytest

import ckptfmt

ROOT_NAMES = {
    "Checkpoint", "PendingSave", "Shard", "Store", "copy", "export", "keep", "load", "open",
    "open_checkpoint", "pack", "save", "unpack",
}  # fmt: skip

STORE = {
    "annotate", "at", "backend", "best", "check", "close", "collect", "delete", "entries",
    "history", "latest", "leftovers", "resolve", "retain", "save", "save_async", "slim", "tag",
    "untag", "url",
}  # fmt: skip
STORE_INTERNAL = {"commit"}  # for code in this package; say so in their docstrings

CHECKPOINT = {
    "architecture", "arrays", "artifacts", "check_environment", "compare", "counters",
    "dropped", "dropped_at", "environment", "fill", "history", "hyperparameters", "id",
    "identity", "lazy", "load", "metrics", "nbytes", "new_bytes", "notes", "number", "parent",
    "preprocessing", "probe", "extract", "check_preprocessing",
    "reused_bytes", "revision", "sections", "tags", "time", "time_us", "tree", "url",
    "verify", "writer",
}  # fmt: skip
CHECKPOINT_INTERNAL = {"choose", "manifest", "reader", "structure"}

ERRORS = {
    "BackendError": "backend",
    "CancelledError": "cancelled",
    "CheckpointError": "checkpoint",
    "ConflictError": "conflict",
    "FormatError": "format",
    "IntegrityError": "integrity",
    "MismatchError": "mismatch",
    "NotFoundError": "not-found",
    "StateError": "state",
    "UnsupportedError": "unsupported",
    "UsageError": "usage",
}

TRAINING = {
    "Description", "Due", "EarlyStopping", "Keep", "Metric", "Parent", "Plan", "Point",
    "Progress", "Sampler", "Segment", "Stop", "Verdict", "agree", "at", "best", "check",
    "describe", "findings", "keep", "ranked", "story", "survivors",
}  # fmt: skip
PROGRESS = {
    "acknowledge", "acknowledged", "advance", "applied", "complete", "declare", "edge",
    "extend", "extensions", "fit_arguments", "fraction", "parent", "passes", "plan", "position",
    "remaining", "restore", "seen", "segments", "skipped", "state", "stream", "total", "units",
    "updates",
    "virtual_epoch", "virtual_epochs",
}  # fmt: skip

PUBLIC_MODULES = (
    "errors", "backends", "format", "tree", "training", "checks", "rng", "group", "loops",
    "testing", "migrate",
)  # fmt: skip


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_the_root_has_these_names() -> None:
    found = {n for n in public(vars(ckptfmt)) if not inspect.ismodule(getattr(ckptfmt, n))}

    assert found == ROOT_NAMES


def test_a_store_has_these_methods() -> None:
    assert public(dir(ckptfmt.Store)) == STORE | STORE_INTERNAL


def test_a_checkpoint_has_these_attributes() -> None:
    assert public(dir(ckptfmt.Checkpoint)) == CHECKPOINT | CHECKPOINT_INTERNAL


def test_a_pending_save_has_these_methods() -> None:
    public_use = {"cancel", "done", "wait"}

    assert public(vars(ckptfmt.PendingSave)) >= public_use


def test_training_has_these_names() -> None:
    training = importlib.import_module("ckptfmt.training")
    found = {n for n in public(vars(training)) if not inspect.ismodule(getattr(training, n))}

    assert found == TRAINING
    assert public(vars(training.Progress)) == PROGRESS


def test_errors_have_these_codes() -> None:
    errors = importlib.import_module("ckptfmt.errors")
    kinds = {
        name: kind.code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }

    assert kinds == ERRORS


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_modules_exist_and_say_what_they_are(name: str) -> None:
    module = importlib.import_module(f"ckptfmt.{name}")

    assert isinstance(module, types.ModuleType)
    assert module.__doc__


@pytest.mark.parametrize(
    "function",
    [
        getattr(owner, name)
        for owner, names in (
            (ckptfmt, ROOT_NAMES - {"Checkpoint", "PendingSave", "Shard", "Store"}),
            (ckptfmt.Store, STORE - {"backend", "url"}),
            (ckptfmt.PendingSave, {"cancel", "done", "wait"}),
        )
        for name in sorted(names)
    ],
    ids=lambda f: f.__qualname__,
)
def test_arguments_after_the_second_are_keyword_only(function: Any) -> None:
    parameters = [p for n, p in inspect.signature(function).parameters.items() if n != "self"]
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    assert len(positional) <= 2
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters)
    assert function.__doc__
