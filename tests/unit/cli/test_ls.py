"""`ckptfmt ls`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ckptfmt import Store

Cli = Callable[..., Any]

GOLDEN = """\
number  saved (UTC)            seen  val_loss  acc      size       new  tags
------  ----------------  ---------  --------  ---  --------  --------  ----
     1  2026-03-01 08:10          0       0.5  0.5  23.8 KiB  24.0 KiB  warm
     2  2026-03-01 08:30  1,000,000      0.25  nan  23.8 KiB  24.1 KiB
     3  2026-03-01 08:50  2,000,000  0.166667  0.7  23.8 KiB  23.5 KiB
"""


def test_table(cli: Cli, store: Store) -> None:
    ran = cli("ls", "run")

    assert ran.out == GOLDEN
    assert (ran.status, ran.err) == (0, "")


def test_what_cannot_be_loaded_is_counted_and_listed_on_request(
    cli: Cli, store: Store, damage: Any
) -> None:
    store.delete(1)
    damage.newer(2)
    damage.summary(3)

    brief, full = cli("ls", "run"), cli("ls", "run", "--all")

    assert brief.out == (
        "no checkpoint to show\nnot shown: 1 damaged, 1 newer, 1 deleted (see --all)\n"
    )
    assert [line.split()[:2] for line in full.out.splitlines()[2:5]] == [
        ["1", "deleted"],
        ["2", "newer"],
        ["3", "damaged"],
    ]
    assert "2 is newer: " in full.out
    assert "3 is damaged: digest mismatch" in full.out
    assert (brief.status, full.status) == (0, 0)


def test_damage_inside_a_manifest_is_found(cli: Cli, store: Store, damage: Any) -> None:
    damage.body(2)

    ran = cli("ls", "run", "--json")
    full = cli("ls", "run", "--json", "--all")

    document = json.loads(ran.out)
    assert [c["number"] for c in document["checkpoints"]] == [1, 3]
    assert document["hidden"] == {"damaged": 1, "newer": 0, "deleted": 0}
    second = json.loads(full.out)["checkpoints"][1]
    assert (second["status"], second["number"]) == ("damaged", 2)
    assert "digest" in second["reason"]


def test_json(cli: Cli, store: Store) -> None:
    document = json.loads(cli("ls", "run", "--json").out)

    assert document["store"] == "@/run"
    second = document["checkpoints"][1]
    identity = store[2].identity
    writer = store[2].writer
    assert second == {
        "number": 2,
        "status": "ok",
        "reason": None,
        "revision": 0,
        "id": f"{2:024x}",
        "identity": identity,
        "parent": {"number": 1, "id": f"{1:024x}"},
        "time": "2026-03-01T08:30:00.000000+00:00",
        "writer": {
            "name": "ckptfmt",
            "version": writer["version"],
            "python": writer["python"],
            "process": f"{1:024x}",
        },
        "counters": {"seen": 1_000_000},
        "metrics": {"val_loss": 0.25, "acc": "NaN"},
        "tags": [],
        "sections": [
            {"name": "model", "nbytes": 24_400, "arrays": 2},
            {"name": "optimizer", "nbytes": 0, "arrays": 0},
            {"name": "", "nbytes": 0, "arrays": 0},
        ],
        "dropped": [],
        "dropped_at": {},
        "nbytes": 24_400,
        "new_nbytes": store[2].new_bytes,
        "reused_nbytes": 0,
    }
    assert document["checkpoints"][2]["reused_nbytes"] == 400


def test_the_newest_few(cli: Cli, store: Store) -> None:
    numbers = [
        c["number"]
        for c in json.loads(cli("ls", "run", "-n", "2", "--json").out)["checkpoints"]
    ]

    assert numbers == [2, 3]
    assert cli("ls", "run", "-n", "0").status == 2


def test_metrics_are_chosen_by_name_and_the_others_are_named(cli: Cli, empty: Store) -> None:
    empty.save({}, metrics={f"m{n}": n for n in range(6)})

    assert cli("ls", "run").out.splitlines()[0].split()[4:8] == ["m0", "m1", "m2", "m3"]
    assert "more metrics: m4, m5 (show one with -m)\n" in cli("ls", "run").out
    chosen = cli("ls", "run", "-m", "m5", "-m", "m1").out
    assert chosen.splitlines()[0].split()[3:6] == ["seen", "m5", "m1"]
    assert "more metrics" not in chosen
    missing = cli("ls", "run", "-m", "m7")
    assert (missing.status, missing.out) == (3, "")


def test_a_store_without_checkpoints(cli: Cli, empty: Store) -> None:
    assert cli("ls", "run").status == 3  # nothing is created before the first save

    empty.save({})
    empty.delete(1)

    assert cli("ls", "run").out.startswith("no checkpoint to show\n")


def test_a_missing_store_is_no_empty_one(cli: Cli) -> None:
    ran = cli("ls", "nowhere")

    assert ran.status == 3
    assert ran.err == "error[not-found]: no store here [url='@/nowhere']\n"


def test_a_bundle_is_no_store(cli: Cli) -> None:
    ran = cli("ls", "model.safetensors")

    assert ran.status == 2
    assert "a bundle is one checkpoint" in ran.err
