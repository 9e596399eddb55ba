"""`ckptfmt plot`: tables, JSON and pictures."""

from __future__ import annotations

import html.parser
import importlib
import itertools
import json
import pathlib
import re
import struct
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.training import Point, Progress
from ckptfmt.training.curves import Node, Run
from ckptfmt.training.scene import Scene

Cli = Callable[..., Any]

EVIL = "$\\frac{a$ --> </script><script>alert(1)</script>\x1b[2J\r\n\u202e中 loss"
NAMES = [EVIL, "_hidden", "$x_1^", "x" * 3000]


def train(
    store: Store, *, grown_at: int | None = None, better: float = 0.0, stop: int = 1000
) -> None:
    """Save ten checkpoints of a run."""
    progress = Progress(total=1000, virtual_epochs=10, global_batch=50, dataset_size=500)
    while progress.seen < stop:
        due = progress.advance(50)
        if progress.seen == grown_at:
            progress.declare(dataset_size=700)
        if due.checkpoint:
            k = due.virtual_epoch
            gained = better if grown_at is not None and progress.seen > grown_at else 0.0
            store.save(
                {"model": np.full(3000, k, "f4"), "frozen": np.arange(3000.0)},
                counters=progress.state(),
                metrics={"loss": 1 / k, "val_loss": 2 / k - gained, "lr": 0.5},
            )


@pytest.fixture
def trained(empty: Store) -> Store:
    """Return a store of ten checkpoints, the second and third deleted, at `run`."""
    train(empty)
    empty.delete([2, 3])
    return empty


def test_a_run_as_a_table(cli: Cli, trained: Store) -> None:
    ran = cli("plot", "run")

    lines = ran.out.splitlines()
    assert (ran.status, ran.err) == (0, "")
    assert lines[0] == "@/run: 8 checkpoints, 2 deleted, 1,000 examples"
    assert lines[1] == "val_loss: well-behaved since 100 examples"
    assert lines[3].split() == ["seen", "checkpoint", "loss", "val_loss", "lr"]
    assert lines[6].split() == ["200", "2", "(deleted)", "0.5", "1", "0.5"]
    assert len(lines) == 15


def test_a_run_as_json(cli: Cli, trained: Store) -> None:
    document = json.loads(cli("plot", "run", "--json").out)
    (found,) = document["runs"]

    assert document["axis"] == "seen"
    assert document["panels"] == [["loss", "val_loss"], ["lr"]]
    assert found["lines"] == [{"main": True, "numbers": [*range(1, 11)]}]
    assert [c["state"] for c in found["checkpoints"][:4]] == [
        "stored", "deleted", "deleted", "stored",
    ]  # fmt: skip
    assert found["checkpoints"][1]["parent"] == found["checkpoints"][0]["id"]
    assert found["checkpoints"][1]["new_nbytes"] is None
    assert found["checkpoints"][4]["reused_nbytes"] == 24_000
    assert found["checkpoints"][4]["new_nbytes"] == trained[5].new_bytes
    assert found["edges"] == [
        {"virtual_epoch": k, "seen": 100 * k} for k in range(1, 11)
    ]  # fmt: skip
    assert [(b["metric"], b["number"]) for b in found["best"]] == [
        ("loss", 10),
        ("val_loss", 10),
    ]


def test_a_rollback_is_drawn_when_asked_for(cli: Cli, empty: Store) -> None:
    train(empty, stop=400)
    with ckptfmt.open("run", durable=False) as again:
        again[2].load()
        again.save({}, counters={"seen": 300}, metrics={"loss": 0.1})
    main, every = (
        json.loads(cli("plot", "run", "--json", *words).out)["runs"][0]
        for words in ((), ("--lineage", "all"))
    )

    assert main["lines"] == [{"main": True, "numbers": [1, 2, 5]}]
    assert every["lines"] == [
        {"main": True, "numbers": [1, 2, 5]},
        {"main": False, "numbers": [2, 3, 4]},
    ]
    assert "branches are in" not in cli("plot", "run").out
    assert "branches are in" in cli("plot", "run", "--lineage", "all").out
    assert main["events"] == every["events"]
    assert main["events"][-1] == {
        "seen": 200, "kind": "resume", "text": "checkpoint 5 continues 2",
    }  # fmt: skip


