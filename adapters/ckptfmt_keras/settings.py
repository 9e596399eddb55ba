"""What a `Checkpoint` callback was asked for, checked before the first step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import ckptfmt
from ckptfmt.errors import UsageError
from ckptfmt.training import Metric, Progress

EPOCH: Final = "epoch"
AT_SAVE: Final = "at_save"
_MIN: Final = ("loss", "error", "mse", "mae", "perplexity", "divergence", "hinge")
_MAX: Final = ("acc", "auc", "precision", "recall", "score", "f1", "iou", "r2")
_BEYOND: Final = "beyond_threshold/"  # a metric only where it is better than the threshold


@dataclass(frozen=True, kw_only=True)
class Settings:
    """See `Checkpoint` for each."""

    monitor: str
    mode: str
    verbose: int
    save_best_only: bool
    save_weights_only: bool
    save_freq: str | int | None
    initial_value_threshold: float | None
    evaluate: Callable[[], Mapping[str, float]] | Literal["at_save"] | None
    every_examples: int | None
    every_seconds: float
    background: bool
    hyperparameters: Mapping[str, Any] | None

    @property
    def ranked(self) -> str:
        """Name of the metric by which the best one is kept."""
        beyond = self.initial_value_threshold is not None
        return _BEYOND + self.monitor if beyond else self.monitor

    def metrics(
        self,
        values: Mapping[str, Any],
        measured: Mapping[str, float] | None = None,
        *,
        epoch_ended: bool,
    ) -> dict[str, float]:
        """Return metrics to store: Keras' logs, each named by how it was measured, and others.

        Raises:
            UsageError: the metric by which to keep the best is not among them.
        """
        found = {
            name if name.startswith("val_") else training_name(name): float(value)
            for name, value in values.items()
        }
        found |= {name: float(value) for name, value in (measured or {}).items()}
        value = found.get(self.monitor)
        if self.save_best_only and value is None and epoch_ended:
            raise UsageError(
                "the metric to keep the best by was not measured, so nothing is saved or"
                " deleted: give validation data, evaluate=, or another monitor=",
                monitor=self.monitor,
                measured=sorted(found),
            )
        limit = self.initial_value_threshold
        if limit is not None and value is not None and self._is_better(value, limit):
            found[self.ranked] = value
        return found

    def _is_better(self, value: float, limit: float) -> bool:
        return value < limit if self.mode == "min" else value > limit


def training_name(name: str) -> str:
    """Return the name of a running mean over an epoch, with dropout and moving weights."""
    return str(Metric(name=name.replace("/", "_"), split="train", train_mode=True))


def mode_of(monitor: str, mode: str) -> str:
    """Return "min" or "max".

    Raises:
        UsageError: "auto", and the name does not say which.
    """
    if mode in ("min", "max"):
        return mode
    if mode != "auto":
        raise UsageError("expected mode='min', 'max' or 'auto'", found=mode)
    low = monitor.lower()
    found = [
        way for way, words in (("min", _MIN), ("max", _MAX)) if any(w in low for w in words)
    ]
    if len(found) != 1:
        raise UsageError(
            "the name of this metric does not say whether more is better: pass mode='min' or"
            " mode='max'",
            monitor=monitor,
        )
    return found[0]


def check(
    *,
    monitor: str,
    save_best_only: bool,
    save_freq: str | int | None,
    virtual_epochs: Progress | None,
    evaluate: object,
    seconds: Iterable[float],
) -> str | int | None:
    """Check settings against each other; return when to save.

    Raises:
        UsageError: two contradict each other, or one is out of range.
    """
    if save_freq is not None and virtual_epochs is not None:
        raise UsageError(
            "save_freq counts epochs or batches of Keras, virtual_epochs examples: give one",
            save_freq=save_freq,
        )
    if save_freq is None and virtual_epochs is None:
        save_freq = EPOCH
    whole = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq is not None and save_freq != EPOCH and not whole:
        raise UsageError("expected save_freq='epoch' or a number of batches", found=save_freq)
    if not (evaluate in (None, AT_SAVE) or callable(evaluate)):
        raise UsageError("expected a function, or evaluate='at_save'", evaluate=evaluate)
    if any(value <= 0 for value in seconds):
        raise UsageError("seconds must be > 0", found=list(seconds))
    measured = monitor.startswith("val_") or "/" in monitor or evaluate is not None
    if save_best_only and not measured:
        raise UsageError(
            "this metric is a running mean over the epoch, with dropout and with weights that"
            " change: monitor a val_ metric, give evaluate=, or ask for it by the name it has",
            monitor=monitor,
            name=training_name(monitor),
        )
    return save_freq


def opened(
    store: ckptfmt.Store | str | os.PathLike[str],
    *,
    keep: ckptfmt.training.Keep | None,
    best: tuple[str, str] | None,
) -> ckptfmt.Store:
    """Return the store, opened with the rules that the settings ask for.

    Raises:
        UsageError: a pattern of file names, or an open store that has its own rules.
    """
    if isinstance(store, ckptfmt.Store):
        if keep is not None or best is not None:
            raise UsageError(
                "an open store has its own rules: give its URL, or open it with"
                " ckptfmt.open(url, keep=ckptfmt.keep(last=1, best=(metric, mode, 1)))"
            )
        return store
    url = os.fspath(store)
    if "{" in url or url.endswith((".keras", ".h5")):
        folder = url.rpartition("/")[0] or "runs/a"
        raise UsageError(
            "a store holds all checkpoints of a run, epoch and metrics inside: give a folder"
            f" such as {folder!r}, and load from '{folder}@latest' or '{folder}@best:val_loss'",
            found=url,
        )
    if best is not None and keep is not None:
        raise UsageError("save_best_only is the rule keep(last=1, best=...): give one of them")
    return ckptfmt.open(
        url, keep=keep if best is None else ckptfmt.keep(last=1, best=(*best, 1))
    )
