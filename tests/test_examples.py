"""The examples do what they say, the demo above all: `make demo` and this test are one script.

What the demo claims is checked here once more, from the files it leaves and with other code.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pytest
from safetensors.numpy import load_file

import ckptfmt
from ckptfmt import errors

ROOT: Final = pathlib.Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
SMALL: Final = ("quickstart.py", "async_save.py", "many_models.py")
STORIES: Final[dict[str, tuple[int, tuple[str, ...]]]] = {  # name → claims, rows of tables
    "virtual_epochs.py": (
        12,
        (
            "1,000,000 examples 15,000,000 15 1,000,000",
            "100,000 more 16,500,000 15 1,100,000",
            "batches of 50 7,149,750 15 476,650",
            "batches of 65,536 13,762,560 15 917,504",
            "batches of 65,536 14,300,000 15 917,504-983,040",
            "after it 14,300,000 8 953,300-953,350",
            "1. old settings, new data 14,300,000 15 953,300-953,400 13.00",
            "2. the new size 15,730,000 15 1,048,600-1,048,700 14.30",
            "3. the stop point moved 16,720,000 1 990,000 15.20",
        ),
    ),
    "select_and_fine_tune.py": (7, ("12 12,000", "Here the", "is the better start, by")),
}
LAST: Final = 10  # checkpoints of one training run

pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra `dev`)")


def _bits(value: Any) -> Any:
    """Return nested containers with arrays replaced by what they are, bit by bit."""
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_bits(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return type(value), repr(value)


# ---- the demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str, int]:
    """Run the demo; return its folder, what it printed, and its session."""
    folder = tmp_path_factory.mktemp("demo")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", EXAMPLES / "digits_resume.py", "--folder", folder],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    return folder, printed, process.pid


Demo = tuple[pathlib.Path, str, int]


def test_every_claim_of_the_demo_holds(demo: Demo) -> None:
    _, printed, _ = demo

    balance = re.search(r"^All (\d+) claims hold\. \d+ seconds\.$", printed, re.MULTILINE)
    assert balance, printed
    assert int(balance[1]) == printed.count("\n   ✓ ") == 15
    assert "✗" not in printed


def test_the_demo_is_plain_text_in_a_pipe(demo: Demo) -> None:
    _, printed, _ = demo

    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_kills_hit_saves_before_their_commit(demo: Demo) -> None:
    _, printed, _ = demo

    rows = re.findall(
        r"^ {3}the .*? {2,}(\d of 3 data files|an intent).* checkpoint (\d+)"
        r" +(?:checkpoint (\d+)|\(nothing\))$",
        printed,
        re.MULTILINE,
    )
    assert len(rows) >= 3, printed
    assert all(int(resumed or 0) == int(torn) - 1 for _, torn, resumed in rows)
    assert len({left for left, _, _ in rows}) >= 2, "all kills at the same moment"


def test_killed_and_whole_run_end_with_the_same_bits(demo: Demo) -> None:
    folder, _, _ = demo
    whole, killed = (ckptfmt.open(folder / name)[LAST] for name in ("whole", "killed"))

    assert _bits(killed.load()) == _bits(whole.load())
    assert killed.counters == whole.counters
    assert killed.metrics == whole.metrics
    assert [a.metrics for a in killed.history] == [a.metrics for a in whole.history]
    assert {p: a.digests for p, a in killed.arrays.items()} == {
        p: a.digests for p, a in whole.arrays.items()
    }


def test_the_run_is_one_that_was_in_the_middle_of_its_data(demo: Demo) -> None:
    """A resume at the end of a pass over the data would need no position and no order."""
    folder, _, _ = demo
    state = ckptfmt.open(folder / "whole")[LAST].load(select=["data", "callbacks"])

    assert 0 < state["data"]["position"] < len(state["data"]["order"])
    assert not np.array_equal(state["data"]["order"], np.sort(state["data"]["order"]))
    assert state["callbacks"]["losses"].size > 300


def test_dead_saves_leave_nothing_for_ever(demo: Demo) -> None:
    folder, _, _ = demo
    store = ckptfmt.open(folder / "killed")
    referenced = {file.key for c in store for file in c.manifest.tables.files}

    assert {
        f"data/{file.name}" for file in (folder / "killed" / "data").iterdir()
    } == referenced


def test_the_demo_exports_what_the_best_checkpoint_holds(demo: Demo) -> None:
    folder, _, _ = demo
    model = ckptfmt.open(folder / "whole").best("val_loss").load(select="model")["model"]

    wanted = {
        f"{layer}.{name}": array for layer in model for name, array in model[layer].items()
    }
    assert _bits(load_file(folder / "best.safetensors")) == _bits(wanted)


def test_the_damaged_copies_are_damaged(demo: Demo) -> None:
    folder, printed, _ = demo

    with pytest.raises(errors.IntegrityError) as caught:
        ckptfmt.open(folder / "flipped").latest().load()
    assert f"path={caught.value.where['path']!r}" in printed
    torn = ckptfmt.open(folder / "torn").entries()
    assert [row.status for row in torn if row.number == LAST] == ["damaged"]


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="no /proc here")
def test_the_demo_leaves_no_process(demo: Demo) -> None:
    _, _, session = demo

    assert session not in dict(_sessions()).values()


def _sessions() -> Iterator[tuple[int, int]]:
    """Yield (process, session) of all processes."""
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry.name), int(fields[3])


def test_the_demo_refuses_a_folder_in_use(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").write_text("keep me")

    done = _run(EXAMPLES / "digits_resume.py", "--folder", tmp_path, cwd=tmp_path)

    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


PAGE: Final = """
import sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "plain":
    sys.modules["rich.console"] = None
