"""`ckptfmt show`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

import ckptfmt
from ckptfmt import Store
from ckptfmt.training import Progress

Cli = Callable[..., Any]

GOLDEN = """\
checkpoint 3 of @/run
saved      2026-03-01 08:50:00 UTC by ckptfmt VERSION
id         000000000000000000000003
identity   IDENTITY
parent     2 (000000000000000000000002)
size       23.8 KiB in 2 arrays
written    23.5 KiB, 400 B shared with earlier checkpoints
artifacts  vocab.txt (5 B)

counters
  seen  2000000

metrics
  val_loss  0.16666666666666666
  acc       0.7

hyperparameters
  lr      0.1
  layers  [100, 10]

sections
  model        2 arrays  23.8 KiB
  optimizer    0 arrays       0 B
  (top level)  0 arrays       0 B

tree        type       size  shape, value
----------  -----  --------  -------------------------------
model/      dict   23.8 KiB  2 arrays
  fc~11/    dict   23.8 KiB  2 arrays
    w       F32    23.4 KiB  [60, 100]
    b       F32       400 B  [100]
  tied      F32              [60, 100] tied to model/fc~11/w
optimizer/  list             2 entries
  0/        dict             2 entries
    lr      float            0.03333333333333333
    betas   tuple            (0.9, 0.999)
  1         dict             empty
name        str              "first\\nsecond"

