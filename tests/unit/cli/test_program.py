"""Finding commands, exit statuses, and how a run ends."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store, errors
from ckptfmt.cli import exits, ls, program
from ckptfmt.errors import CheckpointError

Cli = Callable[..., Any]

COMMAND = [sys.executable, "-m", "ckptfmt"]


def kinds(base: type[CheckpointError]) -> Iterator[type[CheckpointError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds(CheckpointError)))
def test_every_error_has_its_status_and_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, kind: type[CheckpointError]
) -> None:
    def fail(*_: object) -> int:
        raise kind("two\nlines", path="a\x1bb")

    monkeypatch.setattr(ls, "run", fail)

    ran = cli("ls", "run")

    assert ran.status == exits.BY_CODE[kind.code]
    assert ran.err == f"error[{kind.code}]: two\\nlines [path='a\\x1bb']\n"
    assert ran.out == ""


def test_statuses_are_those_of_the_documentation() -> None:
    assert exits.BY_CODE == {
        "usage": 2,
        "state": 2,
        "not-found": 3,
        "conflict": 4,
        "format": 5,
        "integrity": 5,
        "unsupported": 6,
        "mismatch": 7,
        "backend": 8,
        "cancelled": 130,
    }
    assert (exits.OK, exits.PROBLEMS, exits.INTERRUPTED, exits.BROKEN_PIPE) == (0, 1, 130, 141)


def test_statuses_of_real_failures(cli: Cli, store: Store, damage: Any) -> None:
    pathlib.Path("blocked").write_bytes(b"")  # a file where a folder ought to be
    assert cli("show", "run@best:nothing").status == 3
    damage.newer(2)
    damage.body(3)

    assert cli("show", "run@1").status == 0
    assert cli("verify", "run").status == 1
    assert cli("show", "run@lastest").status == 2
    assert cli("show", "run@9").status == 3
    assert cli("show", "run@best:loss").status == 6  # of the newest, as `latest`
    assert cli("show", "run@3").status == 5
    assert cli("show", "run@2").status == 6
    assert cli("ls", "blocked").status == 8


def test_foreign_failures_of_the_system_are_storage_failures(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "/some\nfile")

    monkeypatch.setattr(ls, "run", fail)

    ran = cli("ls", "run")

    assert ran.status == 8
    assert ran.err == "error[backend]: Permission denied [file='/some\\nfile']\n"


def test_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ls, "run", interrupt)

    ran = cli("ls", "run")

    assert (ran.status, ran.out) == (130, "")
    assert ran.err == "error[interrupted]: stopped by Ctrl-C\n"


@pytest.mark.parametrize(
    "words",
    [
        ["lss"],
        ["ls"],
        ["ls", "run", "more"],
        ["ls", "run", "--al"],  # options are not guessed
        ["ls", "run", "-n", "few"],
        ["diff", "run@1"],
        ["delete", "run"],
        ["--nothing"],
    ],
)
def test_wrong_usage_is_one_line(cli: Cli, words: list[str]) -> None:
    ran = cli(*words)

    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error[usage]: ")
    assert ran.err.count("\n") == 1
    assert "--help`)" in ran.err


def test_help_names_every_command(cli: Cli) -> None:
    ran = cli("--help")

    assert ran.status == 0
    for name, summary in program.COMMANDS.items():
        assert f"    {name} " in ran.out
        assert summary in ran.out
    bare = cli()
    assert (bare.status, bare.out) == (2, ran.out)


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_has_help_and_the_common_options(cli: Cli, name: str) -> None:
    ran = cli(name, "--help")

    assert ran.status == 0
    assert ran.out.startswith(f"usage: ckptfmt {name} ")
    for option in ("--json", "-q, --quiet"):
        assert option in ran.out


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"ckptfmt {ckptfmt.__version__}\n"


def test_warnings_of_the_library_go_to_stderr(cli: Cli, store: Store, damage: Any) -> None:
    damage.summary(3)
    before = list(logging.getLogger("ckptfmt").handlers)

    ran = cli("show", "run@latest", "--json")

    assert json.loads(ran.out)["number"] == 2
    assert ran.err.startswith("warning: checkpoint 3 is damaged and passed over: ")
    assert ran.err.count("\n") == 1
    assert logging.getLogger("ckptfmt").handlers == before  # left as it was


def test_commands_are_written_down(cli: Cli) -> None:
    document = pathlib.Path(__file__).parents[3] / "docs" / "cli.md"
    text = document.read_text(encoding="utf-8")

    for name in program.COMMANDS:
        assert f"ckptfmt {name} " in text
    for code, status in exits.BY_CODE.items():
        assert f"`{code}`" in text, f"exit status {status}"


def test_the_documented_examples_work(cli: Cli, store: Store) -> None:
    document = pathlib.Path(__file__).parents[3] / "docs" / "cli.md"
    block = document.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    for name in ("runs/a", "runs/b"):
        for number in range(12):
            ckptfmt.open(name, durable=False).save(
                {"model": {"w": np.zeros(number + 1)}}, metrics={"val_loss": 1 / (number + 1)}
            )

    commands = [re.split(r" \|\|? ", line)[0] for line in block.splitlines()]
    ran = [cli(*shlex.split(command)[1:]) for command in commands]

    assert len(ran) >= 7
    assert [(one.status, one.err) for one in ran] == [(0, "")] * len(ran)


# ---- in a process of its own


def run_process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_module_is_the_program(store: Store) -> None:
    done = run_process("ls", "run")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("number  saved (UTC) ")
    assert run_process("ls", "nowhere").returncode == 3


def test_version_and_help_load_no_command_and_no_rich() -> None:
    probe = """
