"""Lineages: which checkpoints queries are made over, and what an ambiguous one is told."""

from __future__ import annotations

import os
import pathlib
import shutil
import threading

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt._store import saving
from ckptfmt.backends import MemoryBackend
from ckptfmt.backends.base import Entry
from ckptfmt.errors import BackendError, NotFoundError, UsageError
from ckptfmt.format import layout
from ckptfmt.options import Sources
from ckptfmt.training import EarlyStopping, Progress


def save(store: Store, seen: int, loss: float | None = None, **how: object) -> int:
    metrics = {} if loss is None else {"loss": loss}
    state = {"model": {"w": seen}}
    return store.save(state, counters={"seen": seen}, metrics=metrics, **how).number  # type: ignore[arg-type]


@pytest.fixture
def forked(tmp_path: pathlib.Path) -> Store:
    """Return a store that was rolled back: 1 2 3 4, and 5 6 after 2."""
    store = ckptfmt.open(tmp_path / "run", durable=False)
    for seen, loss in ((100, 0.9), (200, 0.5), (300, 0.1), (400, 0.7)):
        save(store, seen, loss)
    save(store, 300, 0.4, parent=store[2])
    save(store, 400, 0.6)
    return store


def test_the_course_follows_the_newest_checkpoint(forked: Store) -> None:
    assert [(p.number, p.seen) for p in forked.history()] == [
        (1, 100), (2, 200), (5, 300), (6, 400),
    ]  # fmt: skip
    assert [p.number for p in forked.history(lineage="all")] == [1, 2, 3, 4, 5, 6]
    assert [p.number for p in forked.history(lineage=forked[4].id)] == [1, 2, 3, 4]
    assert [p.number for p in forked.history(lineage=forked[3].id[:12])] == [1, 2, 3]


def test_the_best_is_of_the_lineage_that_is_asked_for(forked: Store) -> None:
    assert forked.best("loss").number == 5
    assert forked.best("loss", lineage="all").number == 3
    assert forked.best("loss", lineage=forked[2].id).number == 2
    assert forked.best("loss", mode="max", lineage=forked[4].id).number == 1


def test_latest_after_a_rollback_is_the_newest_commit(forked: Store) -> None:
    assert forked.latest().number == 6


def test_examples_of_several_lineages_are_ambiguous(forked: Store) -> None:
    assert forked.at(examples=350).number == 5
    assert forked.at(examples=350, lineage=forked[4].id).number == 3
    assert forked.at(examples=250, lineage="all").number == 2

    with pytest.raises(UsageError) as caught:
        forked.at(examples=350, lineage="all")

    assert caught.value.where["candidates"] == [(3, forked[3].id), (5, forked[5].id)]


def test_the_same_place_twice_in_one_lineage_is_the_newer(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path, durable=False)
    save(store, 100)
    save(store, 100)

    assert store.at(examples=100).number == 2
    assert store.at(examples=100, lineage="all").number == 2


def test_an_id_that_begins_like_several_lists_them(tmp_path: pathlib.Path) -> None:
    ids = iter(["ab" * 12, "ac" * 12, "bb" * 12])
    sources = Sources(now=lambda: 0, save_id=lambda: next(ids))
    store = ckptfmt.open(tmp_path, durable=False, sources=sources)
    for seen in (1, 2, 3):
        save(store, seen)

    with pytest.raises(UsageError, match="several checkpoints fit") as caught:
        store.resolve("id:a")

    assert caught.value.where["candidates"] == [(1, "ab" * 12), (2, "ac" * 12)]
    assert store.resolve("id:ac").number == 2
    assert [p.number for p in store.history(lineage="ac")] == [1, 2]
    for wrong in ("", "zz", "ALL"):
        with pytest.raises(NotFoundError, match="no checkpoint has this id"):
            store.history(lineage=wrong)


def test_ids_are_addresses(forked: Store) -> None:
    chosen = forked[3]

    assert forked.resolve(f"id:{chosen.id}") == chosen
    assert ckptfmt.open_checkpoint(f"{forked.url}@id:{chosen.id[:16]}") == chosen


def test_a_place_of_another_lineage_is_pointed_to(forked: Store) -> None:
    save(forked, 300, parent=None)

    with pytest.raises(NotFoundError, match="lineage='all'") as caught:
        forked.at(examples=250)

    assert caught.value.where["others"] == [1, 2]
    with pytest.raises(NotFoundError, match="the earliest has seen 300"):
        forked.at(examples=50)


def test_a_lineage_is_named_by_text(forked: Store) -> None:
    with pytest.raises(UsageError, match="expected str or None, got int"):
        forked.history(lineage=3)  # type: ignore[arg-type]


