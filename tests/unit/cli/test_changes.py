"""`ckptfmt tag`, `delete` and `collect`."""

from __future__ import annotations

import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from ckptfmt import Store
from ckptfmt.format import layout
from ckptfmt.format.records import SAVE, Intent

Cli = Callable[..., Any]


def test_tags_are_attached_and_removed(cli: Cli, store: Store) -> None:
    assert cli("tag", "run@2", "good", "pinned").out == "checkpoint 2: good, pinned\n"
    assert set(store[2].tags) == {"good", "pinned"}
    assert cli("tag", "run@2", "good", "--remove").out == "checkpoint 2: pinned\n"
    assert (
        cli("tag", "run@1", "warm", "--remove").out == "checkpoint 1: no tags\n"
    )  # of the save
    document = json.loads(cli("tag", "run@best:val_loss", "best", "--json").out)
    assert document == {"store": "@/run", "number": 3, "tags": ["best"]}


def test_a_tag_needs_to_know_its_checkpoint(cli: Cli, store: Store) -> None:
    assert cli("tag", "run", "good").status == 2
    assert cli("tag", "run@9", "good").status == 3
    assert cli("tag", "run@1", "\x1b[31m").status == 2
    assert cli("tag", "nowhere@1", "good").status == 3
    assert [c.tags for c in store] == [("warm",), (), ()]
    assert not pathlib.Path("nowhere").exists()


def test_delete(cli: Cli, store: Store) -> None:
    planned = cli("delete", "run", "1", "2", "--dry-run")
    assert sorted(c.number for c in store) == [1, 2, 3]
    done = cli("delete", "run", "1", "2")

    assert planned.out.startswith("would delete checkpoints 1, 2: ")
    assert done.out == planned.out.replace("would delete", "deleted")
    assert done.status == 0
    assert [c.number for c in store] == [3]
    assert cli("verify", "run").status == 0
    assert "was deleted" in cli("delete", "run", "1").err
    assert "was deleted" in cli("slim", "run", "1", "--drop", "model").err


def test_delete_as_json(cli: Cli, store: Store) -> None:
    document = json.loads(cli("delete", "run", "1", "--json").out)

    assert document["store"] == "@/run"
    assert document["numbers"] == [1]
    assert document["dry_run"] is False
    assert document["blocked"] == []
    assert document["nbytes"] > 24_000
    assert all(key.startswith("data/") for key in document["files"])


@pytest.mark.parametrize(("number", "status"), [("9", 3), ("2", 2), ("x", 2), ("-1", 3)])
def test_what_cannot_be_deleted(cli: Cli, store: Store, number: str, status: int) -> None:
    store.tag(2, "pinned")

    assert cli("delete", "run", number).status == status
    assert len(store) == 3


def test_a_checkpoint_is_no_store(cli: Cli, store: Store) -> None:
    for words in (["delete", "run@1", "3"], ["ls", "run@latest"], ["collect", "run@2"]):
        ran = cli(*words)
        assert (ran.status, ran.out) == (2, "")
        assert "leave out what names the one" in ran.err
    assert len(store) == 3


def test_delete_says_why_data_stays(cli: Cli, store: Store, damage: Any) -> None:
    damage.summary(2)

    ran = cli("delete", "run", "1")

    assert ran.out.splitlines()[0] == "deleted checkpoint 1: 0 B in 0 files"
    assert ran.out.splitlines()[1].startswith("data kept: checkpoint 2 is not readable")


def test_retain(cli: Cli, store: Store) -> None:
    planned = cli("retain", "run", "--last", "1", "--dry-run")
    assert sorted(c.number for c in store) == [1, 2, 3]
    done = cli("retain", "run", "--last", "1", "--best", "val_loss:max:1")

    assert planned.out.startswith("would delete checkpoints 1, 2: ")
    assert done.out.startswith("deleted checkpoint 2: ")
    assert [c.number for c in store] == [1, 3]
    assert json.loads(cli("retain", "run", "--last", "2", "--json").out)["numbers"] == []
    assert cli("retain", "run", "--last", "2").out == "changed nothing: 0 B in 0 files\n"


@pytest.mark.parametrize(
    "words", [[], ["--last", "0"], ["--best", "val_loss"], ["--best", "loss:up:1"]]
)
def test_rules_that_make_no_sense(cli: Cli, store: Store, words: list[str]) -> None:
    refused = cli("retain", "run", *words)

    assert refused.status == 2
    assert words or "--last" in refused.err  # the way out is an option, not a call
    assert len(store) == 3


def test_slim(cli: Cli, store: Store) -> None:
    planned = cli("slim", "run", "1", "2", "--drop", "model", "--dry-run")
    assert [c.dropped for c in store] == [(), (), ()]
    done = cli("slim", "run", "1", "2", "--drop", "model")

    assert planned.out.startswith("would slim checkpoints 1, 2: ")
    assert done.out == planned.out.replace("would slim", "slimmed")
    assert [c.dropped for c in store] == [("model",), ("model",), ()]
    assert cli("slim", "run", "3", "--drop", "nothing").status == 3
    assert cli("slim", "run", "3").status == 2


