"""Where parts go: no value takes another's place, and the report names places that exist."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from ckptfmt import migrate
from ckptfmt.migrate.source import Key, Lazy, dotted, walk
from tests.migrate import corpus

A, B = np.ones(3), np.full(3, 2.0)


def migrated(tree: Any, folder: pathlib.Path) -> migrate.Migrated:
    """Pickle a tree, migrate it, and check that each item is where the report says."""
    (folder / "x.pkl").write_bytes(pickle.dumps(tree, 2))
    done = migrate.migrate(folder / "x.pkl", folder / "store", verify=True)
    assert corpus.astray(done) == []
    return done


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


def optimizer(state: Any, *groups: Any, **rest: Any) -> dict[str, Any]:
    """Return what `state_dict()` of an optimizer of torch looks like."""
    return {"state": state, "param_groups": list(groups), **rest}


MODEL: Final = {"a": np.ones(2), "b": np.ones(3)}
SLOTS: Final = {0: {"m": np.full(2, 5.0)}, 1: {"m": np.full(3, 6.0)}}
NUMBERED: Final = {
    "names that repeat": optimizer(
        {0: {"m": A}, 1: {"m": B}}, {"params": [0, 1], "param_names": ["w", "w"]}
    ),
    "a key called groups": optimizer(SLOTS, {"params": [0, 1]}, groups="mine"),
    "a state of no group": optimizer(
        {7: {"m": A}}, {"params": [0, 1], "param_names": ["a", "b"]}
    ),
    "a group without parameters": optimizer(
        SLOTS, {"params": [0, 1], "param_names": ["a", "b"]}, {"lr": 1}
    ),
    "one number for parameters": optimizer(SLOTS, {"params": 5}),
    "lists for numbers": optimizer(SLOTS, {"params": [[0], [1]]}),
    "a number twice": optimizer(SLOTS, {"params": [0, 0], "param_names": ["a", "b"]}),
    "the other order": optimizer({0: SLOTS[1], 1: SLOTS[0]}, {"params": [0, 1]}),
    "two groups": optimizer(SLOTS, {"params": [0]}, {"params": [1]}),
    "no moments": optimizer({0: {}, 1: {}}, {"params": [0, 1]}),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_numbers_stay_where_nothing_proves_names(name: str, tmp_path: pathlib.Path) -> None:
    given: Any = NUMBERED[name]

    done = migrated({"model": MODEL, "optimizer": given}, tmp_path)

    found = done.checkpoint.load()["optimizer"]
    assert found["param_groups"] == given["param_groups"]
    assert {n: list(v) for n, v in found["state"].items()} == {
        n: list(v) for n, v in given["state"].items()
    }
    assert found.keys() == given.keys()
    assert all("keep their numbers" in note.text for note in done.report.notes)


def test_equal_shapes_prove_nothing(tmp_path: pathlib.Path) -> None:
    state = {0: {"m": np.full(3, 20.0)}, 1: {"m": np.full(3, 10.0)}}
    model = {"a": A, "b": B}
    done = migrated(
        {"model": model, "optimizer": optimizer(state, {"params": [0, 1]})}, tmp_path
    )

    assert set(done.checkpoint.load()["optimizer"]["state"]) == {0, 1}


@pytest.mark.parametrize("told", [True, False])
def test_names_come_back_where_they_are_proven(told: bool, tmp_path: pathlib.Path) -> None:
    group: dict[str, Any] = {"lr": 0.1, "params": [0, 1]}
    model: Any = MODEL
    if told:
        group["param_names"] = ["a", "b"]
        model = {"a": A, "b": B}  # names need no shapes

    done = migrated({"model": model, "optimizer": optimizer(SLOTS, group)}, tmp_path)

    found = done.checkpoint.load()["optimizer"]
    assert found["groups"][0]["params"] == ["a", "b"]
    assert {name: slots["m"][0] for name, slots in found["state"].items()} == {"a": 5, "b": 6}


ODD: Final = {
    "bfloat16 as NumPy writes it": np.ones(3, ml_dtypes.bfloat16),
    "dates": np.array(["2020-01-01", "1969-05-01"], "M8[s]"),
    "durations": np.array([[1, 2], [3, 4]], "m8[25us]").T,
    "records": np.array([(1.5, 2), (3.5, 4)], [("x", "f4"), ("y", "u1")]),
    "extended": np.array([1, 3], np.longdouble) / 7,
    "one date": np.array("2020-01-01", "M8[D]"),
    "no dates": np.zeros((0, 3), "M8[D]"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("packed", [True, False])
def test_arrays_without_a_portable_dtype_keep_their_bytes(
    name: str, packed: bool, tmp_path: pathlib.Path
) -> None:
    array = ODD[name]
    (np.savez_compressed if packed else np.savez)(tmp_path / "x.npz", a=array)

    done = migrate.migrate(tmp_path / "x.npz", tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    found = done.checkpoint.load()["model"]["a"]
    assert found["bytes"].tobytes() == array.tobytes()
    assert found["shape"] == list(array.shape)
    names = str(array.dtype.descr if array.dtype.names else array.dtype.str)
    assert found["dtype"] == ("|V2" if array.dtype == ml_dtypes.bfloat16 else names)


@pytest.mark.parametrize("name", ["dates", "durations", "one date", "records"])
def test_a_pickle_keeps_the_unit_of_its_dates(name: str, tmp_path: pathlib.Path) -> None:
    scalar = ODD[name].reshape(-1)[0]
    done = migrated({"a": ODD[name], "scalar": scalar, "w": A}, tmp_path)

    found = done.checkpoint.load()["model"]["a"]
    dtype = ODD[name].dtype
    assert found["dtype"] == str(dtype.descr if dtype.names else dtype.str)
    assert found["bytes"].tobytes() == ODD[name].tobytes()
    assert done.checkpoint.load()["extra"]["scalar"]["bytes"].tobytes() == scalar.tobytes()


def test_an_array_of_no_objects_refuses_nothing(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([], object), w=A)

    done = migrate.migrate(tmp_path / "x.npz", tmp_path / "store", verify=True)

    assert corpus.astray(done) == []
    assert set(done.checkpoint.arrays) == {"model/w"}


def test_containers_of_every_kind_are_found_again(tmp_path: pathlib.Path) -> None:
    shared = {"w": A}
    around: dict[str, Any] = {
        "odd keys": {(1, "a"): A, None: {"x": B}},
        "int beside text": {1: A, "1": B},
        "objects": np.array([{"x": B}, None, "a"], object),
        "text": np.array(["a", "bc"]),
        "object": Holder({"w": A, "__class__": "mine"}),
        "plain object": Holder({"w": A}),
        "empty": [{}, [], (), Holder({})],
        "model": shared,
        "state": {"model": shared, "inner": {"w": B}},
    }
    around["itself"] = {"around": around, "state": around["state"]}

    done = migrated(around, tmp_path)

    assert len(done.report.items) > 20


class Holder:
    """An object with a state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state


def test_keys_that_read_alike_have_paths_of_their_own() -> None:
    long = ("x" * 300,)
    keys: list[Any] = [
        ("a", 1),
        "('a', 1)",
        None,
        "None",
        True,
        "True",
        long,
        (*long, 2),
        2**70,
    ]
    odd = [Key([1]), Key([2]), "<key> #9"]
    root = {"model": {key: Lazy.of(np.full(1, n)) for n, key in enumerate([*keys, *odd])}}

    found = {dotted(path): int(np.asarray(leaf)[0]) for path, leaf in walk(root)}

    assert sorted(found.values()) == list(range(len(keys) + len(odd)))
    for key in ("('a', 1)", "None", "True", "<key> #9"):  # its own, not what stands for another
        (path,) = [p for p, leaf in walk(root) if p[-1] == key]
        assert found[dotted(path)] == [*keys, *odd].index(key)
