"""`ckptfmt copy`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import ckptfmt
from ckptfmt import Store
from ckptfmt.format import layout

Cli = Callable[..., Any]


def test_copy_a_store(cli: Cli, store: Store) -> None:
    planned = cli("copy", "run", "other", "--dry-run")
    assert not pathlib.Path("other").exists()
    done = cli("copy", "run", "other")

    assert planned.out.startswith("would copy checkpoints 1-3: ")
    assert done.out == planned.out.replace("would copy", "copied")
    assert (done.status, done.err) == (0, "")
    assert [c.identity for c in ckptfmt.open("other")] == [c.identity for c in store]
    again = cli("copy", "run", "other").out
    assert again == "copied no checkpoint: 0 B in 0 files\nthere already: checkpoints 1-3\n"


def test_copy_one_checkpoint(cli: Cli, store: Store) -> None:
    assert cli("copy", "run@best:val_loss", "other", "--no-read-back").status == 0
    assert [c.number for c in ckptfmt.open("other")] == [store.best("val_loss").number]


def test_copy_as_json(cli: Cli, store: Store) -> None:
    store.delete(2)
    document = json.loads(cli("copy", "run", "other", "--json").out)

    assert document["source"] == "@/run"
    assert document["target"] == "@/other"
    assert document["numbers"] == [1, 3]
    assert document["present"] == document["deleted"] == document["unreadable"] == []
    assert document["nbytes"] == sum(
        p.stat().st_size for p in pathlib.Path("other/data").iterdir()
    )
    assert document["read_back"] is True


def test_a_damaged_manifest_is_said_by_the_status(cli: Cli, store: Store) -> None:
    path = pathlib.Path("run") / layout.manifest_key(1)
    path.write_bytes(path.read_bytes()[:-1])

    ran = cli("copy", "run", "other")

    assert ran.status == 1
    assert "checkpoint 1 cannot be read" in ran.err
    assert [c.number for c in ckptfmt.open("other")] == [2, 3]


def test_damaged_data_and_conflicts_are_errors(cli: Cli, store: Store) -> None:
    ckptfmt.open("taken").save({"w": 1})
    assert cli("copy", "run", "taken").status == 4
    path = pathlib.Path("run") / store[1].manifest.tables.files[0].key
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    ran = cli("copy", "run@1", "other")

    assert ran.status == 5
    assert "error[integrity]: digest mismatch" in ran.err
    assert "offset=" in ran.err
    assert "path='" in ran.err


def test_what_is_no_store_is_not_copied(cli: Cli, store: Store) -> None:
    assert cli("copy", "nowhere", "other").status == 3
    assert cli("copy", "run", "run").status == 2
    assert cli("copy", "run", "x.safetensors").status == 2
    assert not pathlib.Path("other").exists()
