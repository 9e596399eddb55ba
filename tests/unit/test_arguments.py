"""A wrong argument is a `UsageError` that names it, wherever it is given."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import NotFoundError, StateError, UsageError
from ckptfmt.group import Single
from ckptfmt.options import Sources

STATE = {"model": {"w": np.zeros(3)}, "optimizer": {"m": np.zeros(3)}, "empty": {}}


def store() -> ckptfmt.Store:
    return ckptfmt.open(MemoryBackend())


def checkpoint() -> ckptfmt.Checkpoint:
    return store().save(STATE)


WRONG: dict[str, Callable[[Any], object]] = {
    "url": lambda: ckptfmt.open(5),  # type: ignore[arg-type]
    "url of bytes": lambda: ckptfmt.open(b"runs"),  # type: ignore[arg-type]
    "url of nothing": lambda: ckptfmt.open(None),  # type: ignore[arg-type]
    "url with NUL": lambda: ckptfmt.open("a\0b"),
    "keep": lambda: ckptfmt.open("a", keep=5),  # type: ignore[arg-type]
    "mirror": lambda: ckptfmt.open("a", mirror=5),  # type: ignore[arg-type]
    "cache": lambda: ckptfmt.open("a", cache=5),  # type: ignore[arg-type]
    "threads": lambda: ckptfmt.open("a", threads="a"),  # type: ignore[arg-type]
    "storage_options": lambda: ckptfmt.open("a", storage_options=5),  # type: ignore[arg-type]
    "counters": lambda: store().save(STATE, counters=5),  # type: ignore[arg-type]
    "metrics": lambda: store().save(STATE, metrics=[1]),  # type: ignore[arg-type]
    "artifacts": lambda: store().save(STATE, artifacts=5),  # type: ignore[arg-type]
    "tags": lambda: store().save(STATE, tags=5),  # type: ignore[arg-type]
    "parent": lambda: store().save(STATE, parent=5),  # type: ignore[arg-type]
    "select": lambda: checkpoint().load(select=5),  # type: ignore[arg-type]
    "select of bytes": lambda: checkpoint().load(select=b"x"),  # type: ignore[arg-type]
    "select of numbers": lambda: checkpoint().load(select=[5]),  # type: ignore[list-item]
    "rename": lambda: checkpoint().load(rename=5),  # type: ignore[arg-type]
    "folder": lambda: checkpoint().extract(None),  # type: ignore[arg-type]
    "names": lambda: checkpoint().extract("a", names=5),  # type: ignore[arg-type]
    "policy": lambda: checkpoint().check_environment(3),  # type: ignore[arg-type]
    "extra": lambda: checkpoint().check_environment(extra=3),  # type: ignore[arg-type]
    "artifacts to compare": lambda: checkpoint().check_preprocessing(artifacts=5),  # type: ignore[arg-type]
    "fields": lambda: store().annotate(1, "note"),  # type: ignore[arg-type]
    "path": lambda: checkpoint()[3],  # type: ignore[index]
    "number": lambda: store()["1"],  # type: ignore[index]
    "number that is true": lambda: store()[True],
    "older_than_seconds": lambda: store().collect(older_than_seconds="7d"),  # type: ignore[arg-type]
    "older_than_seconds below 0": lambda: store().collect(older_than_seconds=-1),
    "older_than_seconds, not one": lambda: store().collect(older_than_seconds=float("nan")),
    "group": lambda: store().save(STATE, group=3),  # type: ignore[arg-type]
    "group that is a class": lambda: store().save(STATE, group=Single),  # type: ignore[arg-type]
    "numbers to copy": lambda: ckptfmt.copy(store(), store(), numbers=[True]),
    "threads of a copy": lambda: ckptfmt.copy(store(), store(), threads=0),
    "address": lambda: store().resolve(5),  # type: ignore[arg-type]
    "address to load": lambda: ckptfmt.load(5),  # type: ignore[arg-type]
    "url to save to": lambda: ckptfmt.save(STATE, 5),  # type: ignore[arg-type]
    "url to pack to": lambda: ckptfmt.pack(checkpoint(), 5),  # type: ignore[arg-type]
    "url to export to": lambda: ckptfmt.export(checkpoint(), 5),  # type: ignore[arg-type]
    "checkpoint to pack": lambda: ckptfmt.pack(5, "a"),  # type: ignore[arg-type]
    "checkpoint to export": lambda: ckptfmt.export(5, "a"),  # type: ignore[arg-type]
    "bundle": lambda: ckptfmt.unpack(5, store()),  # type: ignore[arg-type]
    "store to unpack into": lambda: ckptfmt.unpack(checkpoint(), 5),  # type: ignore[arg-type]
    "source": lambda: ckptfmt.copy(5, "a"),  # type: ignore[arg-type]
    "target": lambda: ckptfmt.copy(store(), 5),  # type: ignore[arg-type]
    "cache_nbytes": lambda: ckptfmt.open("a", cache="b", cache_nbytes="1"),  # type: ignore[arg-type]
    "progress": lambda: store().save(STATE, progress=5),  # type: ignore[arg-type]
    "progress of a load": lambda: checkpoint().load(progress=5),  # type: ignore[arg-type]
    "progress of verify": lambda: checkpoint().verify(progress=5),  # type: ignore[arg-type]
    "seen": lambda: checkpoint().verify(seen=5),  # type: ignore[arg-type]
    "rename to a number": lambda: checkpoint().load(rename={"model": 5}),  # type: ignore[dict-item]
    "numbers": lambda: store().delete("1"),  # type: ignore[arg-type]
    "numbers, one that is true": lambda: store().delete(True),
    "numbers, one of them true": lambda: store().delete([True]),
    "numbers with a fraction": lambda: store().delete(1.0),  # type: ignore[arg-type]
    "numbers to slim": lambda: store().slim("1", drop="a"),  # type: ignore[arg-type]
    "progress of a copy": lambda: ckptfmt.copy(store(), store(), progress=5),  # type: ignore[arg-type]
    "drop": lambda: store().slim(1, drop=5),  # type: ignore[arg-type]
    "forget": lambda: store().collect(forget="1"),  # type: ignore[arg-type]
    "keep to retain": lambda: store().retain(5),  # type: ignore[arg-type]
    "metric": lambda: store().best(5),  # type: ignore[arg-type]
}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        WRONG[name]()  # type: ignore[call-arg]

    assert caught.value.where["argument"] == name.replace(",", "").split()[0]
    assert "found" in caught.value.where


def test_numbers_may_be_of_numpy() -> None:
    kept = store()
    for _ in range(3):
        kept.save(STATE)

    assert np.int64(2) in kept
    assert kept.delete(np.int64(2)).numbers == (2,)  # type: ignore[arg-type]
    assert kept.delete(np.array([1, 3])).numbers == (1, 3)  # type: ignore[arg-type]
    assert True not in kept


def test_weights_only_needs_weights(tmp_path: pathlib.Path) -> None:
    bundle = tmp_path / "a.safetensors"

    with pytest.raises(UsageError, match="section 'model'") as caught:
        ckptfmt.save({"w": np.zeros(3), "optimizer": {}}, bundle, weights_only=True)

    assert caught.value.where["found"] == ["w", "optimizer"]
    assert not bundle.exists()


def test_options_beside_a_store_are_refused() -> None:
    for which in ("source_options", "target_options"):
        with pytest.raises(UsageError, match="already"):
            ckptfmt.copy(store(), store(), **{which: {"key": "x"}})


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="threads >= 1"):
        ckptfmt.open("a", threads=0)


@pytest.mark.parametrize(
    ("select", "dead"),
    [
        (["model", "optimzer"], ["optimzer"]),
        (["model/**", "model/x", "optimizer/?", "nope/*"], ["model/x", "nope/*"]),
        ("nope", ["nope"]),
    ],
)
def test_a_pattern_that_matches_nothing_is_no_silent_half_load(
    select: Any, dead: list[str]
) -> None:
    with pytest.raises(NotFoundError, match="nothing in the checkpoint matches") as caught:
        checkpoint().load(select=select)

    assert caught.value.where["select"] == dead


def test_patterns_that_overlap_are_all_alive() -> None:
    loaded = checkpoint().load(select=["model", "model/w", "**/w", "empty"])

    assert list(loaded) == ["model", "empty"]


@pytest.mark.parametrize("argument", ["counters", "metrics", "artifacts"])
def test_a_name_is_unicode(argument: str) -> None:
    kept: Any = store()
    with pytest.raises(StateError, match="Unicode") as caught:
        kept.save(STATE, **{argument: {"\ud800": b"" if argument == "artifacts" else 1}})

    assert caught.value.where["argument"] == argument
    assert list(kept) == []


def test_a_metric_has_a_name() -> None:
    kept = store()
    for save in (
        lambda: kept.save(STATE, metrics={"": 0.5}),
        lambda: kept.annotate(kept.save(STATE).number, {"metrics.": 0.5}),
    ):
        with pytest.raises((StateError, UsageError), match="name"):
            save()


@pytest.mark.parametrize("now", [-1, 2**63, 1.5, True, None])
def test_a_clock_that_no_reader_would_believe_saves_nothing(now: Any) -> None:
    """A manifest with such a time would be committed, and refused by all who read it."""
    store = ckptfmt.open(MemoryBackend(), sources=Sources(now=lambda: now))

    with pytest.raises(UsageError, match="a clock says"):
        store.save(STATE)

    assert store.backend.list("manifests") == store.backend.list("data") == {}


def test_the_last_instant_of_the_format_is_a_time() -> None:
    sources = Sources(now=lambda: 2**63 - 1)

    saved = ckptfmt.open(MemoryBackend(), sources=sources).save(STATE)

    assert saved.time.year == 9999