def test_a_metric_of_another_lineage_is_pointed_to(forked: Store) -> None:
    forked.annotate(4, {"metrics.late": 1.0})

    with pytest.raises(NotFoundError, match="lineage='all'") as caught:
        forked.best("late")

    assert caught.value.where["others"] == [4]
    assert forked.best("late", lineage="all").number == 4
    with pytest.raises(NotFoundError, match="known: 'loss'"):
        forked.best("nothing")


def test_deleted_checkpoints_stay_in_the_course(forked: Store) -> None:
    forked.delete([2, 3])

    course = forked.history()

    assert [(p.number, p.stored) for p in course] == [
        (1, True), (2, False), (5, True), (6, True),
    ]  # fmt: skip
    assert course[1].metrics == {"loss": 0.5}
    assert [p.number for p in forked.history(lineage="all")] == [1, 2, 3, 4, 5, 6]
    assert forked.best("loss", lineage="all").number == 5  # 3 cannot be loaded any more


def test_the_course_survives_a_copy_and_its_own_retention(tmp_path: pathlib.Path) -> None:
    keep = ckptfmt.keep(last=1)
    store = ckptfmt.open(tmp_path / "a", durable=False, keep=keep)
    for n in range(1, 6):
        save(store, 100 * n, 1 / n)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    copy = ckptfmt.open(tmp_path / "b").history()

    assert copy == store.history()
    assert [(p.seen, p.stored) for p in copy][-2:] == [(400, False), (500, True)]


def test_rule_15_late_metrics_belong_to_their_checkpoint(forked: Store) -> None:
    """A validation belongs to the checkpoint at its `seen`, however late it comes."""
    forked.annotate(5, {"metrics.val_loss": 0.2})
    forked.annotate(6, {"metrics.val_loss": 0.9, "metrics.loss": None})

    course = {p.seen: p.metrics for p in forked.history()}

    assert course[300]["val_loss"] == 0.2
    assert course[400] == {"val_loss": 0.9}
    assert forked.best("val_loss").counters["seen"] == 300
    rule = EarlyStopping(monitor="val_loss", patience=100)
    assert rule.judge(forked.history()).stop


def test_late_metrics_outlive_their_checkpoint(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path / "a", durable=False)
    for n in (1, 2):
        save(store, 100 * n, 1 / n)
    store.annotate(1, {"metrics.val_loss": 0.2, "metrics.loss": None})
    save(store, 300)
    store.annotate(2, {"metrics.val_loss": 0.1})  # after the last save
    store.delete([1, 2])
    ckptfmt.copy(tmp_path / "a", tmp_path / "b")

    assert [(p.seen, p.metrics) for p in store.history()] == [
        (100, {"val_loss": 0.2}),
        (200, {"loss": 0.5, "val_loss": 0.1}),
        (300, {}),
    ]
    # A manifest alone carries what was known when it was made.
    assert [row.metrics for row in store[3].history] == [{"val_loss": 0.2}, {"loss": 0.5}]
    assert ckptfmt.open(tmp_path / "b").history()[0].metrics == {"val_loss": 0.2}


def test_a_save_does_not_fail_because_annotations_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forbidden(MemoryBackend):
        def list(self, prefix: str) -> dict[str, Entry]:
            if prefix == layout.ANNOTATIONS:
                raise BackendError("forbidden", prefix=prefix)
            return super().list(prefix)

    store = ckptfmt.open(Forbidden())
    save(store, 100, 1.0)

    assert save(store, 200, 0.5) == 2
    assert "late metrics are left out" in caplog.text


def test_a_store_opened_again_is_no_restart_but_a_child_is_a_process_of_its_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go_on() -> None:
        with ckptfmt.open(tmp_path / "run", durable=False) as store:
            if len(store):
                store.latest().load()
            save(store, 100 * len(store))

    for _ in range(3):
        go_on()
    with monkeypatch.context() as child:  # forked: it has what its parent knew
        child.setattr(os, "getpid", lambda: -1)
        go_on()
        go_on()
    go_on()

    store = ckptfmt.open(tmp_path / "run")
    assert [c.writer["process"] for c in store] == [store[n].id for n in (1, 1, 1, 4, 4, 1)]


def test_stores_in_memory_are_not_mixed_up() -> None:
    for _ in range(2):
        store = ckptfmt.open(MemoryBackend())
        save(store, 100)
        assert store[1].writer["process"] == store[1].id


def test_which_process_saved_is_known_of_deleted_ones_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(2):  # two processes, of which the second goes on with the first
        monkeypatch.setattr(saving, "_FIRST", {})
        with ckptfmt.open(tmp_path / "run", durable=False) as store:
            if n:
                store.latest().load()
            save(store, 200 * n + 100)
            save(store, 200 * n + 200)
    store.delete([1, 3])

    course = store.history()

    ids = [p.id for p in course]
    assert [p.process for p in course] == [ids[0], ids[0], ids[2], ids[2]]


