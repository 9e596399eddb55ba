"""Epochs, steps, examples: what stays the same when batch size, data and stop point change.

    python examples/virtual_epochs.py [FOLDER]

A million examples, and a model that converges once it has seen 14.3 million. Every number is
counted while batches are drawn; a claim that does not hold is printed as such, and the exit
status is 1 then. Only the model is left out: it would change none of the numbers.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from _page import Page

import ckptfmt
from ckptfmt import Store
from ckptfmt.training import Progress, check

MILLION = 1_000_000
MORE = 100_000  # examples that arrive later
STOP_POINT = 14.3  # passes over the first million until it converges
CHECKPOINTS = 15
EDGES = [k * 14_300_000 // CHECKPOINTS for k in range(1, CHECKPOINTS + 1)]


@dataclass(slots=True)
class Shown:
    """What a run showed to its model."""

    recipe: str
    begun_at: int = 0
    examples: int = 0
    saved_at: list[int] = field(default_factory=list)

    def row(self) -> tuple[str, str, str, str]:
        """Return it as a row of a table."""
        gaps = [b - a for a, b in itertools.pairwise([self.begun_at, *self.saved_at])]
        between = f"{min(gaps):,}" if min(gaps) == max(gaps) else f"{min(gaps):,}-{max(gaps):,}"
        return self.recipe, f"{self.examples:,}", f"{len(self.saved_at)}", between


HEAD = ("recipe", "examples shown", "checkpoints", "examples between them")


def passes(size: int, batch: int) -> Iterator[int]:
    """Yield the batches of one pass over the data; the last one may be smaller."""
    whole, rest = divmod(size, batch)
    yield from (batch for _ in range(whole))
    if rest:
        yield rest


def fixed_epochs(recipe: str, *, size: int, epochs: int, batch: int) -> Shown:
    """Train the usual way: so many passes over the data, a checkpoint after each."""
    shown = Shown(recipe)
    for _ in range(epochs):
        for examples in passes(size, batch):
            shown.examples += examples
        shown.saved_at.append(shown.examples)
    return shown


def fixed_steps(recipe: str, *, steps_per_epoch: int, batch: int) -> Shown:
    """Train so many steps a checkpoint, on data that is repeated for ever."""
    shown = Shown(recipe)
    for _ in range(CHECKPOINTS):
        for _ in range(steps_per_epoch):
            shown.examples += batch
        shown.saved_at.append(shown.examples)
    return shown


def virtual_epochs(
    recipe: str, progress: Progress, store: Store, *, batch: int, until: int | None = None
) -> Shown:
    """Train with examples as the clock; `until` a kill, or to the stop."""
    shown = Shown(recipe, progress.seen, progress.seen)
    while progress.remaining and (until is None or shown.examples < until):
        examples = min(batch, progress.remaining)  # the last batch is cut to hit the total
        shown.examples += examples
        due = progress.advance(examples)
        if due.checkpoint:
            store.save({"model": {"shown": shown.examples}}, counters=progress.state())
            shown.saved_at.append(shown.examples)
    return shown


def epochs(page: Page) -> None:
    """Count passes over the data."""
    page.section("15 epochs")
    first = fixed_epochs("1,000,000 examples", size=MILLION, epochs=15, batch=100)
    grown = fixed_epochs("100,000 more", size=MILLION + MORE, epochs=15, batch=100)
    page.table(HEAD, [first.row(), grown.row()])
    page.claim(
        f"the model had converged {first.examples - 14_300_000:,} examples before the end",
        first.examples - 14_300_000 == 700_000,
    )
    page.claim(
        "with 100,000 examples more, 1,500,000 more are shown: if the error is higher, is it"
        " the new data, or the longer training? Two things changed at once",
        grown.examples - first.examples == 1_500_000,
    )


def steps(page: Page) -> None:
    """Count steps."""
    page.section("143,000 steps, a checkpoint every 143,000 // 15")
    per_epoch = 143_000 // CHECKPOINTS
    first = fixed_steps("batches of 100", steps_per_epoch=per_epoch, batch=100)
    small = fixed_steps("batches of 50", steps_per_epoch=per_epoch, batch=50)
    page.table(HEAD, [first.row(), small.row()])
    page.claim(
        f"{14_300_000 - first.examples} examples fell out of the division, and half the batch"
        " is half the training",
        first.examples == 14_299_500 and 2 * small.examples == first.examples,
    )


def formula(page: Page) -> None:
    """Count steps again, by the formula that keeps the examples almost constant."""
    page.section("Virtual epochs by the usual formula: total // (batch * 15) steps each")
    rows, lost = [], []
    for batch in (50, 100, 128, 4096, 65536):
        per_epoch = 14_300_000 // (batch * CHECKPOINTS)
        shown = fixed_steps(f"batches of {batch:,}", steps_per_epoch=per_epoch, batch=batch)
        rows.append(shown.row())
        lost.append(14_300_000 - shown.examples)
    page.table(HEAD, rows)
    page.claim(
        "the examples shown are nearly the same for every batch size;"
        f" lost are {', '.join(f'{n:,}' for n in lost)}",
        lost == [500, 500, 1_760, 45_920, 537_440],
    )


def examples(page: Page, folder: str) -> None:
    """Count examples."""
    page.section("Virtual epochs by counting: edge(k) = k * total // 15")
    rows, exact, late = [], True, 0
    for batch in (100, 128, 4096, 65536):
        progress = Progress(
            dataset_size=MILLION, stop_point=STOP_POINT, virtual_epochs=CHECKPOINTS
        )
        store = ckptfmt.open(f"{folder}/batch-{batch}")
        shown = virtual_epochs(f"batches of {batch:,}", progress, store, batch=batch)
        rows.append(shown.row())
        exact &= shown.examples == 14_300_000 == store.latest().counters["seen"]
        late = max(late, *(at - edge for at, edge in zip(shown.saved_at, EDGES, strict=True)))
    page.table(HEAD, rows)
    page.claim("every batch size shows 14,300,000 examples and lost none", exact)
    page.claim(f"no checkpoint was later than one batch: at most {late:,}", 0 <= late < 65_536)


def smaller_batch(page: Page, folder: str) -> None:
    """Kill a run and go on with half the batch."""
    page.section("Batches of 100, killed half-way, on with batches of 50")
    store = ckptfmt.open(f"{folder}/smaller-batch")
    progress = Progress(
        dataset_size=MILLION,
        stop_point=STOP_POINT,
        virtual_epochs=CHECKPOINTS,
        global_batch=100,
    )
    before = virtual_epochs("before the kill", progress, store, batch=100, until=7_500_000)

    progress = Progress.restore(ckptfmt.open(store.url).latest().counters)
    resumed_at = progress.seen
    segment = progress.declare(global_batch=50)
    after = virtual_epochs("after it", progress, store, batch=50)
    page.table(HEAD, [before.row(), after.row()])
    page.claim(
        f"resumed from {resumed_at:,} examples; the {before.examples - resumed_at:,} after that"
        " checkpoint were shown again, to weights that had not seen them, and count once",
        resumed_at == before.saved_at[-1] < before.examples
        and progress.seen == 14_300_000 == after.examples,
    )
    saved = before.saved_at + after.saved_at
    page.claim(
        "all 15 checkpoints are where they would have been, to within a batch",
        all(0 <= at - edge < 100 for at, edge in zip(saved, EDGES, strict=True)),
    )
    page.claim(
        f"the checkpoints say how: batches of 50 from example {segment.from_seen:,} on",
        store.latest().counters["progress"]["segments"][1]["global_batch"] == 50,
    )


def more_data(page: Page, folder: str) -> None:
    """Let the data grow: first what it does, then the new size, then the new stop point."""
    page.section("100,000 examples more, in three steps that change one thing each")
    rows = []
    grown = MILLION + MORE

    progress = Progress(
        dataset_size=MILLION, stop_point=STOP_POINT, virtual_epochs=CHECKPOINTS, dataset="may"
    )
    progress.declare(dataset_size=grown, dataset="june")  # the total stays
    old = virtual_epochs(
        "1. old settings, new data", progress, ckptfmt.open(f"{folder}/old"), batch=100
    )
    rows.append((*old.row(), f"{float(progress.passes or 0):.2f}"))
    same = old.examples == 14_300_000 and old.saved_at[-1] == EDGES[-1]

    progress = Progress(
        dataset_size=grown, stop_point=STOP_POINT, virtual_epochs=CHECKPOINTS, dataset="june"
    )
    check(progress, dataset_size=grown, dataset="june")  # an error, had the data changed again
    store = ckptfmt.open(f"{folder}/new")
    size = virtual_epochs("2. the new size", progress, store, batch=100)
    rows.append((*size.row(), f"{float(progress.passes or 0):.2f}"))

    progress = Progress.restore(store.latest().counters)
    progress.extend(stop_point=15.2)  # it was still getting better
    longer = virtual_epochs("3. the stop point moved", progress, store, batch=100)
    rows.append((*longer.row(), f"{float(progress.passes or 0):.2f}"))

    page.table((*HEAD, "passes"), rows)
    page.claim(
        "1. shows exactly the examples of the run before: a higher error is due to the data",
        same,
    )
    page.claim(
        "2. shows each example as often as before, 14.3 times",
        size.examples == 15_730_000 and len(size.saved_at) == CHECKPOINTS,
    )
    page.claim(
        f"3. goes on from there, {longer.examples - size.examples:,} examples longer:"
        f" checkpoints 1 to 15 keep their meaning, {progress.virtual_epoch} is the last",
        longer.examples == 16_720_000
        and progress.edge(15) == 15_730_000
        and progress.virtual_epoch == 16,
    )


def main(folder: str) -> int:
    """Tell the story."""
    page = Page()
    page.title(
        "Examples are the clock",
        "One million examples, converged after 14.3 passes, 15 checkpoints wanted.",
    )
    epochs(page)
    steps(page)
    formula(page)
    examples(page, folder)
    smaller_batch(page, folder)
    more_data(page, folder)
    return page.end("Every number above was counted, batch by batch.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(name))
