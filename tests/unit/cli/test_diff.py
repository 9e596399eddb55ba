"""`ckptfmt diff`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptfmt
from ckptfmt import Store
from ckptfmt.checks import environment

Cli = Callable[..., Any]

GOLDEN = """\
A  checkpoint 1 of @/run
B  checkpoint 3 of @/run

arrays: 2 changed, 1 equal
status   array          type           max abs  max rel  differing
-------  -------------  -------------  -------  -------  ---------
changed  model/fc~11/w  F32 [60, 100]      0.5  0.00498        200
changed  model/tied     F32 [60, 100]      0.5  0.00498        200

metadata: 3 differences
where     path      A    B
--------  --------  ---  -------------------
counters  seen      0    2000000
metrics   val_loss  0.5  0.16666666666666666
metrics   acc       0.5  0.7

values of the tree: 1 difference
path            A    B
--------------  ---  -------------------
optimizer/0/lr  0.1  0.03333333333333333
"""


def test_table(cli: Cli, store: Store) -> None:
    ran = cli("diff", "run@1", "run@3", "--values")

    assert ran.out == GOLDEN
    assert (ran.status, ran.err) == (1, "")


def test_equal_checkpoints(cli: Cli, store: Store) -> None:
    ckptfmt.pack(store[2], "packed.safetensors")

    ran = cli("diff", "run@2", "packed.safetensors")

    assert ran.out.endswith("\narrays: 3 equal\n")
    assert ran.status == 0


def test_equal_arrays_are_listed_on_request(cli: Cli, store: Store) -> None:
    assert "equal    model/fc~11/b  F32 [100]\n" in cli("diff", "run@1", "run@3", "--all").out


def document(cli: Cli, *words: str) -> Any:
    return json.loads(cli("diff", *words, "--json").out)


def statuses(found: Any) -> dict[str, str]:
    return {array["path"]: array["status"] for array in found["arrays"]}


def test_added_removed_and_retyped_arrays(cli: Cli, empty: Store) -> None:
    empty.save({"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros(3), "d": np.zeros(3)})
    empty.save({"a": np.zeros(3), "c": np.zeros(4), "d": np.zeros(3, "f4"), "e": np.zeros(3)})

    found = document(cli, "run@1", "run@2", "--values")

    assert statuses(found) == {
        "a": "equal",
        "b": "removed",
        "c": "changed",
        "d": "changed",
        "e": "added",
    }
    by_path = {array["path"]: array for array in found["arrays"]}
    assert by_path["b"]["b"] is None
    assert by_path["e"]["a"] is None
    assert by_path["c"]["a"] == {"dtype": "F64", "shape": [3]}
    assert by_path["c"]["values"] is None  # other shapes: no distance
    assert by_path["d"]["values"]["max_abs"] == 0
    assert found["values"] == []  # told once, with the arrays
    assert not found["equal"]
    shown = cli("diff", "run@1", "run@2").out
    assert "arrays: 2 changed, 1 added, 1 removed, 1 equal\n" in shown
    assert "changed  c      F64 [3] -> F64 [4]\n" in shown


def test_distances_know_nan(cli: Cli, empty: Store) -> None:
    empty.save({"a": np.array([1, math.nan, math.inf, 4])})
    empty.save({"a": np.array([math.nan, math.nan, math.inf, 5])})

    values = document(cli, "run@1", "run@2", "--values")["arrays"][0]["values"]

    assert values == {
        "same_bits": False,
        "differing": 2,
        "max_abs": 1.0,
        "max_rel": 0.2,
        "nan_in_a": 0,
        "nan_in_b": 1,
    }
    assert "2 (1 nan)" in cli("diff", "run@1", "run@2", "--values").out


def test_no_data_is_read_where_digests_decide(cli: Cli, store: Store, damage: Any) -> None:
    damage.data(1)
    damage.data(3)

    assert statuses(document(cli, "run@1", "run@3"))["model/fc~11/w"] == "changed"
    assert cli("diff", "run@1", "run@3", "--values").status == 5


def test_other_digest_algorithms_are_decided_by_reading(cli: Cli, empty: Store) -> None:
    state = {"a": np.arange(10), "b": np.arange(5)}
    empty.save(state)
    other = ckptfmt.open("other", digest="sha256")
    other.save(state | {"b": np.arange(5) + 1})

    found = document(cli, "run@1", "other@1")

    assert statuses(found) == {"a": "equal", "b": "changed"}
    assert found["arrays"][1]["values"] is None


def test_ties_count(cli: Cli, empty: Store) -> None:
    w = np.arange(3)
    empty.save({"a": w, "b": w})
    empty.save({"a": w, "b": w.copy()})

    found = document(cli, "run@1", "run@2")

    assert statuses(found) == {"a": "equal", "b": "equal"}
    assert found["values"] == [
        {
            "where": "tree",
            "path": "b",
            "a": {"kind": "array tied to a"},
            "b": {"kind": "array"},
        }
    ]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ([1], (1,)),
        ({}, []),
        (None, {}),
        ({"1": "x"}, {1: "x"}),
        (np.float32(1), np.float64(1)),
        (np.float32(0.0), np.float32(-0.0)),
        ([1, 2], [1, 2, 3]),
        ([1.0, 2], [1, 2]),
        (np.zeros(()), 0.0),
    ],
)
def test_values_are_compared_with_their_types(cli: Cli, empty: Store, a: Any, b: Any) -> None:
    empty.save({"x": {"y": a}})
    empty.save({"x": {"y": b}})

    assert cli("diff", "run@1", "run@2").status == 1
    assert cli("diff", "run@1", "run@1").status == 0


def test_nan_is_itself(cli: Cli, empty: Store) -> None:
    for _ in range(2):
        empty.save({"x": math.nan, "y": [math.nan]}, metrics={"loss": math.nan})

    assert cli("diff", "run@1", "run@2").status == 0


def test_json_says_what_was_compared(cli: Cli, store: Store) -> None:
    found = document(cli, "run@1", "run@3")

    assert found["a"] == {"url": "@/run", "number": 1, "identity": store[1].identity}
    assert found["b"] == {"url": "@/run", "number": 3, "identity": store[3].identity}


def test_long_lists_are_cut_unless_asked_for(cli: Cli, empty: Store) -> None:
    for n in range(2):
        empty.save(
            {f"a{i}": np.full(1, n) for i in range(250)} | {f"v{i}": n for i in range(250)}
        )

    brief, full = cli("diff", "run@1", "run@2").out, cli("diff", "run@1", "run@2", "--full").out

    assert brief.count("\n... and 50 more (--full)\n") == 2
    assert "a249" not in brief
    assert "v249" not in brief
    assert "... and" not in full
    assert "a249" in full
    assert "v249" in full


def test_absent_values_differ_from_null(cli: Cli, empty: Store) -> None:
    empty.save({"x": None, "y": 1}, counters={"seen": 1})
    empty.save({"y": 1}, hyperparameters={"deep": {"lr": 0.1}})

    found = {
        (row["where"], row["path"]): row for row in document(cli, "run@1", "run@2")["values"]
    }

    assert found["tree", "x"]["a"] == {"kind": "none", "value": None}
    assert found["tree", "x"]["b"] is None
    assert found["counters", "seen"]["a"] == {"kind": "int", "value": 1}
    assert found["hyperparameters", "deep/lr"]["b"] == {"kind": "float", "value": 0.1}
    assert found["hyperparameters", "deep"] == {
        "where": "hyperparameters",
        "path": "deep",
        "a": None,
        "b": {"kind": "dict"},
    }


def test_artifacts_are_compared(cli: Cli, empty: Store) -> None:
    empty.save({}, artifacts={"vocab": b"a"})
    empty.save({}, artifacts={"vocab": b"b"})

    assert [row["where"] for row in document(cli, "run@1", "run@2")["values"]] == ["artifacts"]


def test_long_values_show_where_they_differ(cli: Cli, empty: Store) -> None:
    for seed in range(2):
        empty.save({"text": "x" * 300 + str(seed), "rng": random.Random(seed).getstate()})

    rows = cli("diff", "run@1", "run@2").out.splitlines()

    text = next(line.split() for line in rows if line.startswith("text"))
    assert text[1].endswith('xxx0"')
    assert text[2].endswith('xxx1"')
    assert sum(line.startswith("rng/1 ") for line in rows) == 1  # one value of 625 numbers


def test_environments_are_told_but_do_not_make_a_difference(
    cli: Cli, empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.save({})
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    empty.save({})

    ran = cli("diff", "run@1", "run@2")

    assert ran.status == 0
    assert "XLA_FLAGS" in ran.out
    found = document(cli, "run@1", "run@2")
    assert [f["name"] for f in found["environment"]] == ["XLA_FLAGS"]
    assert found["environment"][0]["severity"] == environment.VARIABLES["XLA_FLAGS"]
    assert found["equal"]