def test_calls_of_their_own_are_no_restarts(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in (1, 2, 3):
        ckptfmt.save({"w": n}, tmp_path / "run")
    with ckptfmt.open(tmp_path / "run") as store:
        store.latest().load()
        save(store, 400)
        ckptfmt.pack(store[1], tmp_path / "one.safetensors")
        ckptfmt.unpack(tmp_path / "one.safetensors", store)
        save(store, 600, parent=store[4])

    process = [c.writer.get("process") for c in store]
    assert process == [None, None, None, store[4].id, None, store[4].id]
    assert "new lineage" not in caplog.text


def test_a_forgotten_load_is_told_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*, load: bool = False, **how: object) -> list[str]:
        caplog.clear()
        with ckptfmt.open(tmp_path / "run", durable=False) as store:
            if load:
                store.latest().load()
            save(store, 100, 1.0, **how)
            save(store, 200, 0.5)
        return [r.getMessage() for r in caplog.records if "new lineage" in r.getMessage()]

    assert run() == []  # the first run of the store
    assert run(load=True) == []
    assert run(parent=None) == []
    (told,) = run()
    assert told.startswith("checkpoint 7 of ")
    assert "none of the earlier ones was loaded whole through this store" in told
    assert "parent=None to say" in told


def test_a_new_lineage_beside_nothing_is_not_told(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ckptfmt.open(tmp_path / "run", durable=False) as store:
        save(store, 100)
        store.delete(1)
    with ckptfmt.open(tmp_path / "run", durable=False) as store:
        assert save(store, 100) == 2

    assert "new lineage" not in caplog.text


def test_a_look_that_fails_says_nothing_of_lineages(caplog: pytest.LogCaptureFixture) -> None:
    class Forbidden(MemoryBackend):
        def list(self, prefix: str) -> dict[str, Entry]:
            if prefix == layout.ANNOTATIONS:
                raise BackendError("forbidden", prefix=prefix)
            return super().list(prefix)

    backend = Forbidden()
    save(ckptfmt.open(backend), 100)

    assert save(ckptfmt.open(backend), 100) == 2
    assert "new lineage" not in caplog.text


@pytest.mark.parametrize("background", [False, True])
def test_a_whole_load_after_a_save_is_what_the_next_one_continues(
    tmp_path: pathlib.Path, background: bool
) -> None:
    """A rollback in one process is a branch (spec §8.2.8)."""
    go = threading.Event()
    with ckptfmt.open(tmp_path / "run", durable=False) as store:
        save(store, 100, 0.5)
        if background:
            wait = {"progress": lambda *_: go.wait() and None}
            pending = store.save_async({"w": np.zeros(9)}, **wait)  # type: ignore[arg-type]
        else:
            save(store, 200, 0.9)
        store[1].load()
        if background:
            go.set()
            assert pending.wait().parent == (1, store[1].id)
        assert [save(store, 200), save(store, 300)] == [3, 4]

        assert [p.number for p in store.history()] == [1, 3, 4]
        store[1].load(select="model")  # a part does not say that the run goes back
        assert store[save(store, 400)].parent == (4, store[4].id)
        store[1].fill({}, resumes=True)
        assert store[save(store, 200)].parent == (1, store[1].id)
        assert store[save(store, 500, parent=store[5])].parent == (5, store[5].id)


def test_what_looks_at_a_checkpoint_is_no_rollback(tmp_path: pathlib.Path) -> None:
    with ckptfmt.open(tmp_path / "run", durable=False) as store:
        state = {"model": {"w": np.zeros(3)}}
        first, _ = store.save(state), store.save(state)
        first.verify()
        first.compare(state)
        ckptfmt.pack(first, tmp_path / "one.safetensors")
        ckptfmt.export(first, tmp_path / "two.safetensors")
        with ckptfmt.open(tmp_path / "other", durable=False) as other:
            ckptfmt.unpack(first, other)

        assert store.save(state).parent == (2, store[2].id)


def test_rule_20_fine_tuning_is_a_run_of_its_own(forked: Store) -> None:
    parent = forked[2]
    progress = Progress(total=50, virtual_epochs=1, parent=(parent.id, 200))
    progress.advance(50)

    tuned = forked.save(parent.load(), counters=progress.state(), parent=None)

    assert [p.seen for p in forked.history()] == [50]
    assert Progress.restore(tuned.counters).parent == (parent.id, 200)
    assert [p.number for p in forked.history(lineage="all")] == [1, 2, 3, 4, 5, 6, 7]


def test_an_empty_store_has_no_course(tmp_path: pathlib.Path) -> None:
    store = ckptfmt.open(tmp_path / "none")

    assert store.history(lineage="all") == []
    with pytest.raises(NotFoundError, match="no checkpoint yet"):
        store.history()
