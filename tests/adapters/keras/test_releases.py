"""A checkpoint of a later Keras: settings that this one does not know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from nets import net

from ckptfmt.errors import MismatchError
from ckptfmt_keras import architecture


def later(value: object) -> dict[str, Any]:
    """Return what a later release might record of a model, whose `Dense` learned a setting."""
    saved = copy.deepcopy(architecture.describe(net()))
    saved["keras"] = "3.999.0"
    saved["defaults"]["keras.layers.Dense"]["turbo"] = False
    for layer in saved["config"]["config"]["layers"]:
        if layer["class_name"] == "Dense":
            layer["config"]["turbo"] = value
    return saved


def test_a_setting_that_nobody_set_is_left_out() -> None:
    model = architecture.build(later(False))

    assert architecture.describe(model)["sha256"] == architecture.describe(net())["sha256"]


def test_a_setting_that_somebody_set_is_refused() -> None:
    with pytest.raises(MismatchError, match="cannot build this model"):
        architecture.build(later(True))


def test_a_setting_whose_default_is_not_known_is_refused() -> None:
    saved = later(False)
    del saved["defaults"]
    with pytest.raises(MismatchError, match="cannot build this model"):
        architecture.build(saved)
