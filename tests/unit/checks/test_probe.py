"""The verdict on outputs, and the bound on what rounding may do."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptfmt.checks import Probe
from ckptfmt.checks.probe import judge, noise, spread
from ckptfmt.errors import FormatError, UsageError

OUTPUTS = {"logits": np.array([[1.0, -2.0], [3.0, 0.5]], np.float32), "label": np.array([1, 0])}


def near(found: float, expected: float) -> bool:
    """Whether two bounds are the same but for how they were rounded themselves."""
    return abs(found - expected) <= 1e-2 * abs(expected)


def stored(outputs: Any = None, **changed: Any) -> Probe:
    given: dict[str, Any] = {
        "inputs": np.zeros(2),
        "outputs": OUTPUTS if outputs is None else outputs,
        "dtype": "float32",
        "absolute": 1e-6,
        "relative": 1e-6,
        "deterministic": True,
    }
    return Probe(**{**given, **changed})


def moved(by: float) -> dict[str, Any]:
    logits = OUTPUTS["logits"].copy()
    logits[1, 0] += np.float32(by)
    return {**OUTPUTS, "logits": logits}


def test_equal_bits_are_identical() -> None:
    replay = judge(stored(), {k: v.copy() for k, v in OUTPUTS.items()})

    assert (replay.verdict, replay.ok, replay.elements) == ("identical", True, 6)
    assert (replay.largest, replay.worst) == (0.0, "")


@pytest.mark.parametrize(
    ("by", "verdict"), [(2.384e-6, "within noise"), (1e-2, "different"), (-1e-2, "different")]
)
def test_a_difference_is_noise_up_to_the_bound(by: float, verdict: str) -> None:
    replay = judge(stored(), moved(by))

    assert replay.verdict == verdict
    assert replay.worst == "logits[1, 0]"
    assert near(replay.largest, abs(by))
    assert near(replay.bound, 1e-6 + 3e-6)


def test_the_output_that_exceeds_its_own_bound_counts() -> None:
    # Off by 1e-4 in a thousand is noise here, off by 1e-4 in one is not.
    probe = stored(np.array([1000.0, 1.0]), absolute=0.0, relative=1e-6)

    assert judge(probe, np.array([1000.0 + 5e-4, 1.0])).verdict == "within noise"
    replay = judge(probe, np.array([1000.0 + 5e-4, 1.0 + 1e-4]))

    assert (replay.verdict, replay.worst) == ("different", "output[1]")
    assert near(replay.largest, 5e-4)


@pytest.mark.parametrize(
    "here",
    [
        {"logits": OUTPUTS["logits"]},
        {**OUTPUTS, "more": np.zeros(1)},
        {**OUTPUTS, "logits": OUTPUTS["logits"][:1]},
        {**OUTPUTS, "label": np.array([1.0, 0.0])},
        {**OUTPUTS, "label": np.array([1, 1])},
        {**OUTPUTS, "logits": np.full((2, 2), np.nan, np.float32)},
        {**OUTPUTS, "logits": np.full((2, 2), np.inf, np.float32)},
        dict(reversed(OUTPUTS.items())),
    ],
)
def test_what_is_never_noise(here: Any) -> None:
    assert judge(stored(absolute=1e9), here).verdict == "different"


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_their_places_are_no_difference(odd: float) -> None:
    replay = judge(stored(np.array([odd, 1.0])), np.array([odd, 1.0 + 1e-9]))

    assert (replay.verdict, replay.worst) == ("within noise", "output[1]")


def test_large_integers_differ_by_one() -> None:
    replay = judge(stored(np.array([2**60])), np.array([2**60 + 1]))

    assert (replay.verdict, replay.largest) == ("different", 1.0)


def test_bfloat16_is_compared_by_value() -> None:
    narrow = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    probe = stored(narrow, absolute=0.0, relative=2.0**-7)

    assert judge(probe, narrow.copy()).verdict == "identical"
    assert judge(probe, np.array([1.0, 2.015625], ml_dtypes.bfloat16)).verdict == "within noise"
    assert judge(probe, np.array([1.0, 2.125], ml_dtypes.bfloat16)).verdict == "different"


def test_the_bound_grows_with_dtype_and_length_of_sums() -> None:
    outputs = {"a": np.array([0.5, -8.0], np.float32), "n": np.array([100])}
    around, beyond = noise("float32", 100, outputs)

    assert near(beyond, 4 * 2.0**-23 * 10)
    assert near(around, 8.0 * beyond)
    assert near(noise("bfloat16", 100, outputs)[1], beyond * 2**16)
    assert near(noise("float32", 400, outputs)[1], 2 * beyond)
    with pytest.raises(UsageError, match="floating dtype"):
        noise("int32", 1, outputs)


@pytest.mark.parametrize("terms", [16, 1024, 65536])
def test_the_bound_holds_for_sums_in_another_order(terms: int) -> None:
    rng = np.random.default_rng(terms)
    a = rng.standard_normal((terms, 64)).astype(np.float32)
    forward = np.add.accumulate(a, axis=0)[-1]
    backward = np.add.accumulate(a[::-1], axis=0)[-1]
    around, beyond = noise("float32", terms, forward)

    assert spread(forward, backward) > 0
    replay = judge(stored(forward, absolute=around, relative=beyond), backward)
    assert replay.verdict == "within noise"


def test_spread_of_what_cannot_be_compared_is_infinite() -> None:
    assert spread(np.zeros(2), np.zeros(3)) == math.inf
    assert spread(np.zeros(2), np.array([0.0, 0.25])) == 0.25


def test_a_probe_survives_its_stored_form() -> None:
    probe = stored(prepared=np.ones(2), about={"framework": "torch"})

    assert Probe.of(probe.tree()) == probe


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": None, "outputs": None, "dtype": 3},
        {"tolerance": {"absolute": math.nan, "relative": 0.0}},
        {"tolerance": {"absolute": -1.0, "relative": 0.0}},
        {"tolerance": {"absolute": 0.0, "relative": math.inf}},
        {"tolerance": None},
        {"deterministic": 1},
        {"about": 7},
    ],
)
def test_a_malformed_probe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="malformed probe"):
        Probe.of({**stored().tree(), **change})


def test_a_replay_is_plain_data_and_short_text() -> None:
    replay = judge(stored(), {})

    assert replay.to_dict()["largest"] == "inf"
    assert str(judge(stored(), OUTPUTS)) == "identical: 6 outputs, bit for bit"
    assert str(judge(stored(), moved(1e-2))).startswith("different: off by up to 0.01, noise")
