"""The loop counts what was trained on, saves at edges, and goes on at the next example."""

from __future__ import annotations

import logging
import pathlib
import re
import signal
from typing import Any

import pytest
import torch
from nets import net, train
from torch.utils.data import DataLoader, TensorDataset

import ckptfmt
import ckptfmt_torch
from ckptfmt import loops
from ckptfmt.errors import MismatchError, UsageError
from ckptfmt.training import EarlyStopping, Progress
from ckptfmt_torch.data import examples_in

SIZE = 50


def loader(batch: int = 8, workers: int = 0, seed: int = 1) -> DataLoader[Any]:
    batches = ckptfmt_torch.BatchSampler(SIZE, batch, seed=seed)
    return DataLoader(TensorDataset(torch.arange(SIZE)), batch_sampler=batches,
                      num_workers=workers)  # fmt: skip


def epochs(store: ckptfmt.Store, **options: Any) -> ckptfmt_torch.VirtualEpochs:
    given = {"loader": loader(), **options}
    if "model" not in given:
        given["model"] = net()
    return ckptfmt_torch.VirtualEpochs(store, Progress(total=100, virtual_epochs=4), **given)


def shown(run: ckptfmt_torch.VirtualEpochs, stop_after: int | None = None) -> list[int]:
    """Take steps; return the examples in the order of their showing."""
    found: list[int] = []
    for number, (batch,) in enumerate(run):
        found += batch.tolist()
        if stop_after is not None and number + 1 == stop_after:
            break  # this step is not counted: it did not end
    return found


def test_each_edge_has_its_checkpoint(store: ckptfmt.Store) -> None:
    run = epochs(store)
    found = shown(run)

    # Batches of 8 and a last one of 2 in each pass of 50: edges 25, 50, 75, 100.
    assert [c.counters["seen"] for c in store] == [32, 50, 82, 100]
    assert len(found) == 100
    assert sorted(found[:50]) == sorted(found[50:]) == list(range(50))
    assert run.progress.seen == 100


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [8, 5])
def test_a_run_goes_on_with_the_example_that_is_next(
    store: ckptfmt.Store, workers: int, batch: int
) -> None:
    expected = shown(epochs(ckptfmt.open(f"{store.url}-whole")))
    before = shown(epochs(store, loader=loader(workers=workers)), stop_after=6)
    saved = store.latest().counters["seen"]
    run = epochs(store, loader=loader(batch=batch, workers=workers))

    after = shown(run)

    assert saved == 32
    assert before[:saved] == expected[:saved]
    assert after[: SIZE - saved] == expected[saved:SIZE]
    assert sorted(before[:saved] + after)[::2] == list(range(SIZE))
    assert run.report is not None
    assert all("shown again" not in finding.reason for finding in run.report.findings)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize(("workers", "steps"), [(0, 2), (0, 7), (0, 9), (2, 7)])
@pytest.mark.parametrize("own", [False, True])
def test_a_loader_with_a_state_goes_on_over_the_ends_of_passes(
    store: ckptfmt.Store, workers: int, steps: int, own: bool
) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def run(to: ckptfmt.Store) -> ckptfmt_torch.VirtualEpochs:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2) if own else None
        made = stateful(TensorDataset(torch.arange(SIZE)), batch_size=8, shuffle=True,
                        num_workers=workers, generator=generator)  # fmt: skip
        return epochs(to, loader=made, every_examples=1)

    expected = shown(run(ckptfmt.open(f"{store.url}-whole")))
    before = shown(run(store), stop_after=steps + 1)
    saved = store.latest().counters["seen"]

    # Seven batches are a pass: what is saved then goes on with the next pass.
    assert saved == min(steps, 7) * 8 - 6 * (steps >= 7) + 8 * (steps - 7) * (steps > 7)
    assert before[:saved] + shown(run(store)) == expected


def test_a_finished_run_shows_nothing(store: ckptfmt.Store) -> None:
    shown(epochs(store))

    assert shown(epochs(store)) == []
    assert len(store) == 4


def test_data_of_another_size_are_refused(store: ckptfmt.Store) -> None:
    shown(epochs(store), stop_after=6)
    batches = ckptfmt_torch.BatchSampler(SIZE + 1, 8)
    other: Any = DataLoader(TensorDataset(torch.arange(SIZE + 1)), batch_sampler=batches)

    with pytest.raises(MismatchError, match="size"):
        shown(epochs(store, loader=other))


