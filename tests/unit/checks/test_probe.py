"""The verdict on outputs, and the bound on what rounding may do."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptfmt.checks import Probe
from ckptfmt.checks.probe import LIMIT, allowed, judge, noise, spread
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


def test_the_bound_grows_with_dtype_layers_and_length_of_sums() -> None:
    single, narrow = 2.0**-23, 2.0**-7

    assert near(noise("float32", terms=100, layers=9), 4 * single * 10 + single * 3)
    assert near(noise("float64", terms=100, layers=9), 43 * 2.0**-52)
    # Narrow dtypes round what a layer returns; their products are added in float32.
    assert near(noise("bfloat16", terms=10**6, layers=9), 3 * narrow + 4 * single * 1000)
    with pytest.raises(UsageError, match="floating dtype"):
        noise("int32", terms=1, layers=1)


def test_noise_is_relative_to_the_largest_output() -> None:
    outputs = {"a": np.array([0.5, -8.0, np.inf], np.float32), "n": np.array([100]), "t": "x"}

    assert near(allowed(1e-3, outputs), 8e-3)
    assert near(allowed(1e-2, np.array([2.0], ml_dtypes.bfloat16)), 2e-2)
    assert allowed(1e-3, {"n": np.array([100])}) == 0
    assert allowed(LIMIT, outputs) > 0
    assert allowed(np.nextafter(LIMIT, 1), outputs) == 0


@pytest.mark.parametrize("terms", [16, 1024, 65536])
def test_the_bound_holds_for_sums_in_another_order(terms: int) -> None:
    rng = np.random.default_rng(terms)
    a = rng.standard_normal((terms, 64)).astype(np.float32)
    forward = np.add.accumulate(a, axis=0)[-1]
    backward = np.add.accumulate(a[::-1], axis=0)[-1]
    around = allowed(noise("float32", terms=terms, layers=1), forward)

    assert spread(forward, backward) > 0
    replay = judge(stored(forward, absolute=around, relative=0.0), backward)
    assert replay.verdict == "within noise"


def test_spread_of_what_cannot_be_compared_is_infinite() -> None:
    assert spread(np.zeros(2), np.zeros(3)) == math.inf
    assert spread(np.zeros(2), np.array([0.0, 0.25])) == 0.25


@pytest.mark.parametrize(
    ("before", "here"),
    [
        ("cat", "dog"), (b"cat", "cat"), (None, "cat"), ("cat", None), ("1", np.array(1.0)),
        (np.array(1.0), None), (np.array(1, np.int32), np.array(1, np.int64)),
        (np.array(1, np.uint8), np.array(1, np.int64)), (np.array(["a"]), np.array(["b"])),
        (np.array(True), np.array(1)),
    ],
)  # fmt: skip
def test_what_is_no_floating_point_number_is_equal_or_different(before: Any, here: Any) -> None:
    number = np.ones(1, np.float32)
    probe = stored({"y": number, "more": before}, absolute=10.0)

    found = judge(probe, {"y": number, "more": here})
    assert (found.verdict, found.worst, found.largest) == ("different", "more", math.inf)
    assert judge(probe, {"y": number, "more": before}).verdict == "identical"


def test_other_floating_dtypes_are_noise_at_best() -> None:
    number = np.array([1.5, 2.0], ml_dtypes.bfloat16)

    assert judge(stored(number), number.astype(np.float32)).verdict == "within noise"
    assert judge(stored(number.astype(np.float32)), number).verdict == "within noise"


@pytest.mark.parametrize("empty", [{}, [], None, np.zeros((0, 3)), {"a": np.zeros(0)}])
def test_nothing_proves_nothing(empty: Any) -> None:
    assert not judge(stored(empty), empty).ok
    assert spread(empty, empty) == 0


def test_text_counts_as_an_output() -> None:
    replay = judge(stored(["cat", None]), ["cat", None])

    assert (replay.verdict, replay.elements) == ("identical", 1)


@pytest.mark.parametrize(
    "changed",
    [
        *({name: value} for name in ("absolute", "relative")
          for value in (math.nan, math.inf, -1.0, None, "1", np.ones(2))),
        {"about": None}, {"about": {"a": np.zeros(1)}}, {"about": {"a": [{"b": object()}]}},
        {"about": {1: "a"}}, {"dtype": np.float32},
    ],
)  # fmt: skip
def test_a_probe_is_checked_when_it_is_made(changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        stored(**changed)


def test_numbers_of_a_probe_are_plain() -> None:
    probe = stored(absolute=0, relative=np.float32(0.5), deterministic=np.bool_(True))

    assert [type(n) for n in (probe.absolute, probe.relative)] == [float, float]
    assert probe.deterministic is True
    assert Probe.of(probe.tree()) == probe


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
        {"about": {"a": np.zeros(1)}},
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
