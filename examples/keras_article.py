"""Checkpoints in Keras: per epoch, per so many steps, per virtual epoch.

    python examples/keras_article.py [FOLDER]

The three ways a well-known pattern has of saving a run, on the UCI digits: 1,000 images, and a
model that is trained until it has seen 14.3 thousand. What is printed was counted and saved by
this run; a claim that does not hold is printed as such, and the exit status is 1 then. Needs
Keras with a backend (KERAS_BACKEND) and scikit-learn, for its copy of the digits.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

with warnings.catch_warnings():  # of the frameworks, while they are imported
    warnings.simplefilter("ignore")
    import keras
import numpy as np
from _page import Page
from sklearn.datasets import load_digits

import ckptfmt
from ckptfmt.training import Progress
from ckptfmt_keras import Checkpoint, Resume, fit_virtual, load_model

NUM_TRAINING_EXAMPLES = 1000
MORE = 100  # examples that arrive later
STOP_POINT = 14.3  # passes until it has converged
NUM_STEPS = 143  # the same in batches of 100
NUM_CHECKPOINTS = 15
VALIDATION = 200  # examples of a batch
EDGES = [k * 14_300 // NUM_CHECKPOINTS for k in range(1, NUM_CHECKPOINTS + 1)]
HEAD = ("run", "examples shown", "checkpoints", "held-out accuracy")


def digits(count: int = NUM_TRAINING_EXAMPLES) -> tuple[Any, Any]:
    """Return so many images to train on."""
    x, y = load_digits(return_X_y=True)
    return (x[:count] / 16).astype(np.float32), y[:count]


def held_out() -> tuple[Any, Any]:
    """Return the images to validate with."""
    x, y = load_digits(return_X_y=True)
    return (x[1200:] / 16).astype(np.float32), y[1200:]


def network() -> Any:
    """Return a small classifier, compiled, the same each time."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(32, "relu"), layers.Dropout(0.1), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    return model


def shown(name: str, url: str) -> tuple[str, str, str, str]:
    """Return a row about a run, as its store has it."""
    with ckptfmt.open(url) as store:
        last = store.latest()
        accuracy = f"{last.metrics['val_accuracy']:.1%}"
        return name, f"{last.counters['seen']:,}", str(len(store)), accuracy


def seen(url: str) -> list[int]:
    """Return at how many examples the checkpoints of a run were saved."""
    with ckptfmt.open(url) as store:
        return [int(checkpoint.counters["seen"]) for checkpoint in store]


def per_epoch(page: Page, folder: str) -> None:
    """Save after each epoch, and go on from the last one in another `fit`."""
    page.section("A checkpoint at the end of each epoch")
    url = f"{folder}/epochs"
    x, y = digits()
    model = network()
    model.fit(
        x, y, batch_size=64, epochs=3, validation_data=held_out(), verbose=0,
        callbacks=[Checkpoint(url, save_weights_only=False)],
    )  # fmt: skip
    page.table(HEAD, [shown("3 epochs, batches of 64", url)])
    page.claim("three checkpoints, a pass apart", seen(url) == [1000, 2000, 3000])

    again = load_model(f"{url}@latest")
    same = np.array_equal(
        again.predict(held_out()[0], verbose=0), model.predict(held_out()[0], verbose=0)
    )
    page.claim("the model that is loaded predicts what the trained one does, bit for bit", same)
    with ckptfmt.open(url) as store:
        last = store.latest()
    recorded, epochs = last.hyperparameters["keras"], last.counters["keras"]
    page.claim(
        "it says which optimizer was used, with what settings, how many epochs were planned"
        f" and how many are complete: {recorded['optimizer']['class']}, {epochs['epoch']} of"
        f" {epochs['epochs']}",
        recorded["optimizer"]["class"] == "Adam" and epochs["epoch"] == epochs["epochs"] == 3,
    )
    checkpoint = Checkpoint(url)
    history = network().fit(
        x, y, batch_size=64, epochs=5, validation_data=held_out(), verbose=0,
        callbacks=[checkpoint, Resume(checkpoint)],
    )  # fmt: skip
    page.claim(
        "a new model goes on from there: epochs 4 and 5 are trained, and the history has all 5",
        history.epoch == [0, 1, 2, 3, 4] and seen(url)[-2:] == [4000, 5000],
    )


def per_steps(page: Page, folder: str) -> None:
    """Save 15 times in 143 steps; then change the batch size."""
    page.section(f"{NUM_STEPS} steps, a checkpoint every {NUM_STEPS} // {NUM_CHECKPOINTS}")

    def endless(batch: int) -> Iterator[Any]:
        x, y = digits()
        while True:
            for at in range(0, len(x), batch):
                yield x[at : at + batch], y[at : at + batch]

    rows = []
    for batch in (100, 50):
        url = f"{folder}/steps-{batch}"
        network().fit(
            endless(batch), epochs=NUM_CHECKPOINTS,
            steps_per_epoch=NUM_STEPS // NUM_CHECKPOINTS, validation_data=held_out(),
            validation_batch_size=VALIDATION, shuffle=False, verbose=0,
            callbacks=[Checkpoint(url)],
        )  # fmt: skip
        rows.append(shown(f"batches of {batch}", url))
    page.table(HEAD, rows)
    first, second = seen(f"{folder}/steps-100"), seen(f"{folder}/steps-50")
    page.claim(
        f"{14_300 - first[-1]} examples fell out of the division, and half the batch is half"
        " the training",
        len(first) == 15 and first[-1] == 13_500 and 2 * second[-1] == first[-1],
    )