def test_metrics_are_measured_when_saved(store: ckptfmt.Store) -> None:
    shown(epochs(store, evaluate=lambda: {"val_loss": 1.0}))

    assert [c.metrics["val_loss"] for c in store] == [1.0] * 4


def test_time_is_a_reason_to_save(store: ckptfmt.Store) -> None:
    shown(epochs(store, every_seconds=1e-9))

    assert len(store) == 14  # after every step
    for wrong in (0, float("nan")):
        with pytest.raises(UsageError, match="seconds"):
            epochs(store, every_seconds=wrong)


def test_early_stopping_ends_the_loop_and_it_stays_ended(store: ckptfmt.Store) -> None:
    losses = iter([0.5, 0.4, 0.45, 0.3])
    rule = EarlyStopping(monitor="val_loss", patience=20)
    shown(epochs(store, evaluate=lambda: {"val_loss": next(losses)}, early_stopping=rule))

    assert [c.counters["seen"] for c in store] == [32, 50, 82]
    assert store.best("val_loss").number == 2
    assert shown(epochs(store, early_stopping=rule)) == []
    assert shown(epochs(store)) != []


def test_multiples_of_examples_are_a_reason_to_save(store: ckptfmt.Store) -> None:
    shown(epochs(store, every_examples=20), stop_after=7)
    assert [c.counters["seen"] for c in store] == [24, 32, 40]  # 32: the edge at 25

    shown(epochs(store, every_examples=20))
    assert [c.counters["seen"] for c in store] == [24, 32, 40, 50, 66, 82, 100]
    with pytest.raises(UsageError, match="every_examples"):
        epochs(store, every_examples=0)


def test_with_accumulation_saves_wait_for_the_update(store: ckptfmt.Store) -> None:
    progress = Progress(total=100, virtual_epochs=4, accumulation=3)
    run = ckptfmt_torch.VirtualEpochs(
        store, progress, loader=loader(), model=net(), every_seconds=1e-9
    )
    shown(run)

    assert [c.counters["seen"] for c in store] == [24, 48, 66, 90, 108]


def test_a_skipped_update_is_told(store: ckptfmt.Store) -> None:
    run = epochs(store)
    for number, _ in enumerate(run):
        run.applied(update=number != 0)

    assert (run.progress.skipped, run.progress.applied) == (8, 92)


def test_loaders_without_a_position_are_told_of(store: ckptfmt.Store) -> None:
    plain: Any = DataLoader(TensorDataset(torch.arange(SIZE)), batch_size=8, shuffle=True)
    shown(epochs(store, loader=plain), stop_after=6)
    run = epochs(store, loader=plain)
    shown(run)

    assert run.progress.seen >= 100
    assert run.report is not None
    assert any("shown again" in finding.reason for finding in run.report.findings)


def test_beginning_a_pass_draws_nothing_from_the_training(store: ckptfmt.Store) -> None:
    torch.manual_seed(3)
    expected = torch.rand(14).tolist()
    torch.manual_seed(3)
    model = net()
    torch.manual_seed(3)

    assert [torch.rand(1).item() for _ in epochs(store, model=model)] == expected


def raise_in_step(run: ckptfmt_torch.VirtualEpochs, step: int) -> None:
    for number, _ in enumerate(run):
        if number == step:
            signal.raise_signal(signal.SIGUSR1)


@pytest.mark.parametrize("previous", ["function", "ignored"])
def test_a_signal_saves_and_ends_and_the_old_handler_is_called(
    store: ckptfmt.Store, previous: str
) -> None:
    called: list[int] = []
    handler: Any = signal.SIG_IGN if previous == "ignored" else lambda n, _: called.append(n)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        run = epochs(store, save_on_signal=[signal.SIGUSR1])
        with pytest.raises(SystemExit) as ended:
            raise_in_step(run, 1)
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert ended.value.code == 128 + signal.SIGUSR1
    assert called == ([signal.SIGUSR1] if previous == "function" else [])
    with ckptfmt.open(store.url) as again:
        assert again.latest().counters["seen"] == 16


