"""Names that try to steer the terminal, on every command, with and without one."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptfmt import Store
from ckptfmt.cli import main

Cli = Callable[..., Any]

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202eerror[usage]: fake\x00\u2028"
ALLOWED = re.compile(r"\x1b\[[0-9;]*m")  # styles, by rich itself

ARGUMENT = EVIL.replace("\x00", "")  # no argument of a process has one

COMMANDS = [
    ["ls", "run"],
    ["ls", "run", "--all"],
    ["show", "run@1"],
    ["show", "run@1", "--full"],
    ["show", "run@1", "--select", ARGUMENT],
    ["show", f"run@best:{ARGUMENT}"],
    ["show", f"run@tag:{ARGUMENT}"],
    ["show", f"{ARGUMENT}@1"],
    ["show", f"{ARGUMENT}.safetensors"],
    ["diff", "run@1", "run@2", "--all", "--values", "--full"],
    ["verify", "run"],
    ["verify", "run@1"],
    ["env", "run@1", "--full"],
    ["env", "run@1", "run@2"],
    ["export", "run@1", f"{ARGUMENT}/x.safetensors"],
    ["pack", "run@1", ARGUMENT],
    ["tag", "run@1", ARGUMENT],
    ["delete", "run", ARGUMENT],
    ["collect", "run", "--older-than", ARGUMENT],
    ["ls", ARGUMENT],
    [ARGUMENT],
    ["plot", "run"],
    ["plot", "run", "run", "-m", ARGUMENT],
    ["plot", "run", "-o", f"{ARGUMENT}.pdf"],
]


@pytest.fixture(autouse=True)
def evil(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the text wherever the format lets somebody put text."""
    monkeypatch.setenv("XLA_FLAGS", ARGUMENT)
    monkeypatch.setattr(sys, "argv", ["train.py", EVIL])
    for n in range(2):
        empty.save(
            {
                EVIL: {EVIL: np.full(3, n), "x": EVIL, "y": [EVIL, n]},
                "model": {EVIL: np.zeros(2)},
            },
            counters={EVIL: n, "seen": n},
            metrics={EVIL: n},
            hyperparameters={EVIL: {EVIL: EVIL + str(n)}},
            architecture=[EVIL],
            preprocessing=EVIL,
        )
    monkeypatch.delenv("XLA_FLAGS")


def harmless(shown: str) -> bool:
    return all(line.isprintable() for line in shown.split("\n"))


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: " ".join(words).encode().hex()[:40]
)
def test_plain_output_is_harmless(cli: Cli, words: list[str]) -> None:
    ran = cli(*words)

    assert harmless(ran.out)
    assert harmless(ran.err)
    assert ran.status in (0, 1) or ran.err.count("\n") == 1
    assert not re.search(r"^error\[usage\]: fake", ran.out + ran.err, re.MULTILINE)


@pytest.mark.parametrize(
    "words", COMMANDS, ids=lambda words: " ".join(words).encode().hex()[:40]
)
@pytest.mark.parametrize("has_rich", [True, False])
def test_terminal_output_is_harmless(
    monkeypatch: pytest.MonkeyPatch, words: list[str], has_rich: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    if not has_rich:
        monkeypatch.setitem(sys.modules, "rich", None)
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    main([*words])

    assert harmless(ALLOWED.sub("", out.getvalue()))
    assert harmless(ALLOWED.sub("", err.getvalue()))


@pytest.mark.parametrize("words", COMMANDS[:4] + COMMANDS[9:14])
def test_json_is_harmless_and_exact(cli: Cli, words: list[str]) -> None:
    ran = cli(*words, "--json")

    assert ran.out.isascii()
    assert harmless(ran.out)
    assert isinstance(json.loads(ran.out), dict)


def test_json_keeps_the_names(cli: Cli) -> None:
    document = json.loads(cli("show", "run@1", "--json").out)

    assert document["metrics"] == {EVIL: 0}
    assert document["hyperparameters"] == {EVIL: {EVIL: EVIL + "0"}}
    assert document["arrays"][0]["path"] == f"{EVIL}/{EVIL}"


def test_nothing_is_lost_in_plain_text(cli: Cli) -> None:
    shown = cli("show", "run@1").out

    assert (
        "\\x1b]0;owned\\x07\\x1b[2J\\r\\n\\x9b31m\\u202eerror[usage]: fake\\x00\\u2028" in shown
    )


def test_exports_of_such_names_are_reported_exactly(cli: Cli) -> None:
    ran = cli("export", "run@1", "out.safetensors", "-s", "model", "--json")

    assert harmless(ran.out + ran.err)
    assert json.loads(ran.out)["arrays"] == [f"model/{EVIL}"]