import sys
from ckptfmt.cli import main
main([sys.argv[1]])
print(sorted(n for n in sys.modules if n == "rich" or n.startswith("ckptfmt.cli.")))
"""
    for option in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", probe, option], capture_output=True, text=True, check=True
        )

        loaded = set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))
        assert loaded.isdisjoint(f"ckptfmt.cli.{name}" for name in program.COMMANDS)
        assert "rich" not in loaded


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_the_program_quietly(
    empty: Store, unbuffered: str
) -> None:
    empty.save({f"array{n}": np.zeros(1) for n in range(5000)})

    process = subprocess.Popen(
        [*COMMAND, "show", "run", "--json"],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        shown = process.stderr.read()

    assert process.wait(timeout=60) == 141
    assert shown == b""


def test_a_reader_that_was_never_there(store: Store) -> None:
    """What is still buffered at the exit must not fail once more, with a traceback."""
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run(
        [*COMMAND, "ls", "run"],
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_ends_the_program_with_130(store: Store) -> None:
    probe = """
import os, signal, sys
from ckptfmt.cli import ls, main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
ls.run = lambda *_: os.kill(os.getpid(), signal.SIGINT)
sys.exit(main(["ls", "run"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 130
    assert done.stderr == "error[interrupted]: stopped by Ctrl-C\n"


def test_an_ascii_stdout_gets_escapes(empty: Store) -> None:
    empty.save({"gewichte_größe_重み": np.zeros(2)})

    done = run_process("show", "run", PYTHONIOENCODING="ascii", PYTHONUTF8="0")

    assert (done.returncode, done.stderr) == (0, "")
    assert "gewichte_gr\\xf6\\xdfe_\\u91cd\\u307f" in done.stdout


def test_everything_works_without_rich(store: Store) -> None:
    probe = """
import sys
sys.modules["rich"] = None
from ckptfmt.cli import main
sys.exit(main(sys.argv[1:]))
"""
    for words in (
        ["ls", "run"],
        ["show", "run"],
        ["diff", "run@1", "run@2"],
        ["verify", "run"],
    ):
        with_rich = run_process(*words)
        without = subprocess.run(
            [sys.executable, "-c", probe, *words], capture_output=True, text=True, check=False
        )

        assert (without.returncode, without.stderr) == (with_rich.returncode, "")
        assert without.stdout == with_rich.stdout