def per_virtual_epoch(page: Page, folder: str) -> None:
    """Save 15 times in 14,300 examples, whatever the batch size."""
    page.section("Virtual epochs: 14.3 times the data, in 15 pieces")
    rows, late = [], []
    for batch in (100, 50, 128):
        url = f"{folder}/virtual-{batch}"
        progress = Progress(
            dataset_size=NUM_TRAINING_EXAMPLES,
            stop_point=STOP_POINT,
            virtual_epochs=NUM_CHECKPOINTS,
        )
        fit_virtual(
            network(), digits(), progress, checkpoint=Checkpoint(url), batch_size=batch,
            validation_data=held_out(), validation_batch_size=VALIDATION,
        )  # fmt: skip
        rows.append(shown(f"batches of {batch}", url))
        late.append(max(a - b for a, b in zip(seen(url), EDGES, strict=True)) < batch)
    page.table(HEAD, rows)
    page.claim("no checkpoint is a batch late, no example is lost", all(late))


class Crash(keras.callbacks.Callback):  # type: ignore[misc]  # untyped
    """The machine fails at a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count down."""
        self._left -= 1
        if self._left == 0:
            raise OSError("the machine failed")


def failure(page: Page, folder: str) -> None:
    """Let the machine fail within a virtual epoch, and start the same program again."""
    page.section("The machine fails at step 70")
    url = f"{folder}/failed"

    def program(*others: Any) -> Any:
        model = network()
        checkpoint = Checkpoint(url, every_examples=300)
        progress = Progress(
            dataset_size=NUM_TRAINING_EXAMPLES,
            stop_point=STOP_POINT,
            virtual_epochs=NUM_CHECKPOINTS,
        )
        fit_virtual(
            model, digits(), progress, checkpoint=checkpoint, batch_size=100,
            callbacks=others, validation_data=held_out(), validation_batch_size=VALIDATION,
        )  # fmt: skip
        return model

    try:
        program(Crash(70))
    except OSError as error:
        page.quote(f"{type(error).__name__}: {error}")
    saved = seen(url)[-1]
    model = program()
    whole = load_model(f"{folder}/virtual-100@latest")
    same = all(
        np.array_equal(a, b)
        for a, b in zip(model.get_weights(), whole.get_weights(), strict=True)
    )
    page.claim(
        f"the same program, started again, went on from {saved:,} examples and ended with the"
        " weights of the run that nothing happened to, bit for bit",
        same and saved == 6_900,
    )


def more_data(page: Page, folder: str) -> None:
    """Let the data grow: first what it does, then the new size, then the new stop point."""
    page.section("100 examples more, in three steps that change one thing each")
    grown = NUM_TRAINING_EXAMPLES + MORE
    rows = []

    def fit(name: str, url: str, progress: Progress, **options: Any) -> Progress:
        checkpoint = Checkpoint(url)
        fit_virtual(
            network(), digits(grown), progress, checkpoint=checkpoint, batch_size=100,
            validation_data=held_out(), validation_batch_size=VALIDATION, **options,
        )  # fmt: skip
        rows.append(shown(name, url))
        assert checkpoint.progress is not None
        return checkpoint.progress

    old = Progress(
        dataset_size=NUM_TRAINING_EXAMPLES,
        stop_point=STOP_POINT,
        virtual_epochs=NUM_CHECKPOINTS,
    )
    old.declare(dataset_size=grown, dataset="with the new ones")  # the total stays
    first = fit("1. old settings, new data", f"{folder}/more", old)
    page.say(f"Passes over the data that was there: {float(first.passes or 0):.1f}.")
    new = Progress(dataset_size=grown, stop_point=STOP_POINT, virtual_epochs=NUM_CHECKPOINTS)
    second = fit("2. the new size", f"{folder}/size", new)
    longer = fit(
        "3. the stop point moved", f"{folder}/size", new,
        on_resume=lambda progress: progress.extend(stop_point=15.2),
    )  # fmt: skip
    page.table(HEAD, rows)
    page.claim(
        "1. shows as many examples as before: a higher error is due to the data",
        first.seen == 14_300,
    )
    page.claim(
        "2. shows each example as often as before, 14.3 times, to within a batch",
        0 <= second.seen - 15_730 < 100,
    )
    page.claim(
        "3. goes on from there to 15.2 passes; checkpoints 1 to 15 keep their meaning",
        0 <= longer.seen - 16_720 < 100 and longer.edge(15) == second.edge(15) == 15_730,
    )


def main(folder: str) -> int:
    """Tell the story."""
    page = Page()
    page.title(
        f"Checkpoints in Keras, on {keras.backend.backend()}",
        "One thousand images, converged after 14.3 passes, 15 checkpoints wanted.",
    )
    per_epoch(page, folder)
    per_steps(page, folder)
    per_virtual_epoch(page, folder)
    failure(page, folder)
    more_data(page, folder)
    return page.end("Every number above was counted and saved by these runs.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as name:
        sys.exit(main(name))
