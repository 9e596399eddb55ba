"""`ckptfmt verify`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.cli import verify

Cli = Callable[..., Any]


def test_a_store_is_verified_checkpoint_by_checkpoint(cli: Cli, store: Store) -> None:
    store.delete(2)

    ran = cli("verify", "run")

    assert ran.out.splitlines() == [
        "checkpoint  status  arrays      read  problems",
        "----------  ------  ------  --------  --------",
        "         1  ok           2  23.8 KiB         0",
        "         3  ok           2  23.8 KiB         0",
    ]
    assert (ran.status, ran.err) == (0, "")


def test_damage_is_named_and_everything_else_still_verified(
    cli: Cli, store: Store, damage: Any
) -> None:
    key = damage.data(1)
    damage.summary(2)

    ran = cli("verify", "run")
    document = json.loads(cli("verify", "run", "--json").out)

    assert ran.status == 1
    assert "\n1 problem\n" in ran.out
    assert key in ran.out
    assert "2 is damaged: digest mismatch in the summary" in ran.out
    by_number = {row["number"]: row for row in document["checkpoints"]}
    assert {n: row["status"] for n, row in by_number.items()} == {
        1: "damaged",
        2: "damaged",
        3: "ok",
    }
    (problem,) = by_number[1]["problems"]
    assert problem["file"] == key
    assert problem["path"] in ("model/fc~11/w", "model/fc~11/b")
    assert problem["expected"] != problem["found"]
    assert problem["message"] in ran.out or "digest mismatch" in problem["message"]
    assert by_number[2]["arrays"] is None
    assert by_number[3] == {
        "number": 3,
        "status": "ok",
        "reason": None,
        "dropped": [],
        "arrays": 2,
        "chunks": 2,
        "nbytes": 24_400,
        "read_nbytes": 24_400,
        "problems": [],
    }


def test_one_checkpoint(cli: Cli, store: Store, damage: Any) -> None:
    damage.data(1)

    assert cli("verify", "run@1").status == 1
    assert cli("verify", "run@2").status == 0
    assert cli("verify", "run@9").status == 3


def test_a_checkpoint_whose_manifest_is_damaged(cli: Cli, store: Store, damage: Any) -> None:
    damage.summary(3)

    assert cli("verify", "run@3").status == 5
    assert cli("verify", "run@latest").status == 0


def test_damage_inside_a_manifest_is_found(cli: Cli, store: Store, damage: Any) -> None:
    damage.body(2)

    ran = cli("verify", "run")

    assert ran.status == 1
    assert "2 is damaged: digest mismatch" in ran.out


def test_what_is_too_new_is_not_verified(cli: Cli, store: Store, damage: Any) -> None:
    damage.newer(2)

    ran = cli("verify", "run", "--json")

    assert ran.status == 1
    assert json.loads(ran.out)["checkpoints"][1]["status"] == "newer"


def test_a_missing_data_file_is_a_problem(cli: Cli, store: Store, damage: Any) -> None:
    pathlib.Path("run", damage.data(1)).unlink()

    ran = cli("verify", "run@1")

    assert ran.status == 1
    assert "data file is missing" in ran.out


def test_a_bundle(cli: Cli, store: Store, damage: Any) -> None:
    ckptfmt.pack(store[1], "packed.safetensors")
    assert cli("verify", "packed.safetensors").status == 0

    damage.flip("packed.safetensors")

    ran = cli("verify", "packed.safetensors", "--json")
    assert ran.status == 1
    assert json.loads(ran.out)["url"] == "packed.safetensors"


def test_an_empty_store(cli: Cli, store: Store) -> None:
    store.delete([1, 2, 3])

    assert cli("verify", "run").out == "no checkpoint to verify\n"
    assert cli("verify", "elsewhere").status == 3


def test_one_that_is_slimmed_meanwhile_is_verified_as_it_is(
    cli: Cli, empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = verify.listing.rows
    for n in (1, 2, 3):
        empty.save({"model": {"w": np.arange(9.0)}, "optimizer": {"m": np.full(300_000, n)}})

    def others_are_faster(store: Store) -> list[Any]:
        found = list(rows(store))
        empty.slim(1, drop="optimizer")
        empty.delete(2)
        return found

    monkeypatch.setattr(verify.listing, "rows", others_are_faster)
    ran = cli("verify", "run", "--json")

    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)["checkpoints"]
    assert [(c["number"], c["status"], c["dropped"]) for c in found] == [
        (1, "ok", ["optimizer"]),
        (3, "ok", []),
    ]
