"""Where parts go: no value takes another's place, and the report names places that exist."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np

from ckptfmt import migrate

A, B = np.ones(3), np.full(3, 2.0)


def migrated(tree: Any, folder: pathlib.Path) -> migrate.Migrated:
    """Pickle a tree, migrate it, and check that each item is where the report says."""
    (folder / "x.pkl").write_bytes(pickle.dumps(tree, 2))
    return migrate.migrate(folder / "x.pkl", folder / "store", verify=True)


def places(done: migrate.Migrated) -> dict[str, str | None]:
    """Return the target of each item by its path."""
    return {item.path: item.target for item in done.report.items}


def test_a_branch_called_extra_does_not_replace_loose_values(tmp_path: pathlib.Path) -> None:
    done = migrated({"model": {"w": A}, "note": "hello", "extra": {"a": 1}}, tmp_path)

    assert done.checkpoint.load()["extra"] == {"note": "hello", "extra": {"a": 1}}
    assert places(done) == {
        "model/w": "model/w",
        "note": "extra/note",
        "extra/a": "extra/extra/a",
    }


def test_two_parts_of_one_name_both_stay(tmp_path: pathlib.Path) -> None:
    done = migrated({"state": {"model": {"w": A}}, "model": {"w": B}}, tmp_path)

    found = places(done)
    assert found == {"state/model/w": "model/model/w", "model/w": "model/model_2/w"}
    state = done.checkpoint.load()["model"]
    assert [state["model"]["w"][0], state["model_2"]["w"][0]] == [1.0, 2.0]


def test_two_counters_of_one_name_both_stay(tmp_path: pathlib.Path) -> None:
    inner = {"model": {"w": A}, "optimizer": {"x": B}, "epoch": 3}
    done = migrated({"epoch": 5, "seen": 1, "source_seen": 2, "state": inner}, tmp_path)

    assert done.checkpoint.counters == {
        "epoch": 5,
        "source_seen": 1,
        "source_seen_2": 2,
        "state_epoch": 3,
    }
    assert places(done)["state/epoch"] == "counters/state_epoch"


def test_the_source_is_not_changed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.pkl").write_bytes(
        pickle.dumps({"extra": {"a": 1}, "note": "n", "model": {"w": A}}, 2)
    )
    source = migrate.open(tmp_path / "x.pkl")

    assert source.report.items
    assert source.tree()["extra"] == {"a": 1}