from _page import Page, size
page = Page()
page.section("A section")
page.claim("two is two", 2 == 2)
page.claim(sys.argv[3], sys.argv[3] == "holds")
page.table(("name", "bytes"), [("a", size(5)), ("b", size(3 * 2**20))])
sys.exit(page.end("Done."))
"""


@pytest.mark.parametrize("screen", ["rich", "plain"])
@pytest.mark.parametrize(("claim", "status"), [("holds", 0), ("does not", 1)])
def test_a_claim_that_does_not_hold_is_told_and_fails(
    screen: str, claim: str, status: int, tmp_path: pathlib.Path
) -> None:
    script = tmp_path / "page.py"
    script.write_text(PAGE)

    done = _run(script, EXAMPLES, screen, claim, cwd=tmp_path, encoding="ascii")

    assert done.returncode == status, done.stderr
    assert ("DOES NOT HOLD: does not" in done.stdout) == (status == 1)
    assert ("All 2 claims hold. Done." in done.stdout) == (status == 0)
    assert "   a         5 B\n   b     3.0 MiB\n" in done.stdout


# ---- the training that the demo kills

# Trains up to so many examples, again and again, and prints what the end is. One part of the
# state may be forgotten at each resume.
TRAIN: Final = """
import hashlib, json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import digits_training as training
import ckptfmt
from ckptfmt import tree
training.HIDDEN, training.EVERY = 16, 500
forgotten, restore = sys.argv[3], training.Run.restore

def forgetful(checkpoint):
    run = restore(checkpoint)
    setattr(run, forgotten, getattr(training.Run.start(), forgotten))
    return run

if forgotten != "nothing":
    training.Run.restore = forgetful
for training.EXAMPLES in map(int, sys.argv[4:]):
    training.train(sys.argv[2])
digest = hashlib.sha256()
last = ckptfmt.open(sys.argv[2]).latest()
for path, value in tree.paths(last.load()):
    value = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
    digest.update(path.encode() + value)
print(json.dumps([last.number, dict(last.counters), dict(last.metrics), digest.hexdigest()]))
"""


def _end(folder: pathlib.Path, forgotten: str, *examples: int) -> Any:
    """Train in one process and return what the end is."""
    script = folder / "train.py"
    script.write_text(TRAIN)
    done = _run(script, EXAMPLES, folder / "store", forgotten, *examples, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def whole_end(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _end(tmp_path_factory.mktemp("whole"), "nothing", 4000)


def test_a_resumed_run_is_the_uninterrupted_one(whole_end: Any, tmp_path: pathlib.Path) -> None:
    """In new processes: what they do before they resume must not matter either."""
    ends = [_end(tmp_path, "nothing", examples) for examples in (1500, 2500, 4000)]

    assert ends[-1] == whole_end
    assert [end[0] for end in ends] == [3, 5, 8]


@pytest.mark.parametrize(
    "forgotten", ["mean", "square", "order", "generator", "step", "position", "losses"]
)
def test_what_the_resume_forgets_shows_in_the_end(
    forgotten: str, whole_end: Any, tmp_path: pathlib.Path
) -> None:
    """The comparison can fail: each part of the state is needed for the same bits."""
    assert _end(tmp_path, forgotten, 1500, 4000) != whole_end


# ---- the small ones


@pytest.mark.parametrize("name", SMALL)
def test_example_runs(name: str, tmp_path: pathlib.Path) -> None:
    done = _run(EXAMPLES / name, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert list(tmp_path.iterdir()) == [], "an example without a folder leaves nothing"


@pytest.mark.parametrize("name", SMALL)
def test_example_leaves_its_stores_where_it_is_told(name: str, tmp_path: pathlib.Path) -> None:
    done = _run(EXAMPLES / name, "here", cwd=tmp_path)
    stores = [file.parent for file in (tmp_path / "here").rglob("ckptfmt.json")]

    assert done.returncode == 0, done.stderr
    assert stores
    assert all(c.verify().ok for store in stores for c in ckptfmt.open(store))


@pytest.mark.parametrize("name", STORIES)
def test_every_claim_of_a_story_holds(name: str, tmp_path: pathlib.Path) -> None:
    claims, rows = STORIES[name]

    done = _run(EXAMPLES / name, cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert f"\nAll {claims} claims hold. " in done.stdout
    assert done.stdout.count("\n   ✓ ") == claims
    assert max(map(len, done.stdout.splitlines())) <= 100
    words = " ".join(done.stdout.split())
    assert [row for row in rows if row not in words] == []
    assert list(tmp_path.iterdir()) == [], "an example without a folder leaves nothing"


def test_all_examples_are_tested() -> None:
    names = {file.name for file in EXAMPLES.glob("*.py") if not file.name.startswith("_")}

    elsewhere = {  # those that need a framework, with the tests of its adapter
        name
        for name in names
        for file in (EXAMPLES.parent / "tests" / "adapters").rglob("test_*.py")
        if name in file.read_text("utf-8")
    }
    assert names == {*SMALL, *STORIES, "digits_resume.py", "digits_training.py", *elsewhere}


def _run(
    script: pathlib.Path, *arguments: object, cwd: pathlib.Path, encoding: str = "utf-8"
) -> Any:
    return subprocess.run(
        [sys.executable, "-W", "error", script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=False,
    )