"""


def masked(out: str) -> str:
    """Replace what depends on the machine and the release."""
    out = re.sub(r"\b[0-9a-f]{64}\b", "IDENTITY", out)
    return re.sub(r"(by ckptfmt) \S+", r"\1 VERSION", out)


def test_everything_on_one_page(cli: Cli, store: Store) -> None:
    ran = cli("show", "run@3")

    shown, rest = masked(ran.out).split("data file", 1)
    assert shown == GOLDEN
    # How arrays are spread over files is the engine's business.
    assert re.search(r"^data/0{23}2-\S+\.safetensors +512 B +2$", rest, re.MULTILINE)
    assert re.search(r"^data/0{23}3-\S+\.safetensors +23.5 KiB +this one$", rest, re.MULTILINE)
    assert re.search(r"^environment\npython +cpython 3\.", rest, re.MULTILINE)
    assert re.search(rf"^numpy +{re.escape(np.__version__)}\b", rest, re.MULTILINE)
    assert (ran.status, ran.err) == (0, "")


def test_addresses(cli: Cli, store: Store) -> None:
    store.tag(2, "chosen")
    for address, number in {
        "run": 3,
        "run@latest": 3,
        "run@1": 1,
        "run@best:val_loss": 3,
        "run@best:val_loss:max": 1,
        "run@best:acc:max": 3,
        "run@examples:1999999": 2,
        "run@tag:chosen": 2,
    }.items():
        assert cli("show", address).out.startswith(f"checkpoint {number} of @/run\n"), address


def test_an_url(cli: Cli) -> None:
    ckptfmt.open("memory://cli-show").save({"a": np.zeros(3)})

    assert cli("show", "memory://cli-show@1").status == 0


def test_a_bundle(cli: Cli, store: Store) -> None:
    ckptfmt.pack(store[2], "packed.safetensors")

    ran = cli("show", "packed.safetensors")

    assert ran.out.startswith("checkpoint 2 of packed.safetensors\n")
    assert "(this file)" in ran.out


def test_parts_of_the_tree(cli: Cli, store: Store) -> None:
    def tree(*options: str) -> list[str]:
        lines = cli("show", "run", *options).out.split("tree ")[1].split("\n\n")[0].splitlines()
        return [line.split()[0] for line in lines[2:]]

    assert tree("--select", "**/w") == ["model/", "fc~11/", "w"]
    assert tree("--select", "optimizer/0/betas/1") == ["optimizer/", "0/", "betas"]
    assert tree("--select", "name", "-s", "optimizer/1") == ["optimizer/", "1", "name"]
    assert tree("--depth", "1") == ["model/", "optimizer/", "name", "..."]


def test_a_selection_of_nothing_is_an_error(cli: Cli, store: Store) -> None:
    ran = cli("show", "run", "--select", "modle/**")

    assert (ran.status, ran.out) == (3, "")
    assert "nothing in the checkpoint matches" in ran.err


def test_large_trees_are_cut_to_whole_levels(cli: Cli, empty: Store) -> None:
    layers = {f"layer{n}": {"w": np.zeros(1), "b": np.zeros(1)} for n in range(99)}
    empty.save({"model": layers, "history": ["x" * 100] * 3})

    shown, full = cli("show", "run").out, cli("show", "run", "--full").out

    assert "  layer98/ " in shown
    assert "    w " not in shown
    assert "... and 198 lines deeper down (--depth, --select or --full)\n" in shown
    assert full.count("    w ") == 99
    assert "x" * 100 not in shown
    assert "x" * 100 in full


def test_many_values_are_cut(cli: Cli, empty: Store) -> None:
    empty.save({}, metrics={f"m{n}": n for n in range(50)})

    assert "... and 10 more (--full)\n" in cli("show", "run").out
    assert "\n  m49  49\n" in cli("show", "run", "-f").out


def test_json(cli: Cli, store: Store) -> None:
    store.annotate(3, {"notes": "late", "metrics.test": 1})

    document = json.loads(cli("show", "run@3", "--json").out)

    assert document["arrays"] == [
        {
            "path": "model/fc~11/w",
            "dtype": "F32",
            "shape": [60, 100],
            "nbytes": 24_000,
            "stored_nbytes": 24_000,
            "chunks": 1,
            "tied": ["model/tied"],
        },
        {
            "path": "model/fc~11/b",
            "dtype": "F32",
            "shape": [100],
            "nbytes": 400,
            "stored_nbytes": 400,
            "chunks": 1,
            "tied": [],
        },
    ]
    assert document["values"] == {
        "optimizer/0/lr": 0.1 / 3,
        "optimizer/0/betas": [0.9, 0.999],
        "optimizer/1": {},
        "name": "first\nsecond",
    }
    assert (document["url"], document["number"], document["nbytes"]) == ("@/run", 3, 24_400)
    assert (document["stored_nbytes"], document["reused_nbytes"]) == (24_400, 400)
    assert document["metrics"] == {"val_loss": 0.5 / 3, "acc": 0.7, "test": 1}
    assert document["notes"] == {"notes": "late"}
    assert document["hyperparameters"] == {"lr": 0.1, "layers": [100, 10]}
    assert document["architecture"] is None
    assert document["preprocessing"] is None
    assert document["artifacts"] == [{"name": "vocab.txt", "nbytes": 5}]
    assert [file["number"] for file in document["files"]] == [2, 3]
    assert [row["number"] for row in document["history"]] == [1, 2]
    assert document["history"][1]["time"] == "2026-03-01T08:30:00.000000+00:00"
    assert document["history"][1]["metrics"] == {"val_loss": 0.25, "acc": "NaN"}
    assert document["environment"]["numpy"]["version"] == np.__version__


def test_json_of_a_selection(cli: Cli, store: Store) -> None:
    document = json.loads(cli("show", "run@3", "--json", "-s", "model/tied", "-s", "name").out)

    assert [array["path"] for array in document["arrays"]] == ["model/fc~11/w"]
    assert document["values"] == {"name": "first\nsecond"}


def test_no_array_is_read(cli: Cli, store: Store, damage: Any) -> None:
    damage.data(3)

    assert cli("show", "run@3").status == 0


def test_how_the_run_was_fed_is_told(cli: Cli, empty: Store) -> None:
    progress = Progress(dataset_size=1000, stop_point=2, virtual_epochs=4, global_batch=100)
    progress.advance(500)
    progress.declare(dataset="\x1b[31mgrown", dataset_size=1250)
    empty.save({"model": {}}, counters={**progress.state(), "step": 5})

    ran, full = cli("show", "run"), cli("show", "run", "--full")
    document = json.loads(cli("show", "run", "--json").out)

    told = (
        "\nrun\n"
        "  at 0: batches of 100, 1,000 examples in the data set\n"
        "  at 500: 1,250 examples in the data set, data set '\\x1b[31mgrown'\n"
        "  now at 500 of 2,000 examples, virtual epoch 1.00 of 4, 0.50 passes\n"
        "\ncounters\n  seen "
    )
    assert told in ran.out
    assert "progress/" not in ran.out
    assert "progress/segments/1/dataset" in full.out
    assert document["story"][0] == "at 0: batches of 100, 1,000 examples in the data set"
    assert document["counters"]["progress"]["skipped"] == 0


def test_counters_of_others_are_shown_as_they_are(cli: Cli, empty: Store) -> None:
    empty.save({"model": {}}, counters={"seen": 5, "progress": {"percent": 3}})

    ran = cli("show", "run")

    assert "\nrun\n" not in ran.out
    assert "progress/percent" in ran.out
    assert json.loads(cli("show", "run", "--json").out)["story"] == []
