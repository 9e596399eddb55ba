"""The public API as a type checker sees it. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import numpy as np

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.checks.coverage import LoadReport
from ckptfmt.group import SocketGroup
from ckptfmt.training import EarlyStopping, Point, Progress, Verdict, describe

rules = ckptfmt.keep(last=3, every_examples=1_000_000)
store = ckptfmt.open("runs/a", keep=ckptfmt.keep(last=3, best=("val_loss", "min", 2)))
assert_type(store, ckptfmt.Store)
assert_type(ckptfmt.open(MemoryBackend()), ckptfmt.Store)

state = {"model": {"w": np.zeros(3)}}
saved = store.save(state, counters={"seen": 100}, metrics={"val_loss": 0.3}, tags=["first"])
assert_type(saved, ckptfmt.Checkpoint)
assert_type(store.save_async(state), ckptfmt.PendingSave)
assert_type(store.save(state, frozen="model/**", verify_frozen=True), ckptfmt.Checkpoint)
assert_type(store.save_async(state, frozen=["model/fc1"]), ckptfmt.PendingSave)
assert_type(store.save_async(state).wait(timeout_seconds=3.0), ckptfmt.Checkpoint)
assert_type(store.save_async(state).cancel(), bool)


part = ckptfmt.Shard(np.zeros(3), start=(0,), global_shape=(6,))
with SocketGroup(0, 1) as group:
    assert_type(store.save({"w": part}, group=group, timeout_seconds=9.0), ckptfmt.Checkpoint)
    assert_type(store.save_async({"w": part}, group=group), ckptfmt.PendingSave)

assert_type(store.latest(), ckptfmt.Checkpoint)
assert_type(store.best("val_loss", mode="min"), ckptfmt.Checkpoint)
assert_type(store.at(examples=1_000_000), ckptfmt.Checkpoint)
assert_type(store.best("val_loss", lineage="all"), ckptfmt.Checkpoint)
assert_type(store.history(), list[Point])
assert_type(EarlyStopping(monitor="val_loss", patience=1000).judge(store.history()), Verdict)
assert_type(describe(store.history()).kind, str)
assert_type(store[12], ckptfmt.Checkpoint)
assert_type(list(store), list[ckptfmt.Checkpoint])
assert_type(12 in store, bool)
assert_type(store.slim(3, drop=["optimizer"]).slimmed, tuple[int, ...])
assert_type(store.retain(rules, dry_run=True).numbers, tuple[int, ...])

assert_type(saved.load(select="model/**", verify=True), dict[str, Any])
assert_type(saved.compare(state), LoadReport)
assert_type(saved.counters, Mapping[str, Any])
assert_type(ckptfmt.load("runs/a@best:val_loss"), dict[str, Any])
assert_type(ckptfmt.save(state, "x.safetensors", overwrite=True), ckptfmt.Checkpoint)

progress = Progress(dataset_size=1_000_000, stop_point=14.3, virtual_epochs=15)
assert_type(progress.advance(128).checkpoint, bool)
assert_type(progress.edge(3), int)
assert_type(progress.plan(100).steps, int)
assert_type(Progress.restore(saved.counters), Progress)
store.save(state, counters=progress.state())

assert_type(ckptfmt.open("/fast/a", mirror="s3://bucket/a"), ckptfmt.Store)
assert_type(ckptfmt.copy("runs/a@12", store, dry_run=True).numbers, tuple[int, ...])

store.save(state, {"positional": 1})  # type: ignore[call-arg]
store.best()  # type: ignore[call-arg]