def test_a_signal_during_a_save_is_obeyed_after_the_next_step(store: ckptfmt.Store) -> None:
    def evaluate() -> dict[str, float]:
        signal.raise_signal(signal.SIGUSR1)
        return {}

    with pytest.raises(SystemExit):
        shown(epochs(store, save_on_signal=[signal.SIGUSR1], evaluate=evaluate))

    with ckptfmt.open(store.url) as again:
        assert [c.counters["seen"] for c in again] == [32, 40]


@pytest.mark.parametrize("wrong", [signal.SIGKILL, "SIGTERM"])
def test_a_signal_that_cannot_be_caught_is_refused(store: ckptfmt.Store, wrong: Any) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(UsageError, match="cannot be waited for"):
        shown(epochs(store, save_on_signal=[signal.SIGUSR1, wrong]))
    assert signal.getsignal(signal.SIGUSR1) is before


def test_one_signal_and_a_path_will_do(tmp_path: pathlib.Path) -> None:
    run = ckptfmt_torch.VirtualEpochs(
        tmp_path / "run", Progress(total=50, virtual_epochs=1), loader=loader(), model=net(),
        save_on_signal=signal.SIGUSR1,
    )  # fmt: skip
    with pytest.raises(SystemExit):
        raise_in_step(run, 1)
    assert [c.counters["seen"] for c in ckptfmt.open(tmp_path / "run")] == [16]


def test_a_late_end_of_a_step_is_logged(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    watch = loops.Watch([signal.SIGUSR1], deadline_seconds=0.01)
    with watch:
        signal.raise_signal(signal.SIGUSR1)
        assert watch._timer is not None
        watch._timer.join()

    assert "no step ended within 0.01 s of SIGUSR1" in caplog.text


def test_each_save_shows_what_saving_costs(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ckptfmt"):
        shown(epochs(store))
    found = [re.search(r"saving takes (\S+) % of the time", text) for text in caplog.messages]
    parts = [float(match[1]) for match in found if match]
    assert len(parts) == len(store)
    assert all(0 < part <= 100 for part in parts)


def test_costly_saving_is_told_once(
    store: ckptfmt.Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "MIN_SECONDS", 0.0)
    run = epochs(store)
    with caplog.at_level(logging.WARNING, "ckptfmt"):
        shown(run)

    assert caplog.text.count("saving takes") == 1
    assert 0.05 < run.saving_cost <= 1


def test_a_background_save_that_fails_is_raised(store: ckptfmt.Store) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"x": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(TypeError, match="odd/x"):
        shown(epochs(store, background=True, odd=Odd()))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(3, 2), 3),
        ([torch.zeros(4), torch.zeros(4)], 4),
        ({"name": "a", "x": (torch.zeros(()), torch.zeros(5, 1))}, 5),
    ],
)
def test_the_examples_of_a_batch(batch: Any, expected: int) -> None:
    assert examples_in(batch) == expected


@pytest.mark.parametrize("batch", ["text", {}, [torch.zeros(())], 3])
def test_a_batch_that_cannot_be_counted(batch: Any) -> None:
    with pytest.raises(UsageError, match="count="):
        examples_in(batch)


def test_ranks_share_a_batch() -> None:
    whole = next(iter(ckptfmt_torch.BatchSampler(SIZE, 8, seed=2)))
    shared = [
        index
        for r in range(3)
        for index in next(iter(ckptfmt_torch.BatchSampler(SIZE, 8, seed=2, rank=r, world=3)))
    ]

    assert sorted(shared) == sorted(whole)
    with pytest.raises(UsageError, match="at least one example"):
        ckptfmt_torch.BatchSampler(SIZE, 2, world=3)


def test_training_goes_on_with_the_same_bits(store: ckptfmt.Store) -> None:
    torch.manual_seed(1)
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    run = epochs(store, model=model, optimizer=optimizer)
    losses = [train(model, optimizer, 1)[0] for _ in run]

    other = net()
    fresh = torch.optim.Adam(other.parameters())
    with ckptfmt.open(store.url) as again:
        ckptfmt_torch.restore(again[2], model=other, optimizer=fresh)

    assert [train(other, fresh, 1)[0] for _ in losses[7:]] == losses[7:]
