"""`make demo`: a training run is killed in the middle of saves and ends as if it never was.

    python examples/digits_resume.py [--folder DIR]

Everything that is printed is measured in this run. A claim that does not hold is printed as
such, and the exit status is 1 then. Needs NumPy and scikit-learn (for its copy of the UCI
digits), no GPU, no framework, no network; takes well below two minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import digits_training as training
import numpy as np
from _killing import Kill, lives, resumed_from, run_to_the_end
from _page import Page, size
from safetensors.numpy import load_file

import ckptfmt
from ckptfmt import tree
from ckptfmt.errors import CheckpointError, IntegrityError


def train(page: Page, whole: pathlib.Path) -> None:
    """Train without a break: the run to compare with."""
    page.section("Train without a break")
    began = time.monotonic()
    run_to_the_end(whole)
    last = ckptfmt.open(whole).latest()
    page.say(
        f"An MLP of {last.sections[0].nbytes // 4:,} weights, Adam, dropout, shuffled data;"
        f" {last.counters['seen']:,} examples in {time.monotonic() - began:.0f} s;"
        f" {last.number} checkpoints of {size(last.nbytes)}; held-out accuracy"
        f" {last.metrics['val_accuracy']:.1%}. This is the run to compare with."
    )


def train_and_kill(page: Page, killed: pathlib.Path) -> None:
    """Train with kills, and check what each new process goes on from."""
    page.section("The same run, killed with SIGKILL in the middle of its saves")
    kills: list[Kill] = []
    wrong: list[Kill] = []

    def rows() -> Iterator[tuple[str, str, str]]:
        for kill, printed in lives(killed):
            resumed = resumed_from(printed)
            kills.append(kill)
            if kill.scene is not None and resumed != kill.scene.survivor:
                wrong.append(kill)
            yield kill.moment, kill.remains, f"checkpoint {resumed}" if resumed else "(nothing)"

    page.feed(
        ("killed when", "what the dead process left", "next resumed"), (29, 46, 13), rows()
    )
    torn = [kill for kill in kills if kill.scene is not None and not kill.scene.committed]
    page.claim(
        f"{len(torn)} of {len(kills)} kills hit a save before its commit, which is never seen",
        len(torn) >= 3,
    )
    page.claim("each new process resumed from the newest committed checkpoint", not wrong)
    swept = ckptfmt.open(killed).collect(dry_run=True)
    page.claim(
        "later saves have removed what the dead ones had left: 0 bytes to collect",
        not swept.files and not swept.blocked,
    )


def compare_runs(page: Page, whole: pathlib.Path, killed: pathlib.Path) -> None:
    """Compare the ends of both runs bit by bit."""
    page.section("Both runs end with the same bits")
    one, other = ckptfmt.open(whole).latest(), ckptfmt.open(killed).latest()
    first, second = leaves(one.load()), leaves(other.load())
    rows = []
    for section in one.sections:
        own = [p for p in first if p.partition("/")[0] == section.name]
        differ = sum(first[p] != second.get(p) for p in own)
        rows.append((section.name, len(own), f"{section.nbytes:,}", differ))
    page.table(("section", "leaves", "bytes", "different"), rows)
    page.claim(
        "weights, Adam's moments, generators, data order and position, loss curve: identical",
        first == second,
    )
    page.claim(
        f"counters and metrics of all {one.number} checkpoints are the same, deleted ones too",
        (one.number, one.counters, one.metrics) == (other.number, other.counters, other.metrics)
        and [(a.number, a.seen, a.metrics) for a in one.history]
        == [(a.number, a.seen, a.metrics) for a in other.history],
    )


def leaves(state: dict[str, Any]) -> dict[str, object]:
    """Return what makes each leaf of a state tree what it is, bit by bit."""
    return {
        path: (value.dtype.str, value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else (type(value), repr(value))
        for path, value in tree.paths(state)
    }


def show_list(page: Page, killed: pathlib.Path) -> None:
    """List what the store holds."""
    page.section("What the store holds")
    store = ckptfmt.open(killed)
    page.quote(f"$ ckptfmt ls {killed.name}")
    done = subprocess.run(
        [sys.executable, "-m", "ckptfmt", "ls", killed.name],
        cwd=killed.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    page.verbatim(done.stdout + done.stderr)
    deleted = [row.number for row in store.entries() if row.status == "tombstone"]
    page.claim(
        f"keep(last=3, best=('val_loss', 'min', 2)) kept {len(store)} and deleted"
        f" {len(deleted)}; every one of the kept loads, verified",
        done.returncode == 0 and all(checkpoint.verify().ok for checkpoint in store),
    )


def export_best(page: Page, killed: pathlib.Path, folder: pathlib.Path) -> None:
    """Write the best weights as plain safetensors and read them with that library."""
    page.section("The best checkpoint as a plain safetensors file")
    best = ckptfmt.open(killed).best("val_loss")
    file = folder / "best.safetensors"
    ckptfmt.export(best, file)
    arrays = load_file(file)
    page.say(
        f"Checkpoint {best.number}, after {best.counters['seen']:,} examples, exported to"
        f" {file.name} ({size(file.stat().st_size)}). The safetensors library finds:"
    )
    page.table(
        ("name", "dtype", "shape"),
        [(name, array.dtype, array.shape) for name, array in sorted(arrays.items())],
    )
    model = best.load(select="model/**")["model"]
    page.claim(
        "same names, same bits as in the checkpoint",
        {name: leaves({"": a}) for name, a in arrays.items()}
        == {
            f"{layer}.{name}": leaves({"": array})
            for layer, own in model.items()
            for name, array in own.items()
        },
    )
    found = training.evaluate(model)
    page.claim(
        f"held-out accuracy {found['val_accuracy']:.2%}, as recorded when it was saved",
        found["val_accuracy"] == best.metrics["val_accuracy"],
    )


def fine_tune(page: Page, killed: pathlib.Path) -> None:
    """Train the last layer only, and count the bytes that each checkpoint writes."""
    page.section("Fine-tuning with frozen layers writes what changed")
    store = ckptfmt.open(killed)
    best = store.best("val_loss")
    run = training.Run.restore(best)
    model = run.model
    mean, square = ({"layer3": training.zeros_like(model)["layer3"]} for _ in range(2))
    digits = training.load_digits()
    x = training.body(model, 1 - digits.train_x)  # a new task: white on black
    rows = []
    checkpoints: list[ckptfmt.Checkpoint] = []
    exact = True
    for step in range(1, 41):
        batch = run.generator.integers(len(x), size=training.BATCH)
        _, gradient, _ = training.head(model, x[batch], digits.train_y[batch])
        training.adam(model, {"layer3": gradient}, mean, square, step)
        if step % 10:
            continue
        state = {"model": model, "optimizer": {"step": step, "mean": mean, "square": square}}
        parent = checkpoints[-1] if checkpoints else best
        saved = store.save(state, counters={"step": step}, tags=["head"], parent=parent)
        exact = exact and leaves(saved.load()) == leaves(state)
        checkpoints.append(saved)
        rows.append((saved.number, size(saved.nbytes), size(saved.new_bytes)))
    page.table(("checkpoint", "its state", "written"), rows)
    state_bytes = sum(c.nbytes for c in checkpoints)
    written = sum(c.new_bytes for c in checkpoints)
    page.claim(
        f"{size(written)} written for {size(state_bytes)} of state"
        f" ({written / state_bytes:.1%}); each checkpoint loads whole, bit by bit",
        exact and written < state_bytes / 10,
    )
    freed = store.delete(best.number)
    after = store.latest()
    page.claim(
        f"checkpoint {best.number}, which wrote the shared bytes, can be deleted"
        f" ({size(freed.nbytes)} freed): checkpoint {after.number} still loads",
        after == checkpoints[-1] and leaves(after.load()) == leaves(state),
    )


def flip_a_byte(page: Page, whole: pathlib.Path, copy: pathlib.Path) -> None:
    """Damage one byte of one weight in a copy of the store."""
    page.section("One flipped byte")
    shutil.copytree(whole, copy)
    sound = ckptfmt.open(whole).latest()
    (file,) = (copy / "data").glob(f"{sound.id}-model-*.safetensors")
    good = load_file(file)
    data = bytearray(file.read_bytes())
    at = len(data) // 3
    data[at] ^= 0x10
    file.write_bytes(data)
    wanted = f"model/{array_at(bytes(data), at)[0].replace('.', '/')}"
    page.say(f"In a copy, byte {at:,} of data/{file.name} is changed. ckptfmt says:")
    damaged = ckptfmt.open(copy)
    try:
        damaged.latest().load()
    except IntegrityError as caught:
        error: CheckpointError | None = caught
    else:
        error = None
    page.quote(f"{type(error).__name__}: {error}")
    where = error.where if error is not None else {}
    page.claim(
        f"the error names the array, the file and the place: {wanted}",
        (where.get("path"), where.get("file")) == (wanted, f"data/{file.name}")
        and where.get("offset") == array_at(bytes(data), at)[1],
    )
    page.claim(
        "verify() finds exactly this one problem; all other checkpoints are sound",
        [len(c.verify().problems) for c in damaged] == [0] * (len(damaged) - 1) + [1],
    )
    rest = damaged.latest().load(select=["optimizer/**", "rng/**"])
    page.claim(
        "what is not damaged can still be loaded, verified",
        leaves(rest) == leaves(sound.load(select=["optimizer/**", "rng/**"])),
    )
    bad = load_file(file)
    wrong = sum(int((good[n] != bad[n]).sum()) for n in good)
    page.say(
        f"A reader without digests takes the same file as it is: safetensors loads it without"
        f" an error, with {wrong} wrong weight."
    )


def array_at(data: bytes, offset: int) -> tuple[str, int]:
    """Return name and first byte of the array around a byte of a safetensors file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        if first <= offset - start < end:
            return str(name), start + first
    return "(no array)", 0


