"""`ckptfmt doctor`: does a loaded model predict as when it was saved, and if not, why?"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ckptfmt
from ckptfmt.checks import Cause, Probe, Subject, examine
from ckptfmt.checks.subject import Experiment
from ckptfmt.cli import address, exits
from ckptfmt.cli.screen import Screen
from ckptfmt.cli.table import Column, Styled
from ckptfmt.errors import CheckpointError, NotFoundError, UsageError

_STYLES = {"identical": "good", "within noise": "good", "different": "bad"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("address", metavar="ADDRESS", help=address.HELP)
    parser.add_argument(
        "--with",
        dest="function",
        metavar="MODULE:FUNCTION",
        required=True,
        help="your code, which is run: takes the checkpoint, returns the loaded model as"
        " ckptfmt_torch.subject(checkpoint, model), ckptfmt_keras', or a function from inputs"
        " to outputs",
    )


def run(args: argparse.Namespace, screen: Screen) -> int:
    """Run the stored probe; 1 if the predictions differ by more than noise."""
    checkpoint = ckptfmt.open_checkpoint(args.address)
    stored = checkpoint.probe()
    if stored is None:
        raise NotFoundError(
            "the checkpoint has no probe: save with probe=", checkpoint=checkpoint.number
        )
    try:
        subject = _subject(_function(args.function)(checkpoint))
        replay = examine(subject, stored, environment=checkpoint.check_environment())
    except CheckpointError:
        raise
    except Exception as error:  # an exit status of 1 would say that predictions differ
        screen.foreign("".join(traceback.format_exception(error)))
        raise UsageError(
            f"the code of --with failed: {type(error).__name__}: {error}", found=args.function
        ) from error
    if args.json:
        screen.json({"url": checkpoint.url, "number": checkpoint.number, **replay.to_dict()})
    else:
        screen.line(
            f"predictions of checkpoint {checkpoint.number} of {checkpoint.url}", "title"
        )
        screen.line(str(replay).partition("\n")[0], _STYLES[replay.verdict])
        if replay.causes:
            screen.title("causes, the best supported first")
            _draw(screen, replay.causes)
    return exits.OK if replay.ok else exits.PROBLEMS


def _draw(screen: Screen, causes: Iterable[Cause]) -> None:
    screen.table(
        [
            Column(title="cause"),
            Column(title="evidence"),
            Column(title="what was seen", folds=True),
            Column(title="what to do", folds=True),
        ],
        [
            (cause.name, Styled(cause.strength, "dim"), cause.evidence, cause.remedy)
            for cause in causes
        ],
    )


def _function(name: str) -> Callable[[ckptfmt.Checkpoint], Any]:
    """Return the caller's function; modules of the working folder are found, as by `python -m`.

    Raises:
        UsageError: there is none of that name.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise UsageError(f"cannot import the module: {error}", found=name) from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise UsageError("expected MODULE:FUNCTION, and there is no such function", found=name)
    loaded: Callable[[ckptfmt.Checkpoint], Any] = function
    return loaded


def _subject(found: Any) -> Subject:
    if all(hasattr(found, name) for name in ("run", "prepare", "observe", "experiments")):
        subject: Subject = found
        return subject
    if callable(found):
        return _Plain(found)
    raise UsageError(
        "the function must return ckptfmt_torch.subject(checkpoint, model), or a function from"
        " inputs to outputs",
        found=type(found).__name__,
    )


def _detached(value: Any) -> Any:
    """Return outputs with tensors on the CPU and without gradients, as NumPy takes them."""
    if isinstance(value, Mapping):
        return {key: _detached(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_detached(child) for child in value]
    return value.detach().cpu() if hasattr(value, "detach") else value


class _Plain:
    """A function from inputs to outputs: it can be run, and says nothing of itself."""

    def __init__(self, predict: Callable[[Any], Any]) -> None:
        self._predict = predict

    def run(self, stored: Probe) -> Any:
        """Return what the function makes of the probe's inputs."""
        return _detached(self._predict(stored.inputs))

    def prepare(self, stored: Probe) -> Any:
        """Preprocessing is the function's own."""
        return None

    def observe(self, stored: Probe) -> Iterable[Cause]:
        """Nothing is known of it."""
        text = (
            "a bare function was run: nothing but its outputs was looked at; have --with return"
            " ckptfmt_torch.subject(checkpoint, model), or ckptfmt_keras'"
        )
        yield Cause(name="unknown", strength="possible", evidence=text)

    def experiments(self, stored: Probe) -> Iterable[Experiment]:
        """Nothing can be taken away."""
        return ()