def test_two_runs_and_where_they_part(cli: Cli, empty: Store) -> None:
    train(empty)
    train(ckptfmt.open("other", durable=False), grown_at=500, better=0.1)
    ran = cli("plot", "run", "other")
    document = json.loads(cli("plot", "run", "other", "--json").out)

    assert ran.status == 0
    assert re.search(r"^data set size +2 +500 +500 +500 +700$", ran.out, re.MULTILINE)
    rows = {row["name"]: row for row in document["partings"][0]["rows"]}
    assert rows["val_loss"]["last_equal"] == 500
    assert rows["val_loss"]["first_different"] == 600
    assert rows["loss"]["first_different"] is None
    assert document["notes"][-1].endswith("after they were fed differently, so it may be that")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("run", "-o", "run.pdf"), 2, "ends in .png, .svg or .html"),
        (("run", "-m", "nope"), 3, "no checkpoint has this metric"),
        (("run", "--best", "nope:min"), 3, "no checkpoint has this metric"),
        (("run", "--best", "lr"), 2, "METRIC:min or METRIC:max"),
        (("run", "run", "--tolerance", "-1"), 2, "tolerance"),
        (("run", "--width", "10"), 2, "width"),
        (("run",) * 8, 2, "too many runs"),
        (("nowhere",), 3, "no store here"),
        (("run", "--lineage", "ffff"), 3, "no checkpoint has this id"),
    ],
)
def test_wrong_use(
    cli: Cli, trained: Store, words: tuple[str, ...], status: int, message: str
) -> None:
    ran = cli("plot", *words)

    assert (ran.status, ran.out) == (status, "")
    assert message in ran.err


