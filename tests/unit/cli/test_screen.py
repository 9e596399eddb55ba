"""Terminals: widths, colours, bars. A terminal here is a string that says it is one."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ckptfmt import Store
from ckptfmt.cli import main, text
from ckptfmt.cli.bars import DELAY_SECONDS, Bar, LineDrawing
from ckptfmt.cli.rich_screen import RichDrawing
from ckptfmt.cli.screen import Screen

STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["rich", "plain"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have rich, or not."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "rich", None)
    return str(request.param)


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> Callable[..., str]:
    """Run a command on a terminal; return what it shows there."""

    def run(columns: int, *words: str) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main([*words]) in (0, 1)
        return terminal.getvalue()

    return run


COMMANDS = [
    ["ls", "run", "--all"],
    ["show", "run@3"],
    ["diff", "run@1", "run@3", "--values", "--all"],
    ["verify", "run"],
    ["env", "run@1"],
]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_table_is_wider_than_the_terminal(
    on_terminal: Callable[..., str], store: Store, columns: int, words: list[str]
) -> None:
    store.tag(1, *(f"a tag of some length {n}" for n in range(4)))

    shown = STYLE.sub("", on_terminal(columns, *words))

    free = re.compile(r"checkpoint |environment of|[AB]  ")  # lines that the terminal wraps
    for line in shown.splitlines():
        assert text.cells(line) <= columns or free.match(line), line


def test_numbers_are_whole_in_80_columns(on_terminal: Callable[..., str], empty: Store) -> None:
    name = "optimizer_state_of_transformer_layer_" * 3
    for n in (1, 2):
        long = {f"{name}{i}": n for i in range(9)}  # costlier to fold than the one long number
        empty.save(
            {**long, "x": n / 3e7, "w": np.ones((1000, n))}, counters={"seen": 10**12 * n}
        )

    diff = STYLE.sub("", on_terminal(80, "diff", "run@1", "run@2")).split()
    listing = STYLE.sub("", on_terminal(80, "ls", "run")).split()

    assert {"3.3333333333333334e-08", "6.666666666666667e-08"} <= set(diff)
    assert {"1000000000000", "2000000000000"} <= set(diff)
    assert {"1,000,000,000,000", "15.6"} <= set(listing)


def test_colours_need_rich_and_a_terminal(
    on_terminal: Callable[..., str], kind: str, store: Store, damage: Any
) -> None:
    damage.summary(2)

    shown = on_terminal(100, "ls", "run", "--all")

    assert ("\x1b[31mdamaged" in shown) is (kind == "rich")
    assert "damaged" in STYLE.sub("", shown)


def test_no_color_is_respected(
    on_terminal: Callable[..., str],
    store: Store,
    damage: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage.summary(2)
    monkeypatch.setenv("NO_COLOR", "1")

    shown = on_terminal(100, "ls", "run", "--all")

    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|4[0-9]|9[0-7])m", shown)


def test_metrics_without_room_are_named(on_terminal: Callable[..., str], empty: Store) -> None:
    empty.save({}, metrics={f"long_metric_{n}": 0.5 for n in range(4)})

    shown = STYLE.sub("", on_terminal(80, "ls", "run"))

    assert "no room for: long_metric_2, long_metric_3 (widen" in shown
    assert "long_metric_1" in shown.splitlines()[0]


def test_markup_in_names_is_text(on_terminal: Callable[..., str], empty: Store) -> None:
    empty.save({"[red]x": 1, ":smile:": 2, "[/]": 3, "\\[b]": 4})

    shown = STYLE.sub("", on_terminal(100, "show", "run"))

    for name in ("[red]x", ":smile:", "[~1] ", "\\[b]"):
        assert name in shown


def bar_of(kind: str, terminal: Terminal, clock: Clock, unit: str = "bytes") -> Bar:
    drawing = RichDrawing(terminal) if kind == "rich" else LineDrawing(terminal, 80)
    return Bar(drawing, label="checkpoint 1", unit=unit, clock=clock)


def test_bars_wait_a_second(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal, clock = Terminal(), Clock()
    bar = bar_of(kind, terminal, clock)

    bar("reading", 0, 2**21)
    clock.now = DELAY_SECONDS - 0.01
    bar("reading", 2**20, 2**21)
    assert terminal.getvalue() == ""
    clock.now = DELAY_SECONDS
    bar("reading", 2**20, 2**21)

    shown = STYLE.sub("", terminal.getvalue())
    assert "checkpoint 1: reading" in shown
    assert " 50%" in shown
    assert "1.0 MiB of 2.0 MiB" in shown


def test_bars_are_not_drawn_too_often(kind: str) -> None:
    terminal, clock = Terminal(), Clock()
    bar = bar_of(kind, terminal, clock)
    clock.now = 2.0

    bar("reading", 1, 10)
    once = len(terminal.getvalue())
    clock.now = 2.05
    bar("reading", 2, 10)
    assert len(terminal.getvalue()) == once
    clock.now = 2.2
    bar("reading", 3, 10)
    assert len(terminal.getvalue()) > once


def test_bars_count_things_too_and_survive_odd_totals(kind: str) -> None:
    terminal, clock = Terminal(), Clock()
    bar = bar_of(kind, terminal, clock, unit="checkpoints")

    for clock.now, done, total in [(2.0, 3, 10), (3.0, 12, 10), (4.0, 0, 0)]:
        bar("reading", done, total)

    shown = STYLE.sub("", terminal.getvalue())
    assert "3 of 10 checkpoints" in shown
    assert "12 of 12 checkpoints" in shown


def test_a_bar_leaves_nothing_behind(kind: str) -> None:
    terminal, clock = Terminal(), Clock()
    bar = bar_of(kind, terminal, clock)
    clock.now = 2.0
    bar("reading", 1, 10)

    bar.clear()
    bar.clear()

    cleared = terminal.getvalue()
    last = cleared.rstrip("\r").split("\r")[-1]
    assert "\x1b[2K" in cleared if kind == "rich" else last.strip() == ""


def test_a_plain_bar_fits_into_its_line() -> None:
    for width in (20, 40, 80, 200):
        terminal = Terminal()
        drawing = LineDrawing(terminal, width)
        for done in range(0, 101, 7):
            drawing.draw("checkpoint 1: 重み", done, 100, "1.0 MiB of 2.0 MiB")

        drawn = terminal.getvalue().split("\r")[1:]
        assert {text.cells(line) for line in drawn} == {width - 1}
        assert all("%" in line for line in drawn)


@pytest.mark.parametrize(
    ("columns", "shown"), [(40, " 25%"), (60, " 25%"), (80, " 25% 1.0 MiB of 4.0 MiB")]
)
def test_a_long_name_does_not_push_numbers_out_of_the_line(
    columns: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    drawing = RichDrawing(terminal)

    drawing.draw("s3://a-bucket/" + "x" * 100, 2**20, 2**22, "1.0 MiB of 4.0 MiB")
    drawing.clear()

    drawn = STYLE.sub("", terminal.getvalue())
    assert shown in drawn
    assert "s3://a-bucket/xxx" in drawn


def test_bars_need_a_terminal_and_are_silenced(kind: str) -> None:
    clock = Clock()
    for err, quiet in ((io.StringIO(), False), (Terminal(), True)):
        screen = Screen(out=io.StringIO(), err=err, clock=clock)
        screen.quiet = quiet
        with screen.bar() as bar:
            clock.now += 5
            bar("reading", 1, 2)

        assert err.getvalue() == ""


def test_warnings_come_between_bars(kind: str) -> None:
    clock, err = Clock(), Terminal()
    screen = Screen(out=io.StringIO(), err=err, clock=clock)
    with screen.bar() as bar:
        clock.now += 5
        bar("reading", 1, 2)
        screen.warn("annotation passed over\x1b[2J")

    assert "warning: annotation passed over\\x1b[2J\n" in err.getvalue()
    before = err.getvalue().split("warning:")[0]
    assert re.search(r"(\x1b\[2K|\r *\r)[^%]*\Z", before)  # the bar was gone by then


def test_quiet_reaches_the_screen(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    real = Screen.bar

    def bar(self: Screen, *words: Any, **options: Any) -> Any:
        seen.append(self.quiet)
        return real(self, *words, **options)

    monkeypatch.setattr(Screen, "bar", bar)

    assert [main(["ls", "run", *more]) for more in ([], ["-q"], ["-aq"])] == [0, 0, 0]
    assert seen == [False, True, True]
