"""Batches for `fit` that know which example comes next: the data position of a run.

`fit` asks for batches ahead of the steps that use them, and asks again for the first ones. So
a batch is found by its number, and only `consumed` moves the position, by what was trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeAlias

import keras
import numpy as np

from ckptfmt.checks import Finding
from ckptfmt.errors import MismatchError, UsageError
from ckptfmt.training import Sampler
from ckptfmt_keras import loaders

_log: Final = logging.getLogger("ckptfmt")

Batch: TypeAlias = tuple[Any, ...]


class Feed(Protocol):
    """What a run trains on, from its position on."""

    def reader(self) -> Callable[[int], Batch]:
        """Return what gives batches by number, from 0 at what is the position now."""

    def consumed(self, steps: int) -> int:
        """Move the position on by batches that were trained on; return their examples."""

    def state(self) -> dict[str, Any]:
        """Return the position as plain values."""

    def restore(self, state: Mapping[str, Any]) -> list[Finding]:
        """Go on from such a state; return what is not as it was."""


class Arrays:
    """Arrays in a shuffled order of their own in each pass; batches go across passes.

    Args:
        arrays: (x, y) or (x, y, sample_weight), each an array or a tree of arrays.
        batch_size: Examples of each batch.
        seed: The same size and seed give the same order everywhere.

    Raises:
        UsageError: the arrays have no length, or different ones.
    """

    def __init__(self, arrays: Any, batch_size: int, *, seed: int = 0) -> None:
        self._arrays = arrays if isinstance(arrays, tuple) else (arrays,)
        lengths = {len(one) for one in keras.tree.flatten(self._arrays) if one is not None}
        if len(lengths) != 1:
            raise UsageError("expected arrays of one length", lengths=sorted(lengths))
        self.size = lengths.pop()
        self._batch_size = batch_size
        self._sampler = Sampler(self.size, seed=seed)
        self._since = 0  # examples beyond the position of the sampler

    def reader(self) -> Callable[[int], Batch]:
        here = self._moved().state()

        def batch(number: int) -> Batch:
            ahead = Sampler.restore(here)
            ahead.skip(number * self._batch_size)
            places = ahead.take(self._batch_size)
            found: Batch = keras.tree.map_structure(
                lambda one: None if one is None else np.asarray(one)[places], self._arrays
            )
            return found

        return batch

    def consumed(self, steps: int) -> int:
        examples = steps * self._batch_size
        self._since += examples
        return examples

    def state(self) -> dict[str, Any]:
        return {"kind": "arrays", "sampler": self._moved().state()}

    def _moved(self) -> Sampler:
        self._sampler.skip(self._since)
        self._since = 0
        return self._sampler

    def restore(self, state: Mapping[str, Any]) -> list[Finding]:
        if state.get("kind") != "arrays":
            return [_other_kind(state, "arrays")]
        self._sampler, self._since = Sampler.restore(state["sampler"]), 0
        self._sampler.resize(self.size)  # another size was declared
        return []


class Stream:
    """Batches in the order in which something yields them, pass after pass.

    A resumed run passes over what was seen: exactly, where a pass has the same order in each
    process. The last batch that was trained on tells whether it has; if not, `restore` says so.

    Args:
        passes: Returns the batches of a pass, such as `lambda: iter(loader)`; or an iterator
            that never ends.
    """

    def __init__(self, passes: Callable[[], Iterator[Any]] | Iterator[Any]) -> None:
        self._passes = passes if callable(passes) else None
        self._ahead: dict[int, Batch] = {}  # by number since the start of this process
        self._taken = 0  # batches that were fetched since then
        self._base = 0  # number of the batch at the position
        self._in_pass = 0  # place of the next one to fetch within its pass
        self._pass = 0  # number of that pass
        self._marks: dict[int, tuple[int, int, int]] = {}  # number → pass, place, examples
        self._last: Batch | None = None  # the one before the position
        self._lock = threading.Lock()  # the backend's thread fetches ahead
        self._source = passes() if callable(passes) else passes

    def reader(self) -> Callable[[int], Batch]:
        base = self._base
        return lambda number: self._batch(base + number)

    def _batch(self, wanted: int) -> Batch:
        with self._lock:
            while wanted >= self._taken:
                found, at = self._fetch()
                self._ahead[self._taken] = found
                self._marks[self._taken] = (*at, examples_in(found))
                self._taken += 1
            return self._ahead[wanted]

    def consumed(self, steps: int) -> int:
        examples = 0
        with self._lock:
            for number in range(self._base, self._base + steps):
                self._last = self._ahead.pop(number)
                examples += self._marks.pop(number)[2]
            self._base += steps
        return examples

    def state(self) -> dict[str, Any]:
        with self._lock:
            at = self._marks.get(self._base, (self._pass, self._in_pass, 0))
        last = None if self._last is None else _digest(self._last)
        return {"kind": "stream", "pass": at[0], "batch": at[1], "last": last}

    def restore(self, state: Mapping[str, Any]) -> list[Finding]:
        if state.get("kind") != "stream":
            return [_other_kind(state, "stream")]
        for _ in range(state["pass"]):
            self._again()
        for _ in range(state["batch"]):
            self._last, _ = self._fetch()
        # A new pass may have any order: nothing of it was shown.
        if not state["batch"] or self._last is None or "last" not in state:
            return []
        now = _digest(self._last)
        return [] if now == state["last"] else [_other_order(state["last"], now)]

    def _fetch(self) -> tuple[Batch, tuple[int, int]]:
        """Return the next batch, and its place: pass and number within it."""
        for found in itertools.islice(self._source, 1):
            self._in_pass += 1
            return _standard(found), (self._pass, self._in_pass - 1)
        if not self._in_pass:
            raise UsageError("the data gave no batch", found=type(self._source).__name__)
        self._again()
        return self._fetch()

    def _again(self) -> None:
        if self._passes is None:
            raise UsageError(
                "the generator is exhausted before the stop point: give a function that returns"
                " a new one for each pass, or one that never ends",
                batches=self._taken,
            )
        self._source = self._passes()
        self._pass, self._in_pass = self._pass + 1, 0


class Steps(keras.utils.PyDataset):
    """So many batches of a feed, from its position on, for one call of `fit`."""

    def __init__(self, feed: Feed, steps: int) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self._batch, self._steps = feed.reader(), steps
        self.failed: UsageError | None = None  # TensorFlow turns it into an error of its own

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, number: int) -> Batch:
        try:
            return self._batch(number)
        except UsageError as error:
            self.failed = error
            raise


def feed_of(data: Any, batch_size: int, *, seed: int = 0) -> Feed:
    """Return the feed of whatever `fit` takes: arrays, a data set, a loader, a generator."""
    if isinstance(data, keras.utils.PyDataset):
        return Stream(lambda: (data[number] for number in range(len(data))))
    if isinstance(data, tuple | dict) or hasattr(data, "__array__"):
        return Arrays(data, batch_size, seed=seed)
    if isinstance(data, Iterator) or callable(data):
        return Stream(data)
    if isinstance(data, Iterable):
        return Stream(loaders.passes(data, seed) if loaders.is_loader(data) else data.__iter__)
    raise UsageError("expected arrays, a data set or batches", found=type(data).__name__)


def examples_in(batch: Batch) -> int:
    """Return the number of examples of a batch: the length of its first array.

    Raises:
        UsageError: it holds none.
    """
    for one in keras.tree.flatten(batch):
        if getattr(one, "shape", None):
            return int(one.shape[0])
    raise UsageError(
        "the batch holds no array to count examples by", found=type(batch).__name__
    )


def _standard(batch: Any) -> Batch:
    if isinstance(batch, list | tuple):
        return tuple(_host(one) for one in batch)
    return (_host(batch),)


def _host(value: Any) -> Any:
    return keras.tree.map_structure(
        lambda one: one if one is None else keras.ops.convert_to_numpy(one), value
    )


def _digest(batch: Batch) -> str:
    """Return what tells batches apart, of values, dtypes and shapes."""
    found = hashlib.blake2b(digest_size=16)
    for one in keras.tree.flatten(batch):
        value = np.asarray(one)
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(
            repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        )
    return found.hexdigest()


def _other_order(saved: str, now: str) -> Finding:
    reason = (
        "the last batch that was trained on is another one here: the data comes in another"
        " order than in the process that saved, so some examples of this pass will be shown"
        " again and others left out: give the data a seed, or give arrays and seed="
    )
    _log.warning("going on in another order of the data: %s", reason)
    return Finding(severity="warning", name="data", saved=saved, now=now, reason=reason)


def _other_kind(state: Mapping[str, Any], now: str) -> Finding:
    if "kind" not in state:
        raise MismatchError("this is no position in data of this adapter", path="data")
    return Finding(
        severity="warning",
        name="data",
        saved=state["kind"],
        now=now,
        reason="the position in the data is of another kind: a pass begins anew, and examples"
        " of the interrupted one may be shown again",
    )
