"""Stop early, or train on and select; export the choice; fine-tune from it.

    python examples/select_and_fine_tune.py [FOLDER]

A small network learns 300 of the UCI digits, a fifth of them with a wrong label on purpose: it
first learns digits, then the mistakes by heart. Needs NumPy and scikit-learn (for its copy of
the digits). A claim that does not hold is printed as such, and the exit status is 1 then.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import digits_training as digits
import numpy as np
from _page import Page
from digits_training import Array
from safetensors.numpy import load_file

import ckptfmt
from ckptfmt import Store
from ckptfmt.errors import NotFoundError
from ckptfmt.training import EarlyStopping, Progress, Sampler, describe

HIDDEN = 128
BATCH = 20
RATE = 0.003
STOPPING = EarlyStopping(monitor="val_loss", patience=4_000, min_delta=0.005)  # examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run learns, and what it is measured with."""

    x: Array  # [examples, 64]
    y: Array  # [examples]
    held_x: Array
    held_y: Array


def first_task() -> Task:
    """Return 300 digits of which a fifth are labelled wrongly, and clean held-out ones."""
    data = digits.load_digits()
    x, y = data.train_x[:300], data.train_y[:300].copy()
    chance = np.random.default_rng(5)
    wrong = chance.permutation(len(y))[: len(y) // 5]
    y[wrong] = (y[wrong] + chance.integers(1, 10, len(wrong))) % 10
    return Task(x=x, y=y, held_x=data.held_x, held_y=data.held_y)


def second_task() -> Task:
    """Return a little fresh data: digits from a scanner that turns them upside down."""
    data = digits.load_digits()
    return Task(
        x=data.train_x[600:680, ::-1],
        y=data.train_y[600:680],
        held_x=data.held_x[:, ::-1],
        held_y=data.held_y,
    )


def fresh() -> dict[str, Any]:
    """Return the state of a run that has not seen anything."""
    chance = np.random.default_rng(7)
    model = {
        "w1": (chance.standard_normal((64, HIDDEN)) / 8).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": (chance.standard_normal((HIDDEN, 10)) / 11).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    return {"model": model, "optimizer": fresh_optimizer(model)}


def fresh_optimizer(model: dict[str, Array]) -> dict[str, Any]:
    """Return Adam's moments before the first step."""
    moments = ("mean", "square")
    return {"step": 0, **{m: {n: np.zeros_like(a) for n, a in model.items()} for m in moments}}


def loss_and_gradients(
    model: dict[str, Array], x: Array, y: Array
) -> tuple[float, dict[str, Array]]:
    """Return the mean loss of a batch, and the gradients."""
    hidden = np.maximum(x @ model["w1"] + model["b1"], 0)
    logp = digits.log_softmax(hidden @ model["w2"] + model["b2"])
    rows = np.arange(len(y))
    loss = float(-logp[rows, y].mean(dtype=np.float64))
    delta = np.exp(logp)
    delta[rows, y] -= 1
    delta /= np.float32(len(y))
    below = (delta @ model["w2"].T) * (hidden > 0)
    return loss, {
        "w1": x.T @ below,
        "b1": below.sum(axis=0),
        "w2": hidden.T @ delta,
        "b2": delta.sum(axis=0),
    }


def step(state: dict[str, Any], x: Array, y: Array) -> None:
    """Train on one batch with Adam, in place."""
    optimizer = state["optimizer"]
    optimizer["step"] += 1
    _, gradients = loss_and_gradients(state["model"], x, y)
    t = optimizer["step"]
    rate = np.float32(RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t))
    for name, gradient in gradients.items():
        mean, square = optimizer["mean"][name], optimizer["square"][name]
        mean += np.float32(0.1) * (gradient - mean)
        square += np.float32(0.001) * (gradient * gradient - square)
        state["model"][name] -= rate * mean / (np.sqrt(square) + np.float32(1e-8))


def train(
    store: Store,
    task: Task,
    state: dict[str, Any],
    progress: Progress,
    *,
    stopping: EarlyStopping | None = None,
) -> str:
    """Train to the stop point, or until early stopping says so; return why it ended."""
    sampler = Sampler(len(task.y), seed=7)
    while progress.remaining:
        batch = sampler.take(min(BATCH, progress.remaining))
        step(state, task.x[batch], task.y[batch])
        due = progress.advance(len(batch))
        if not due.checkpoint:
            continue
        loss, _ = loss_and_gradients(state["model"], task.x, task.y)
        val_loss, _ = loss_and_gradients(state["model"], task.held_x, task.held_y)
        store.save(
            {**state, "data": sampler.state()},
            counters=progress.state(),
            metrics={"loss": loss, "val_loss": val_loss},
        )
        verdict = None if stopping is None else stopping.judge(store.history())
        if verdict is not None and verdict.stop:
            return verdict.reason
    return "the stop point"


def start() -> Progress:
    """Return the progress of the first run: 40 passes over 300 examples, 12 checkpoints."""
    return Progress(dataset_size=300, stop_point=40, virtual_epochs=12, global_batch=BATCH)


def rows(store: Store) -> list[tuple[object, ...]]:
    """Return the course of a run as rows of a table."""
    return [
        (p.number, f"{p.seen:,}", f"{p.metrics['loss']:.3f}", f"{p.metrics['val_loss']:.3f}")
        for p in store.history()
    ]


HEAD = ("checkpoint", "seen", "loss", "val_loss")


def stop_early(page: Page, folder: pathlib.Path) -> None:
    """Let early stopping end the run."""
    page.section("Early stopping: cheap")
    store = ckptfmt.open(folder / "stopped")
    reason = train(store, first_task(), fresh(), start(), stopping=STOPPING)
    page.table(HEAD, rows(store))
    page.say(f"It ended because {reason}.")
    seen = store.latest().counters["seen"]
    page.claim(f"it ended after {seen:,} of 12,000 examples", seen < 12_000)
    again = EarlyStopping.restore(STOPPING.state()).judge(ckptfmt.open(store.url).history())
    page.claim("a new process comes to the same verdict", again.stop and again.reason == reason)


def train_on_and_select(page: Page, folder: pathlib.Path) -> Store:
    """Train to the end, then look back and choose."""
    page.section("Checkpoint selection: train on, then choose")
    store = ckptfmt.open(folder / "whole")
    train(store, first_task(), fresh(), start())
    page.table(HEAD, rows(store))
    best, last = store.best("val_loss"), store.latest()
    course = describe(store.history(), training="loss")
    page.say(f"The course: {course.kind}. {'; '.join(course.evidence)}.")
    value, final = best.metrics["val_loss"] or 0.0, last.metrics["val_loss"] or 0.0
    page.claim(
        f"the best, checkpoint {best.number}, has a loss of {value:.3f}, the last {final:.3f}",
        best.number < last.number and value < final,
    )
    stopped = ckptfmt.open(folder / "stopped").best("val_loss").metrics["val_loss"] or 0.0
    page.claim("it is at least as good as what early stopping had found", value <= stopped)
    return store


def export_the_fourth(page: Page, store: Store, folder: pathlib.Path) -> None:
    """Write one checkpoint as a final model, without optimizer and counters."""
    page.section("Export the fourth checkpoint")
    fourth = store[4]
    file = folder / "model.safetensors"
    ckptfmt.export(fourth, file)
    stored, written = fourth.load(select="model")["model"], load_file(file)
    same = all(written[name].tobytes() == array.tobytes() for name, array in stored.items())
    page.claim(
        f"{file.name} holds the model of checkpoint 4 bit by bit, and nothing else",
        same and written.keys() == stored.keys(),
    )
    page.say("The same on the command line: ckptfmt export whole@4 model.safetensors, or")
    page.say("ckptfmt export whole@best:val_loss model.safetensors for the best one.")


def fine_tune(page: Page, store: Store, folder: pathlib.Path) -> None:
    """Go on from an early and from the last checkpoint, on other data."""
    page.section("Fine-tune on 80 fresh examples, from the fourth and from the last")
    table, ends = [], []
    for name, parent in (("the fourth", store[4]), ("the last", store.latest())):
        model = parent.load(select="model")["model"]
        progress = Progress(
            dataset_size=80,
            stop_point=20,
            virtual_epochs=4,
            parent=(parent.id, parent.counters["seen"]),
        )
        tuned = ckptfmt.open(folder / f"from-{parent.number}")
        state = {"model": model, "optimizer": fresh_optimizer(model)}
        train(tuned, second_task(), state, progress)
        best = tuned.best("val_loss")
        ends.append(best.metrics["val_loss"] or 0.0)
        table.append((name, parent.counters["seen"], best.counters["seen"], f"{ends[-1]:.3f}"))
        restored = Progress.restore(tuned.latest().counters)
        page.claim(
            f"the run from {name} began at 0 and names its parent",
            restored.seen == 1_600 and restored.parent == (parent.id, parent.counters["seen"]),
        )
    page.table(("from", "that had seen", "best after", "val_loss"), table)
    better = "the fourth" if ends[0] < ends[1] else "the last"
    page.say(f"Here {better} is the better start, by {abs(ends[0] - ends[1]):.3f}.")


def main(folder: str) -> int:
    """Show the ways to a final model."""
    page = Page()
    page.title("Stop, select or train on", "One run, looked at in three ways.")
    root = pathlib.Path(folder)
    try:
        ckptfmt.open(root / "whole").latest()
    except NotFoundError:
        pass
    else:
        print("that folder has these runs already", file=sys.stderr)
        return 2
    stop_early(page, root)
    store = train_on_and_select(page, root)
    export_the_fourth(page, store, root)
    fine_tune(page, store, root)
    return page.end("Metrics, selection and parents were read back from the stores.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(name))
