"""Progress: what a caller may ask, how it is stored, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

import ckptfmt
from ckptfmt.backends import MemoryBackend
from ckptfmt.errors import FormatError, MismatchError, NotFoundError, UsageError
from ckptfmt.training import Progress, agree, check, story


def some() -> Progress:
    """Return a run that has been through a bit of everything."""
    progress = Progress(
        dataset_size=100, stop_point="10.5", virtual_epochs=10, dataset="v1", accumulation=2
    )
    for _ in range(14):
        progress.advance(20, units={"tokens": 9})
    progress.declare(global_batch=30, dataset_size=120, dataset="v2")
    progress.extend(stop_point=11)
    for _ in range(3):
        progress.advance(30, update="applied")
    return progress


def test_it_comes_back_through_a_store() -> None:
    progress = some()
    store = ckptfmt.open(MemoryBackend())
    store.save({"model": {}}, counters={**progress.state(), "step": 5})

    restored = Progress.restore(store.latest().counters)

    assert restored.state() == progress.state()
    assert repr(restored) == "<Progress 370 of 1,320 examples, virtual epoch 3.52 of 13>"


def test_manifests_record_how_the_run_was_fed() -> None:
    """Readers in other languages find it there, not in our counters (spec §6.8.7)."""
    store = ckptfmt.open(MemoryBackend())
    ours = store.save({"model": {}}, counters=some().state())
    none = store.save({"model": {}}, counters={"seen": 500})
    other = store.save({"model": {}}, counters={"seen": 600, "progress": 0.5})
    odd = store.save({"model": {}}, counters={"seen": 600, "progress": {"segments": [5]}})

    assert ours.manifest.plain("segments") == [
        {
            "from_seen": 0,
            "global_batch": None,
            "dataset_size": 100,
            "dataset": "v1",
            "world": 1,
            "accumulation": 2,
        },
        {
            "from_seen": 280,
            "global_batch": 30,
            "dataset_size": 120,
            "dataset": "v2",
            "world": 1,
            "accumulation": 2,
        },
    ]
    for found in (none, other, odd):
        assert found.manifest.plain("segments") is None


def test_what_it_tells() -> None:
    progress = some()

    assert (progress.seen, progress.applied, progress.remaining) == (370, 370, 950)
    assert progress.edge(3) == 315
    assert progress.position == 3 + Fraction(55, 105)
    assert progress.passes == Fraction(280, 100) + Fraction(90, 120)
    assert progress.updates == 7 + 3


def test_passes_are_unknown_without_a_size() -> None:
    progress = Progress(total=100, virtual_epochs=2)
    assert progress.passes == 0
    progress.advance(10)
    assert progress.passes is None


def test_a_run_that_began_without_bookkeeping_goes_on() -> None:
    progress = Progress(total=1000, virtual_epochs=10, seen=250)

    assert progress.virtual_epoch == 2
    assert not progress.advance(49).checkpoint
    assert progress.advance(1).completed == range(3, 4)


def test_declaring_what_is_so_already_adds_no_segment() -> None:
    progress = Progress(total=1000, virtual_epochs=10, global_batch=32)
    progress.advance(32)

    progress.declare(global_batch=32)
    assert len(progress.segments) == 1
    progress.declare(global_batch=64)
    progress.declare(world=2)  # at the same example: one segment says both

    assert [(s.global_batch, s.world) for s in progress.segments] == [(32, 1), (64, 2)]


def test_dividing_the_rest_begins_where_the_run_is() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    for _ in range(29):
        progress.advance(10)

    due = progress.extend(total=1000, virtual_epochs=4, regrid=True)

    assert not due.checkpoint
    assert [progress.edge(k) for k in range(5)] == [0, 100, 200, 645, 1000]


def test_dividing_before_the_first_edge() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    progress.extend(total=1000, virtual_epochs=4, regrid=True)
    assert [progress.edge(k) for k in range(5)] == [0, 250, 500, 750, 1000]
    progress.advance(50)

    progress.extend(total=1050, virtual_epochs=5, regrid=True)

    assert [progress.edge(k) for k in range(6)] == [0, 250, 450, 650, 850, 1050]


GOOD: dict[str, Any] = {"total": 1000, "virtual_epochs": 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 5, "virtual_epochs": 6}, "more virtual epochs than examples"),
        ({**GOOD, "virtual_epochs": 0}, "virtual_epochs must be an integer >= 1"),
        ({**GOOD, "virtual_epochs": 1.5}, "virtual_epochs must be an integer"),
        ({**GOOD, "total": 0}, "total must be an integer >= 1"),
        ({**GOOD, "total": -1}, "total must be an integer >= 1"),
        ({**GOOD, "total": 1e6}, "total must be an integer, got 1000000.0"),
        ({"virtual_epochs": 1}, "either total, or stop_point"),
        ({**GOOD, "dataset_size": 5, "stop_point": 1}, "either total, or stop_point"),
        ({"virtual_epochs": 1, "stop_point": 2}, "needs the dataset_size"),
        ({"virtual_epochs": 1, "stop_point": 2, "dataset_size": 0}, "dataset_size must be"),
        ({"virtual_epochs": 1, "stop_point": 0, "dataset_size": 9}, "finite and > 0"),
        ({"virtual_epochs": 1, "stop_point": -1.5, "dataset_size": 9}, "finite and > 0"),
        ({"virtual_epochs": 1, "stop_point": "nan", "dataset_size": 9}, "finite and > 0"),
        ({"virtual_epochs": 1, "stop_point": "inf", "dataset_size": 9}, "finite and > 0"),
        ({"virtual_epochs": 1, "stop_point": "x", "dataset_size": 9}, "must be a number"),
        ({"virtual_epochs": 1, "stop_point": True, "dataset_size": 9}, "must be a number"),
        ({"virtual_epochs": 1, "stop_point": "1e999999999", "dataset_size": 9}, "any useful"),
        ({"virtual_epochs": 1, "stop_point": "1e-99999999", "dataset_size": 9}, "any useful"),
        ({"virtual_epochs": 1, "stop_point": 0.01, "dataset_size": 9}, "an integer >= 1"),
        ({**GOOD, "seen": 1001}, "the stop point is below seen"),
        ({**GOOD, "seen": -1}, "seen must be an integer >= 0"),
        ({**GOOD, "global_batch": 0}, "global_batch must be an integer >= 1"),
        ({**GOOD, "world": 0}, "world must be an integer >= 1"),
        ({**GOOD, "accumulation": 0}, "accumulation must be an integer >= 1"),
        ({**GOOD, "dataset": 5}, "dataset must be a str"),
        ({**GOOD, "consistency": "eventual"}, "'sync' or 'async'"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Progress(**arguments)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.advance(0), "batch_examples must be an integer >= 1"),
        (lambda p: p.advance(-5), "batch_examples must be an integer >= 1"),
        (lambda p: p.advance(2.5), "batch_examples must be an integer, got 2.5"),
        (lambda p: p.advance(5, update="maybe"), "update must be one of auto, applied"),
        (lambda p: p.advance(5, units={"tokens": -1}), "tokens must be an integer >= 0"),
        (lambda p: p.edge(14), "no such virtual epoch"),
        (lambda p: p.edge(-1), "k must be an integer >= 0"),
        (lambda p: p.plan(0), "batch_size must be an integer >= 1"),
        (lambda p: p.declare(dataset_size=-1), "dataset_size must be an integer >= 1"),
        (lambda p: p.extend(), "either total, or stop_point"),
        (lambda p: p.extend(total=0), "total must be an integer >= 1"),
        (lambda p: p.extend(total=2000, virtual_epochs=3), "pass regrid=True"),
        (
            lambda p: p.extend(total=2000, virtual_epochs=3, regrid=True),
            "nothing is left to divide",
        ),
        (
            lambda p: p.extend(total=370, virtual_epochs=30, regrid=True),
            "nothing is left to divide",
        ),
        (
            lambda p: p.extend(total=380, virtual_epochs=30, regrid=True),
            "more virtual epochs than examples",
        ),
    ],
)
def test_bad_calls_are_refused_and_change_nothing(
    call: Callable[[Progress], object], message: str
) -> None:
    progress = some()
    before = copy.deepcopy(progress.state())

    with pytest.raises(UsageError) as caught:
        call(progress)

    assert message in str(caught.value)
    assert progress.state() == before


def test_the_accumulation_changes_between_updates_only() -> None:
    progress = Progress(total=100, virtual_epochs=2, accumulation=3)
    progress.advance(5)

    with pytest.raises(UsageError, match="gradients are waiting"):
        progress.declare(accumulation=2)


def test_a_worker_has_a_name_and_counts_forward() -> None:
    progress = Progress(total=100, virtual_epochs=2, consistency="async")

    with pytest.raises(UsageError, match="named by a str"):
        progress.acknowledge("", 5)
    with pytest.raises(UsageError, match="count must be an integer >= 0"):
        progress.acknowledge("a", -5)


def test_check_names_everything_that_changed_and_the_way_out() -> None:
    progress = some()
    check(progress, total=1320, virtual_epochs=13, dataset_size=120, stream="train")

    with pytest.raises(MismatchError) as caught:
        check(progress, total=1500, virtual_epochs=15, world=2, global_batch=30)

    assert str(caught.value) == (
        "the run is set up in another way than before;"
        " total was 1320 and is 1500: move the stop point: progress.extend(total=1500);"
        " virtual_epochs was 13 and is 15: divide the rest anew:"
        " progress.extend(total=..., virtual_epochs=15, regrid=True);"
        " world was 1 and is 2: declare it: progress.declare(world=2) [seen=370]"
    )


def test_ranks_agree_or_the_first_difference_is_named() -> None:
    one, other = some(), some()
    agree([one.state(), other.state(), some().state()])
    agree([])
    other.advance(1)

    with pytest.raises(MismatchError) as caught:
        agree([one.state(), one.state(), other.state()])

    assert caught.value.where == {"field": "seen", "rank_0": 370, "rank_2": 371}


@pytest.mark.parametrize("wrong", [3, None, {"progress": 3}])
def test_ranks_that_say_something_else_are_wrong_use(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"Progress\.state"):
        agree([some().state(), wrong])


def test_counters_without_progress_say_how_to_get_some() -> None:
    with pytest.raises(NotFoundError, match="begin with Progress"):
        Progress.restore({"seen": 5})


def _set(*path: object, to: object) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        at: Any = state
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_set("progress", to=5), "expected a map"),
        (_set("progress", to={}), "are no progress"),
        (_set("seen", to=371), "seen = applied + skipped + waiting"),
        (_set("seen", to="370"), "seen must be an integer"),
        (_set("applied", to=369.0), "applied must be an integer"),
        (_set("total", to=0), "total must be an integer >= 1"),
        (_set("complete", to=True), "`complete` is what `due_seen` says"),
        (_set("consistency", to="async"), "`consistency` is that of the last segment"),
        (_set("progress", "grid", to=[]), "the grid begins at 0"),
        (_set("progress", "grid", to=[[0, 0, 5, 6]]), "every gap has an example"),
        (_set("progress", "grid", to=[[0, 0, 5, 0]]), "den must be an integer >= 1"),
        (_set("progress", "grid", to=[[0, 0, 5, 1], [1, 0, 5, 1]]), "the grid ascends"),
        (_set("progress", "grid", to=[[0, 0, 5]]), "are no progress"),
        (_set("progress", "segments", to=[]), "a segment begins at 0"),
        (_set("progress", "segments", 0, to=7), "expected a segment"),
        (_set("progress", "segments", 0, "world", to=0), "world must be an integer >= 1"),
        (_set("progress", "segments", 1, "from_seen", to=999), "segments ascend up to seen"),
        (_set("progress", "due_seen", to=999), "fell due within seen"),
        (_set("progress", "workers", to={"a": 999}), "have not pushed more"),
        (_set("progress", "units", to={"tokens": -1}), "tokens must be an integer >= 0"),
    ],
)
def test_counters_that_do_not_fit_together_are_refused(
    damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    state = copy.deepcopy(some().state())
    damage(state)

    with pytest.raises(FormatError) as caught:
        Progress.restore(state)

    assert message in str(caught.value)


def test_unknown_fields_of_a_later_release_are_left_alone() -> None:
    state = copy.deepcopy(some().state())
    state["progress"]["new"] = 1
    state["progress"]["segments"][0]["new"] = 1

    assert Progress.restore(state).state() == some().state()


def test_it_tells_how_the_run_got_here() -> None:
    assert story(some()) == [
        "at 0: 100 examples in the data set, data set 'v1', 2 batches to an update",
        "at 280: batches of 30, 120 examples in the data set, data set 'v2'",
        "at 280: stop point moved from 1,050 to 1,320 examples",
        "now at 370 of 1,320 examples, virtual epoch 3.52 of 13, 3.55 passes",
    ]


def test_it_tells_of_parents_workers_and_lost_places() -> None:
    progress = Progress(total=100, virtual_epochs=2, parent=("abc", 5000), accumulation=2)
    progress.advance(10)
    progress.advance(10)
    progress.declare(data_replay=True)
    progress.advance(5)
    progress.advance(5, update="skipped")
    progress.declare(consistency="async", world=8)

    assert story(progress) == [
        "fine-tuned from abc, which had seen 5,000 examples",
        "at 0: 2 batches to an update",
        "at 20: the position in the data was lost, examples may have come twice",
        "at 30: 8 workers, workers push on their own",
        "now at 30 of 100 examples, virtual epoch 0.60 of 2",
        "20 of them went into updates of the weights",
    ]
    assert story(Progress(total=5, virtual_epochs=1))[0] == "at 0: the run begins"
