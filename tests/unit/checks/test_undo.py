"""What was remembered is put back into the same objects."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest

from ckptfmt.checks.undo import remember


def put_back(value: Any) -> None:
    for undo in puts.pop(id(value)):
        undo()


puts: dict[int, Any] = {}


def remembered(value: Any) -> Any:
    puts[id(value)] = remember(value, lambda _: None)
    return value


@pytest.mark.parametrize(
    ("value", "write"),
    [
        ([1, 2], lambda v: v.append(3)),
        ([1, [2]], lambda v: v[1].clear()),
        ({"a": 1, "b": 2}, lambda v: v.update(a=v.pop("a"))),
        ({"a": {1, 2}}, lambda v: v["a"].add(3)),
        (({"a": 1},), lambda v: v[0].update(a=2)),
        (OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
        (defaultdict(list, a=[1]), lambda v: v["b"].append(1)),
        (Counter(a=2), lambda v: v.update("ab")),
        (deque([1, 2], maxlen=2), lambda v: v.append(3)),
    ],
)
def test_containers_hold_what_they_held(value: Any, write: Any) -> None:
    before = repr(value)
    write(remembered(value))
    assert repr(value) != before

    put_back(value)

    assert repr(value) == before


def test_arrays_and_generators() -> None:
    array, rng = np.arange(3.0), np.random.default_rng(1)
    fixed = np.arange(3.0)
    fixed.flags.writeable = False
    value = remembered([array, rng, fixed, np.zeros(0), None, "text", object()])
    array[1] = np.nan
    drawn = rng.random()

    put_back(value)

    assert array.tolist() == [0.0, 1.0, 2.0]
    assert rng.random() == drawn


def test_what_holds_itself_ends() -> None:
    value: list[Any] = [1]
    value.append(value)
    remembered(value)
    value.clear()

    put_back(value)

    assert value[0] == 1
    assert value[1] is value


def test_data_mapped_from_a_file_is_not_copied(tmp_path: Any) -> None:
    np.arange(4.0).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=np.float64, mode="r+")

    assert remember(mapped, lambda _: None) == []