def test_without_matplotlib_the_extra_is_named(
    cli: Cli, trained: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("ckptfmt.cli.canvas")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("matplotlib", "ckptfmt.cli.sheet", "ckptfmt.cli.panels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = cli("plot", "run", "-o", "run.png")

    assert ran.status == 2
    assert "ckptfmt[plot]" in ran.err
    assert not pathlib.Path("run.png").exists()
    assert cli("plot", "run").status == 0


def test_pictures_are_well_formed(cli: Cli, trained: Store) -> None:
    pytest.importorskip("matplotlib")
    for name in ("run.png", "run.svg", "run.html"):
        assert cli("plot", "run", "-o", name, "--width", "800").status == 0

    png = pathlib.Path("run.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert struct.unpack(">I", png[16:20]) == (800,)
    assert ET.parse("run.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    page = pathlib.Path("run.html").read_text("utf-8")
    assert "<svg" in page
    assert "<td>2 (deleted)</td>" in page


def test_the_same_run_gives_the_same_bytes(cli: Cli, trained: Store) -> None:
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        cli("plot", "run", "-o", name)

    assert pathlib.Path("a.svg").read_bytes() == pathlib.Path("b.svg").read_bytes()


def test_a_picture_that_is_there_stays(cli: Cli, trained: Store) -> None:
    pytest.importorskip("matplotlib")
    file = pathlib.Path("run.svg")
    file.write_text("mine")

    assert cli("plot", "run", "-o", "run.svg").status == 4
    assert file.read_text() == "mine"
    assert cli("plot", "run", "-o", "run.svg", "--overwrite").status == 0
    assert file.read_text("utf-8").startswith("<?xml")


class Tags(html.parser.HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [
            value or ""
            for name, value in attrs
            if name in ("href", "src", "xlink:href") or name.startswith("on")
        ]

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


@pytest.fixture
def evil() -> Store:
    """Return a store whose metrics try to be markup and formulas, at `evil`."""
    store = ckptfmt.open("evil", durable=False)
    for n in range(1, 4):
        values = {name: n / (i + 1) for i, name in enumerate(NAMES)}
        store.save({}, counters={"seen": n}, metrics=values)
    return store


def test_hostile_names_are_only_text(cli: Cli, evil: Store) -> None:
    pytest.importorskip("matplotlib")
    for name in ("e.png", "e.svg", "e.html"):
        ran = cli("plot", "evil", "-o", name)
        assert (ran.status, ran.err) == (0, "")
        assert all(line.isprintable() for line in ran.out.split("\n"))
    seen = Tags()
    seen.feed(pathlib.Path("e.html").read_text("utf-8"))

    assert not seen.tags & {"script", "iframe", "object", "img", "link", "a"}
    assert all(link.startswith("#") for link in seen.links)
    assert seen.comments == []
    tree = ET.parse("e.svg")
    assert not [e for e in tree.iter() if e.tag.rpartition("}")[2] == "script"]
    assert "alert" not in pathlib.Path("e.svg").read_text("utf-8")


def test_names_are_never_formulas(evil: Store) -> None:
    pytest.importorskip("matplotlib")
    sheet = pytest.importorskip("ckptfmt.cli.sheet")

    class Line:
        parse_math = True
        text = ""

        def set_parse_math(self, on: bool) -> None:
            self.parse_math = on

        def set_text(self, shown: str) -> None:
            self.text = shown

    line = Line()
    sheet.say(line, EVIL)

    assert not line.parse_math
    assert line.text.startswith("$\\frac{a$ --> </script>")
    assert line.text.endswith("\\x1b[2J\\r\\n\\u202e\\u4e2d loss")


def _none(store: Store) -> None:
    for n in range(1, 4):
        store.save({}, counters={"seen": n * 10})


def _one(store: Store) -> None:
    store.save({}, counters={"seen": 5}, metrics={"loss": 1.0})


def _bare(store: Store) -> None:
    for n in range(3):
        store.save({}, metrics={"loss": 1.0 * n})


def _odd(store: Store) -> None:
    values = [float("nan"), float("inf"), None, -1e308, 1e308, 2**62]
    for n, value in enumerate(values):
        store.save(
            {}, counters={"seen": 0}, metrics={"loss": value, "nan": float("nan"), "n": n}
        )


def _forged(store: Store) -> None:
    for seen in (0, 2**62, 2**63 - 1):
        store.save(
            {}, counters={"seen": seen, "progress": {"grid": 5}}, metrics={"loss": 1e-300}
        )


def _small(store: Store) -> None:
    for n in range(400):
        store.save({}, counters={"seen": n}, metrics={f"m{n % 40}_loss": 10.0 ** (n % 300)})


@pytest.mark.parametrize("save", [_none, _one, _bare, _odd, _forged, _small])
@pytest.mark.parametrize("width", ["400", "1600"])
def test_any_run_can_be_drawn(
    cli: Cli, empty: Store, save: Callable[[Store], None], width: str
) -> None:
    pytest.importorskip("matplotlib")
    save(empty)
    ran = cli("plot", "run", "-o", "run.png", "--width", width)

    assert ran.status == 0, ran.err
    assert pathlib.Path("run.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert json.loads(cli("plot", "run", "--json").out)["runs"]


def _node(number: int, parent: int | None, **how: Any) -> Node:
    known: dict[str, Any] = {"metrics": {"loss": 1.0 / number}, "stored": True, "process": None}
    known |= {name: how.pop(name) for name in known.keys() & how.keys()}
    point = Point(number=number, id=f"{number:024x}", seen=100 * number, time=0, **known)
    return Node(point=point, parent=None if parent is None else f"{parent:024x}", **how)


@pytest.mark.parametrize("width", [4.0, 7.6, 16.0])
def test_every_sign_is_explained_within_the_picture(width: float) -> None:
    canvas = pytest.importorskip("ckptfmt.cli.canvas")
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    progress = Progress(total=700, virtual_epochs=7)
    progress.advance(700)
    nodes = (
        _node(1, None, dropped=("optimizer",), new_nbytes=5),
        _node(2, 1, stored=False),
        _node(3, 2, process=f"{3:024x}", new_nbytes=7),
        _node(4, 3, metrics={"loss": float("nan")}, new_nbytes=7),
        _node(5, 1, new_nbytes=7),
        _node(6, 4, new_nbytes=7),
    )
    run = Run(name="r", nodes=nodes, newest=nodes[-1].point.id, progress=progress)
    scene = Scene(runs=(run,), labels=("",), panels=(("loss",),), modes={"loss": "min"})

    figure = canvas._figure(scene, width)

    renderer = agg.FigureCanvasAgg(figure).get_renderer()
    boxes = [legend.get_window_extent(renderer) for legend in figure.legends]
    explained = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert explained == list(canvas._MEANINGS.values())
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    tops = [axes.get_tightbbox(renderer).y1 for axes in figure.axes]
    assert min(box.y0 for box in boxes) >= max(tops)
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "0"), (999, "999"), (1000, "1k"), (2_500, "2.5k"), (1_234_567, "1,234,567"),
        (14_300_000, "14.3M"), (2_000_000_000, "2,000M"), (1_001, "1,001"), (-5, "-5"),
    ],
)  # fmt: skip
def test_ticks_are_exact(n: int, shown: str) -> None:
    canvas = pytest.importorskip("ckptfmt.cli.canvas")

    assert canvas.short(n) == shown