def tear_a_manifest(page: Page, whole: pathlib.Path, copy: pathlib.Path) -> None:
    """Cut the newest manifest short in a copy of the store, and go on."""
    page.section("A torn manifest")
    shutil.copytree(whole, copy)
    newest = ckptfmt.open(whole).latest()
    before = list(ckptfmt.open(whole))[-2]
    manifest = copy / "manifests" / f"{newest.number:010d}-000.ckpt"
    nbytes = manifest.stat().st_size
    os.truncate(manifest, nbytes // 2)
    page.say(
        f"In another copy, {manifest.name} is cut from {nbytes:,} to {nbytes // 2:,} bytes:"
    )
    store = ckptfmt.open(copy)
    with warnings_of("ckptfmt") as warnings:
        found = store.latest()
    for warning in warnings:
        page.quote(f"WARNING {warning}")
    page.claim(
        f"latest() passes over checkpoint {newest.number} and gives {found.number}, the one"
        " before",
        found.number == before.number and str(newest.number) in " ".join(warnings),
    )
    saved = store.save(found.load(), counters=dict(found.counters))
    page.claim(
        f"the next save succeeds, as checkpoint {saved.number}; nothing of"
        f" {newest.number} is deleted or overwritten",
        saved.number == newest.number + 1
        and manifest.stat().st_size == nbytes // 2
        and leaves(store.latest().load()) == leaves(found.load())
        and all((copy / "data" / file.name).exists() for file in (whole / "data").iterdir()),
    )


@contextlib.contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """Collect what a logger warns of."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collector(logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def demo(folder: pathlib.Path) -> int:
    """Run all acts in an empty folder and return the exit status."""
    began = time.monotonic()
    page = Page()
    page.title(
        "ckptfmt: kill a training run in the middle of its saves",
        "UCI digits, a network in NumPy, no framework. Every number below was measured just"
        " now; every ✓ was checked.",
    )
    whole, killed = folder / "whole", folder / "killed"
    train(page, whole)
    train_and_kill(page, killed)
    compare_runs(page, whole, killed)
    show_list(page, killed)
    export_best(page, killed, folder)
    fine_tune(page, killed)
    flip_a_byte(page, whole, folder / "flipped")
    tear_a_manifest(page, whole, folder / "torn")
    return page.end(f"{time.monotonic() - began:.0f} seconds.")


def main() -> int:
    """Run the demo in a temporary folder, or in the one that was given."""
    parser = argparse.ArgumentParser(description="kill a training run in its saves, and resume")
    parser.add_argument("--folder", type=pathlib.Path, help="empty or new; is left there")
    folder = parser.parse_args().folder
    if importlib.util.find_spec("sklearn") is None:
        parser.error("the digits come with scikit-learn: pip install scikit-learn")
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        return demo(folder)
    with tempfile.TemporaryDirectory(prefix="ckptfmt-demo-") as name:
        return demo(pathlib.Path(name))


if __name__ == "__main__":
    sys.exit(main())