def test_all_who_show_a_checkpoint_say_that_it_is_slimmed(cli: Cli, store: Store) -> None:
    cli("slim", "run", "1", "--drop", "model")

    assert "slimmed: no model" in cli("ls", "run").out
    assert re.search(r"slimmed +no model since \d{4}-\d\d-\d\d", cli("show", "run@1").out)
    assert "1 is slimmed: no model" in cli("verify", "run").out
    for words in (["show", "run@1"], ["ls", "run"], ["verify", "run"]):
        document = json.loads(cli(*words, "--json").out)
        row = document.get("checkpoints", [document])[0]
        assert row["dropped"] == ["model"]
    for words in (
        ["export", "run@1", "x.safetensors"],
        ["show", "run@1", "-s", "model"],
        ["show", "run@1", "-s", "optimizer", "-s", "model/*", "--json"],
    ):
        asked = cli(*words)
        assert (asked.status, "slimmed" in asked.err) == (3, True)


def test_retain_slims(cli: Cli, store: Store) -> None:
    words = ["retain", "run", "--last", "1", "--every-hours", "0.000001", "--slim", "model"]

    document = json.loads(cli(*words, "--json").out)

    assert (document["numbers"], document["slimmed"]) == ([], [1, 2])


def orphan(hours: float) -> pathlib.Path:
    """Leave a data file behind, as a crashed save would."""
    file = pathlib.Path(f"run/data/{'f' * 24}-model-0.safetensors")
    file.write_bytes(b"x" * 2048)
    os.utime(file, (time.time() - hours * 3600,) * 2)
    return file


def test_collect(cli: Cli, store: Store) -> None:
    file = orphan(hours=1)

    planned = cli("collect", "run", "--dry-run")
    assert file.exists()
    done = cli("collect", "run")

    assert planned.out == "would free 2.0 KiB in 1 file, 0 leases, 0 tombstones\n"
    assert done.out == "freed 2.0 KiB in 1 file, 0 leases, 0 tombstones\n"
    assert not file.exists()


def test_collect_leaves_young_files(cli: Cli, store: Store) -> None:
    file = orphan(hours=1)

    assert cli("collect", "run", "--older-than", "2h").out.startswith("freed 0 B in 0 files")
    assert file.exists()
    assert cli("collect", "run", "--older-than", "30m").out.startswith("freed 2.0 KiB")
    assert cli("collect", "run", "--older-than", "soon").status == 2


def test_collect_stops_at_leases_until_they_are_broken(cli: Cli, store: Store) -> None:
    file = orphan(hours=1)
    lease = Intent(kind=SAVE, save="e" * 24, number=4, revision=0, host="elsewhere", pid=1)
    pathlib.Path("run/intents").mkdir(exist_ok=True)
    pathlib.Path("run", layout.intent_key(lease.save)).write_bytes(lease.encode())

    stopped = cli("collect", "run")
    would = cli("collect", "run", "--break-lease", "--dry-run")
    broken = cli("collect", "run", "--break-lease")

    assert stopped.status == 0
    assert "kept: save eeeeeeeeeeeeeeeeeeeeeeee" in stopped.out
    assert "--break-lease" in stopped.out
    assert "would free 2.0 KiB in 1 file, 1 lease" in would.out
    assert "freed 2.0 KiB in 1 file, 1 lease" in broken.out
    assert broken.status == 0
    assert not file.exists()
    assert 4 not in store


def test_collect_forgets_what_is_damaged(cli: Cli, store: Store, damage: Any) -> None:
    damage.summary(2)

    assert "kept: checkpoint 2 is not readable" in cli("collect", "run").out
    assert cli("collect", "run", "--forget", "1").status == 2  # is not damaged
    document = json.loads(cli("collect", "run", "--forget", "2", "--json").out)

    assert document["store"] == "@/run"
    assert document["blocked"] == []
    assert document["nbytes"] > 20_000
    assert document["dry_run"] is False
    assert (document["intents"], document["tombstones"]) == ([], [])
    assert [c.number for c in store] == [1, 3]
    assert cli("verify", "run").status == 0


def test_stores_are_not_made_by_looking(cli: Cli) -> None:
    assert cli("delete", "nowhere", "1").status == 3
    assert cli("collect", "nowhere").status == 3
    assert not pathlib.Path("nowhere").exists()


def test_ls_shows_what_dead_writers_left(cli: Cli, store: Store) -> None:
    file = orphan(hours=72)
    lease = Intent(kind=SAVE, save="e" * 24, number=4, host="elsewhere", pid=1)
    key = layout.intent_key(lease.save)
    store.backend.create(key, lease.encode())

    shown = cli("ls", "run", "--all").out
    document = json.loads(cli("ls", "run", "--all", "--json").out)

    assert re.search(rf"{file.name} +2.0 KiB +3d +of nobody in flight", shown)
    assert re.search(rf"{key} .* save of process 1 on elsewhere, in flight or dead", shown)
    assert {one["key"] for one in document["leftovers"]} == {f"data/{file.name}", key}
    assert "leftover" not in cli("ls", "run").out
    assert json.loads(cli("ls", "run", "--json").out)["leftovers"] == []

    cli("collect", "run", "--break-lease")
    assert "leftover" not in cli("ls", "run", "--all").out
