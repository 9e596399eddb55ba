"""The rules of docs/virtual-epochs.md, one by one; those about a framework, its free half."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ckptfmt.errors import MismatchError, UsageError
from ckptfmt.training import Due, Progress, check, findings

MILLION = 1_000_000


def article() -> Progress:
    """Return the run of 14.3 passes over a million examples in 15 virtual epochs."""
    return Progress(dataset_size=MILLION, stop_point=14.3, virtual_epochs=15, global_batch=100)


def run(progress: Progress, batch: int, *, to: int | None = None) -> list[Due]:
    """Train in batches of one size to the stop, or until `to` examples were seen."""
    found = []
    while progress.remaining and (to is None or progress.seen < to):
        due = progress.advance(batch)
        if due.checkpoint:
            found.append(due)
    return found


def test_rule_01_a_new_batch_size_moves_no_edge() -> None:
    progress, unchanged = article(), article()
    first = run(progress, 1000, to=5 * MILLION)

    segment = progress.declare(global_batch=500)
    second = run(progress, 500)

    assert [progress.edge(k) for k in range(16)] == [unchanged.edge(k) for k in range(16)]
    assert [due.virtual_epoch for due in first + second] == list(range(1, 16))
    assert (segment.from_seen, segment.global_batch) == (5 * MILLION, 500)
    assert [s.global_batch for s in progress.segments] == [100, 500]
    assert 0 <= progress.seen - progress.total < 500


def test_rule_01_schedules_run_in_examples_and_steps_are_compared() -> None:
    progress = article()
    run(progress, 1000, to=7_150_000)

    assert progress.fraction == 0.5
    assert findings(progress, updates=7150) == []
    assert (
        "the optimizer counts 71,500 updates, the progress 7,150"
        in findings(progress, updates=71_500)[0]
    )


def test_rule_02_the_last_partial_batch_counts_its_real_size() -> None:
    progress = Progress(total=250, virtual_epochs=5)

    for size in (100, 100, 17):
        progress.advance(size)

    assert progress.seen == 217


@pytest.mark.parametrize("size", [np.float32(2**24 + 1), 64.0, "64", True, None])
def test_rule_02_counts_are_integers_not_float32(size: object) -> None:
    with pytest.raises(UsageError, match="batch_examples must be an integer"):
        article().advance(size)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [333, 512, 4096, 65536])
def test_rule_03_the_remainder_is_absorbed_by_the_grid(batch: int) -> None:
    progress = article()
    gaps = {progress.edge(k + 1) - progress.edge(k) for k in range(15)}

    dues = run(progress, batch)

    assert gaps == {953_333, 953_334}
    assert progress.edge(15) == progress.total == 14_300_000
    assert 0 <= progress.seen - progress.total < batch
    assert len(dues) == 15


def test_rule_04_more_virtual_epochs_than_examples_is_an_error_with_the_largest() -> None:
    assert Progress(total=7, virtual_epochs=7).edge(1) == 1

    with pytest.raises(UsageError) as caught:
        Progress(total=7, virtual_epochs=8)

    assert caught.value.where == {"virtual_epochs": 8, "largest": 7}


def test_rule_05_data_growth_is_declared_and_moves_no_edge() -> None:
    progress = article()
    run(progress, 1000, to=13 * MILLION)

    progress.declare(dataset_size=1_100_000, dataset="with 100,000 more")
    run(progress, 1000)

    assert progress.total == 14_300_000
    assert progress.passes == 13 + Fraction(1_300_000, 1_100_000)
    assert progress.segments[-1].dataset == "with 100,000 more"


def test_rule_05_a_new_total_is_never_inferred() -> None:
    progress = article()
    progress.declare(dataset_size=1_100_000)
    assert progress.total == 14_300_000

    progress.extend(stop_point=14.3)

    assert progress.total == 15_730_000
    assert progress.state()["progress"]["extensions"] == [[0, 14_300_000, 15_730_000]]


def test_rule_05_a_data_set_that_changed_without_a_word_is_an_error() -> None:
    progress = Progress(dataset_size=MILLION, stop_point=2, virtual_epochs=2, dataset="v1")
    check(progress, dataset_size=MILLION, dataset="v1")

    with pytest.raises(MismatchError) as caught:
        check(progress, dataset_size=1_100_000, dataset="v2")

    assert "dataset_size was 1000000 and is 1100000: declare it" in str(caught.value)
    assert "progress.declare(dataset='v2')" in str(caught.value)


def test_rule_06_a_raised_stop_point_goes_on_at_the_old_gap() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10)

    due = progress.extend(total=1250)

    assert not due.stop
    assert [progress.edge(k) for k in range(14)] == [*range(0, 1201, 100), 1250]
    assert [due.virtual_epoch for due in run(progress, 10)] == [11, 12, 13]


def test_rule_06_another_number_of_epochs_needs_regrid() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10, to=500)
    with pytest.raises(UsageError, match="regrid=True") as caught:
        progress.extend(total=1250, virtual_epochs=8)
    assert caught.value.where == {"expected": 13, "found": 8}

    progress.extend(total=1250, virtual_epochs=8, regrid=True)

    assert [progress.edge(k) for k in range(6)] == [0, 100, 200, 300, 400, 500]
    assert [progress.edge(k) for k in range(5, 9)] == [500, 750, 1000, 1250]


def test_rule_06_a_short_last_edge_that_was_reached_stays() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    progress.extend(total=1050)
    run(progress, 10)
    assert progress.virtual_epoch == 11

    progress.extend(total=1300)

    assert [progress.edge(k) for k in range(10, 15)] == [1000, 1050, 1150, 1250, 1300]
    assert [due.virtual_epoch for due in run(progress, 10)] == [12, 13, 14]


def test_rule_07_a_stop_point_below_seen_stops_at_once_and_saves() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10, to=250)

    due = progress.extend(total=150)

    assert due == Due(
        checkpoint=True, virtual_epoch=2, completed=range(3, 3), stop=True, seen=250
    )
    assert progress.seen == 250
    assert not progress.advance(10).checkpoint


def test_rule_07_a_run_that_has_stopped_is_not_saved_again_for_it() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10)
    progress.advance(10)  # a caller that does not listen

    due = progress.extend(total=900)

    assert (due.checkpoint, due.stop) == (False, True)


def test_rule_07_it_can_be_raised_again() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10, to=250)
    progress.extend(total=150)

    due = progress.extend(total=1000)

    assert (due.checkpoint, due.stop) == (False, False)
    assert [progress.edge(k) for k in range(11)] == list(range(0, 1001, 100))
    assert [due.virtual_epoch for due in run(progress, 10)] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_rule_07_edges_that_were_reached_keep_their_numbers_meanwhile() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    progress.extend(total=1)
    progress.advance(1)
    progress.advance(101)  # a caller that does not listen
    progress.extend(total=103, virtual_epochs=2, regrid=True)
    progress.advance(1)
    assert [progress.edge(k) for k in range(3)] == [0, 1, 103]

    progress.extend(total=102)  # below seen, and below edge 2
    assert progress.edge(progress.virtual_epochs) == 102
    progress.extend(total=104, virtual_epochs=progress.virtual_epoch + 1, regrid=True)

    assert progress.edge(1) == 1
    assert progress.edge(2) == 103


def test_rule_08_synchronous_workers_count_the_global_batch() -> None:
    shards = [32, 32, 32, 5]  # the last one is uneven
    progress = Progress(total=1010, virtual_epochs=2, world=4)

    for _ in range(10):
        progress.advance(sum(shards))

    assert progress.seen == 1010


def test_rule_08_another_world_size_is_a_segment_and_moves_no_edge() -> None:
    progress = article()
    run(progress, 1000, to=MILLION)
    edges = [progress.edge(k) for k in range(16)]

    progress.declare(world=8, global_batch=800)

    assert [progress.edge(k) for k in range(16)] == edges
    assert [s.world for s in progress.segments] == [1, 8]


def test_rule_09_asynchronous_workers_have_counters_of_their_own() -> None:
    progress = Progress(total=1000, virtual_epochs=10, consistency="async")

    assert not progress.acknowledge("a", 60).checkpoint
    due = progress.acknowledge("b", 40)

    assert due.checkpoint
    assert due.virtual_epoch == 1
    assert progress.seen == progress.applied == 100
    assert progress.state()["consistency"] == "async"


def test_rule_09_repeated_and_late_messages_change_nothing() -> None:
    progress = Progress(total=1000, virtual_epochs=10, consistency="async")
    progress.acknowledge("a", 200)
    before = progress.state()

    for count in (200, 60, 0, 200):
        due = progress.acknowledge("a", count)
        assert not due.checkpoint

    assert progress.state() == before


def test_rule_09_a_restarted_worker_goes_on_from_what_was_acknowledged() -> None:
    progress = Progress(total=1000, virtual_epochs=10, consistency="async")
    progress.acknowledge("a", 200)
    restored = Progress.restore(progress.state())

    restored.acknowledge("a", restored.acknowledged("a") + 30)

    assert restored.seen == 230
    assert restored.acknowledged("never heard of") == 0


def test_rule_09_sync_and_async_are_not_mixed_up() -> None:
    with pytest.raises(UsageError, match="acknowledge"):
        Progress(total=10, virtual_epochs=1, consistency="async").advance(1)
    with pytest.raises(UsageError, match="consistency='async'"):
        Progress(total=10, virtual_epochs=1).acknowledge("a", 1)

    changed = Progress(total=10, virtual_epochs=1)
    changed.advance(3)
    changed.declare(consistency="async")
    changed.acknowledge("a", 2)

    assert changed.seen == 5
    assert [s.consistency for s in changed.segments] == ["sync", "async"]


def test_rule_10_a_checkpoint_waits_for_the_end_of_the_accumulation() -> None:
    progress = Progress(total=1000, virtual_epochs=10, accumulation=4)

    dues = [progress.advance(30) for _ in range(8)]  # edges 100 and 200

    assert [due.seen for due in dues if due.checkpoint] == [120, 240]
    assert progress.applied == progress.seen == 240
    progress.advance(30)
    assert (progress.seen, progress.applied) == (270, 240)


def test_rule_10_with_stored_accumulators_it_does_not_wait() -> None:
    progress = Progress(total=1000, virtual_epochs=10, accumulation=4, stores_accumulators=True)

    dues = [progress.advance(30) for _ in range(7)]

    assert [due.seen for due in dues if due.checkpoint] == [120, 210]
    restored = Progress.restore(progress.state())
    restored.advance(30)
    assert restored.applied == 240


def test_rule_10_gradients_that_were_lost_count_as_seen_and_skipped() -> None:
    progress = Progress(total=1000, virtual_epochs=10, accumulation=4)
    for _ in range(6):
        progress.advance(30)

    restored = Progress.restore(progress.state())

    assert (restored.seen, restored.applied, restored.skipped) == (180, 120, 60)
    assert [restored.advance(30).checkpoint for _ in range(4)] == [False, False, False, True]


def test_rule_10_a_skipped_update_is_seen_and_not_applied() -> None:
    progress = Progress(total=1000, virtual_epochs=10, accumulation=2)

    progress.advance(30)
    progress.advance(30, update="skipped")
    progress.advance(30, update="applied")  # a loop that closes the window early

    assert (progress.seen, progress.applied, progress.skipped) == (90, 30, 60)
    assert progress.updates == 1


def test_rule_11_hooks_that_fire_every_few_steps_save_once() -> None:
    """With `steps_per_execution` the edges are resolved to so many batches."""
    progress = Progress(total=1000, virtual_epochs=10)

    due = progress.advance(7 * 50)

    assert due.checkpoint
    assert (due.virtual_epoch, due.completed) == (3, range(1, 4))
    assert not progress.advance(49).checkpoint
    assert progress.advance(1).virtual_epoch == 4


def test_rule_12_a_resume_in_the_middle_changes_no_edge() -> None:
    whole, resumed = article(), article()
    expected = run(whole, 1000)
    before = run(resumed, 1000, to=5_500_000)

    resumed = Progress.restore(resumed.state())
    first = resumed.edge(resumed.virtual_epoch + 1) - resumed.seen

    assert (resumed.virtual_epoch, first) == (5, 220_000)  # the first, shorter epoch
    assert before + run(resumed, 1000) == expected
    assert resumed.state() == whole.state()


def test_rule_12_a_lost_position_in_the_data_is_recorded() -> None:
    progress = article()
    run(progress, 1000, to=5_500_000)

    progress.declare(data_replay=True)

    assert [s.data_replay for s in progress.segments] == [False, True]
    assert progress.segments[-1].from_seen == 5_500_000
    progress.declare(world=2)  # at the same example
    assert [(s.world, s.data_replay) for s in progress.segments] == [(1, False), (2, True)]
    progress.advance(1000)
    progress.declare(global_batch=50)
    assert not progress.segments[-1].data_replay


def test_rule_13_what_a_crash_lost_is_counted_once() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10, to=100)
    committed = progress.state()
    run(progress, 10, to=170)  # and then it dies

    progress = Progress.restore(committed)
    assert progress.seen == 100
    dues = run(progress, 10, to=200)

    assert progress.seen == 200
    assert [due.virtual_epoch for due in dues] == [2]


def test_rule_14_a_stop_in_the_middle_of_an_epoch_is_not_complete() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    run(progress, 10, to=200)
    assert progress.state()["complete"] is True

    progress.advance(10)  # and then early stopping ends the run

    assert progress.state()["complete"] is False


def test_rule_16_a_loader_that_counts_otherwise_is_found() -> None:
    progress = Progress(total=1000, virtual_epochs=10)
    progress.advance(64)

    assert findings(progress, loader_seen=64) == []
    assert (
        "the loader counts 128 examples, the progress 64"
        in findings(progress, loader_seen=128)[0]
    )


def test_rule_17_other_units_go_along_and_change_no_edge() -> None:
    """Weights and masks have no say at all; packed sequences also count their tokens."""
    progress = Progress(total=100, virtual_epochs=10)

    progress.advance(5, units={"tokens": 4096})
    progress.advance(5, units={"tokens": 1000})

    assert progress.units == {"tokens": 5096}
    assert Progress.restore(progress.state()).units == {"tokens": 5096}
    assert (progress.seen, progress.virtual_epoch) == (10, 1)


def test_rule_18_each_stream_of_data_has_its_own_count() -> None:
    generator = Progress(total=100, virtual_epochs=2, stream="generator")
    critic = Progress(total=500, virtual_epochs=1, stream="critic")

    for _ in range(10):
        for _ in range(5):
            critic.advance(10)
        due = generator.advance(10)

    assert (generator.seen, critic.seen, due.stop) == (100, 500, True)
    with pytest.raises(MismatchError, match="stream was 'critic' and is 'generator'"):
        check(Progress.restore(critic.state()), stream="generator")


def test_rule_19_counts_are_64_bits_wide_and_end_there() -> None:
    large = 2**63 - 1
    progress = Progress(total=large, virtual_epochs=1000)

    progress.advance(np.int64(2**62))  # type: ignore[arg-type]
    progress.advance(np.int32(7))  # type: ignore[arg-type]

    assert progress.seen == 2**62 + 7
    assert progress.edge(1000) == large
    assert type(progress.state()["seen"]) is int
    with pytest.raises(UsageError, match=r"below 2\*\*63"):
        progress.advance(2**62)
    with pytest.raises(UsageError, match=r"below 2\*\*63"):
        Progress(total=2**63, virtual_epochs=1)


@pytest.mark.parametrize(
    ("size", "stop", "total"),
    [
        (50_000, 1.15, 57_500),  # int(1.15 * 50_000) is 57,499
        (MILLION, 14.3, 14_300_000),
        (MILLION, "14.3", 14_300_000),
        (3, 0.5, 2),  # half to even
        (5, 0.5, 2),
        (2**60, 7.9, 9_108_079_886_394_091_110),  # more digits than a float has
    ],
)
def test_rule_19_the_total_is_exact(size: int, stop: object, total: int) -> None:
    assert Progress(dataset_size=size, stop_point=stop, virtual_epochs=1).total == total


def test_rule_20_fine_tuning_begins_at_zero_and_names_its_parent() -> None:
    progress = Progress(total=100, virtual_epochs=2, parent=("a" * 24, 14_300_000))

    restored = Progress.restore(progress.state())

    assert restored.seen == 0
    assert restored.parent == ("a" * 24, 14_300_000)
