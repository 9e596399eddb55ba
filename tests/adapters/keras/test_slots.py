"""Variables of an optimizer are told by the names of the model's: the longest that fits."""

from __future__ import annotations

import keras
import pytest

from ckptfmt_keras import optimizers, variables


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("a_b_c_m", "a_b"),
        ("a_b_m", "a_b"),
        ("a_bm", "a"),
        ("ab_m", None),
        ("a", None),
        ("_m", None),
        ("b_a_m", None),
    ],
)
def test_the_longest_name_counts(name: str, prefix: str | None) -> None:
    assert optimizers._prefix(name, {"a", "a_b"}) == prefix


def test_layers_whose_names_begin_alike_keep_their_slots() -> None:
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, name="d"),
            keras.layers.Dense(4, name="d_kernel"),
            keras.layers.Dense(5, name="d_1"),
        ]
    )
    model.compile("adam", "mse")
    optimizers.build(model)
    entries = variables.weights(model)
    shapes = {entry.key: tuple(entry.variable.shape) for entry in entries}

    found = optimizers.located(model.optimizer, entries)

    slots = {path: v for path, v in found.items() if path.startswith(f"{optimizers.SLOTS}/")}
    assert len(slots) == 2 * len(entries)
    for path, variable in slots.items():
        assert tuple(variable.shape) == shapes[path.split("/", 2)[2]], path
