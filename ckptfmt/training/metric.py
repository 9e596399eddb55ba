"""What a metric's name says of how it was measured.

    [SPLIT/]NAME[+averaged][+train-mode]     val/loss, val/loss+averaged, train/loss+train-mode

Values measured in different ways are not comparable, so they have different names: no query
can mix them up. `val_loss`, as Keras writes it, is of the split `val` too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ckptfmt.errors import UsageError

_AVERAGED: Final = "+averaged"
_TRAIN_MODE: Final = "+train-mode"
_KERAS_PREFIX: Final = "val_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One way to measure."""

    name: str  # such as loss; not empty
    split: str | None = None  # of the data: val, train, test, ...; None: not said
    averaged: bool = False  # with averaged weights (EMA, SWA)
    train_mode: bool = False  # with dropout, batch statistics: not as in inference

    def __post_init__(self) -> None:
        for part in (self.name, self.split):
            if part is not None and (not part or "+" in part):
                raise UsageError("part of a metric's name is empty or has a '+'", found=part)
        if self.split is not None and "/" in self.split:
            raise UsageError("a split has no '/'", found=self.split)

    def __str__(self) -> str:
        split = "" if self.split is None else f"{self.split}/"
        averaged = _AVERAGED if self.averaged else ""
        return f"{split}{self.name}{averaged}{_TRAIN_MODE if self.train_mode else ''}"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Return what a name says; a name without any of it says only itself.

        Raises:
            UsageError: it is empty, or has a '+' that says something else.
        """
        rest, train_mode = _without(text, _TRAIN_MODE)
        rest, averaged = _without(rest, _AVERAGED)
        split, slash, name = rest.partition("/")
        if not slash and rest.startswith(_KERAS_PREFIX) and rest != _KERAS_PREFIX:
            split, slash, name = "val", "_", rest.removeprefix(_KERAS_PREFIX)
        return cls(
            name=name if slash else rest,
            split=split if slash else None,
            averaged=averaged,
            train_mode=train_mode,
        )


def _without(text: str, end: str) -> tuple[str, bool]:
    return text.removesuffix(end), text.endswith(end)
