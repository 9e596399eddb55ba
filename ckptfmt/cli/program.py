"""Find the command, run it, and say by message and exit status how it ended."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, Protocol

import ckptfmt
from ckptfmt.cli import exits
from ckptfmt.cli.screen import Screen, Warnings
from ckptfmt.errors import CheckpointError, UsageError

# Command → what it does. Its module is imported only when it is the one to run.
COMMANDS: Final[Mapping[str, str]] = {
    "ls": "list the checkpoints of a store",
    "show": "show what is in a checkpoint",
    "diff": "compare two checkpoints",
    "verify": "read stored bytes and compare them with their digests",
    "env": "show where a checkpoint was made, and what differs here",
    "doctor": "tell whether a model predicts as when saved, and if not, why",
    "best": "show the best checkpoints by a metric, and how the run went",
    "plot": "draw runs over examples, and show where two of them part",
    "plan": "show a run in steps and checkpoints before it begins",
    "migrate": "put a checkpoint of another format into a store",
    "export": "write arrays of a checkpoint to a file of other tools",
    "pack": "write a whole checkpoint to one file, a bundle",
    "unpack": "put a bundle into a store",
    "copy": "copy checkpoints to another store",
    "tag": "attach tags to a checkpoint, or remove them",
    "delete": "delete checkpoints of a store",
    "slim": "drop sections of checkpoints, such as the optimizer",
    "retain": "delete the checkpoints that retention rules do not want",
    "collect": "free the bytes that nothing references",
}

_EPILOG: Final = """\
addresses:
  runs/a@12                   by number
  runs/a, runs/a@latest       the newest that is complete
  runs/a@best:val_loss        the lowest; runs/a@best:acc:max the highest
  runs/a@examples:1000000     the newest that had seen at most so many examples
  runs/a@tag:name             the newest with that tag
  runs/a@id:0f3a              the one whose id begins so
  model.safetensors           a bundle
  A store is a folder or any URL that fsspec knows, such as s3://bucket/runs/a.

exit status:
  0 done   1 problems found (verify, diff, env, doctor, copy)   2 wrong usage
  3 not found   4 conflict   5 damaged, or no checkpoint   6 needs a newer ckptfmt
  7 mismatch   8 storage failed   130 interrupted   141 the reader of the output went away
"""


class Command(Protocol):
    """What the module of a command provides."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace, screen: Screen) -> int:
        """Do it; return the exit status."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Without the program's name; None takes the process's own.

    Returns:
        The exit status; see `exits`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    screen = Screen()
    logger, handler = logging.getLogger("ckptfmt"), Warnings(screen)
    logger.addHandler(handler)
    try:
        return _status(words, screen)
    except BrokenPipeError:
        # Python flushes stdout once more at its exit, which would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    finally:
        logger.removeHandler(handler)


def _status(words: Sequence[str], screen: Screen) -> int:
    try:
        status = _run(words, screen)
        screen.flush()
    except CheckpointError as error:
        screen.error(error.code, error.message)
        return exits.BY_CODE[error.code]
    except KeyboardInterrupt:
        screen.error("interrupted", "stopped by Ctrl-C")
        return exits.INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        # Storage raises BackendError; what is left is a file of ours, or the terminal.
        screen.error("backend", f"{error.strerror or error} [file={error.filename!r}]")
        return exits.STORAGE
    return status


def _run(words: Sequence[str], screen: Screen) -> int:
    parser, commands = _parsers(words)
    try:
        args = parser.parse_args(words)
    except SystemExit as ended:  # --help and --version
        return int(ended.code or 0)
    if args.command is None:
        parser.print_help()
        return exits.USAGE
    screen.quiet = args.quiet
    return commands[args.command].run(args, screen)


def _parsers(words: Sequence[str]) -> tuple[_Parser, dict[str, Command]]:
    """Return the parser; only the command that is named gets its arguments."""
    parser = _Parser(
        prog="ckptfmt",
        description="Look at checkpoints, check them, move them and clean up.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ckptfmt {ckptfmt.__version__}")
    below = parser.add_subparsers(dest="command", metavar="command", title="commands")
    commands: dict[str, Command] = {}
    for name, summary in COMMANDS.items():
        own = below.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        if name in words:
            commands[name] = _load(name)
            commands[name].arguments(own)
            _common(own)
    return parser, commands


def _load(name: str) -> Command:
    module: Command = importlib.import_module(f"ckptfmt.cli.{name}")
    return module


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write JSON (see docs/cli.md)")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress bar")
