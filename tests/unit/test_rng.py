"""RNG state: bit-exact continuation, plain leaves only, all or nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ckptfmt import leaves, rng
from ckptfmt.errors import MismatchError, StateError

KINDS = ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"]
BOTH = ["random", "numpy"]


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Leave the sequences of the test process as they were."""
    before = random.getstate(), np.random.get_state(legacy=False)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])


def generator(kind: str, seed: int = 5) -> np.random.Generator:
    return np.random.Generator(getattr(np.random, kind)(seed))


def draws(source: np.random.Generator) -> list[bytes]:
    """Draw in every way that leaves something behind in a bit generator."""
    return [
        source.integers(0, 2**32, size=3, dtype=np.uint32).tobytes(),  # odd: half a word stays
        source.random(5).tobytes(),
        source.standard_normal(5).tobytes(),
        source.permutation(9).tobytes(),
    ]


def leaves_of(tree: object, path: str | None = None) -> Iterator[tuple[str, object]]:
    if type(tree) is dict:
        for key, value in tree.items():
            assert type(key) is str
            yield from leaves_of(value, leaves.join(path, key))
    else:
        yield path or "", tree


def everything() -> list[object]:
    return [
        [random.random() for _ in range(700)],
        [random.gauss(0, 1) for _ in range(3)],
        np.random.random_sample(700).tobytes(),
        np.random.standard_normal(3).tobytes(),
    ]


def put(tree: object, path: str, value: object) -> None:
    *parents, last = path.split("/")
    place: Any = tree
    for name in parents:
        place = place[name]
    place[last] = value


@pytest.mark.parametrize("drawn", [0, 1, 623, 624, 1000])
def test_python_continues_bit_exact(drawn: int) -> None:
    random.seed(7)
    for _ in range(drawn):
        random.getrandbits(32)
    tree = rng.capture()
    expected = [random.random() for _ in range(700)]

    random.seed(8)
    rng.restore(tree)

    assert [random.random() for _ in range(700)] == expected


def test_python_keeps_the_second_gaussian() -> None:
    random.seed(7)
    random.gauss(0, 1)
    tree = rng.capture()
    expected = [random.gauss(0, 1) for _ in range(3)]

    random.seed(8)
    rng.restore(tree)

    assert random.getstate()[2] is not None
    assert [random.gauss(0, 1) for _ in range(3)] == expected


def test_python_forgets_a_gaussian_that_was_not_there() -> None:
    random.seed(7)
    tree = rng.capture()
    expected = random.gauss(0, 1)

    random.gauss(0, 1)
    random.gauss(0, 1)
    random.gauss(0, 1)
    rng.restore(tree)

    assert random.gauss(0, 1) == expected


@pytest.mark.parametrize("drawn", [0, 1, 623, 624, 1000])
def test_numpy_global_continues_bit_exact(drawn: int) -> None:
    np.random.seed(7)
    np.random.randint(0, 2**32, size=drawn, dtype=np.uint32)
    tree = rng.capture()
    expected = np.random.random_sample(700).tobytes()

    np.random.seed(8)
    rng.restore(tree)

    assert np.random.random_sample(700).tobytes() == expected


def test_numpy_global_keeps_the_second_gaussian() -> None:
    np.random.seed(7)
    np.random.standard_normal()
    tree = rng.capture()
    expected = np.random.standard_normal(3).tobytes()

    np.random.seed(8)
    rng.restore(tree)

    state = np.random.get_state(legacy=False)
    assert state["has_gauss"] == 1
    assert np.random.standard_normal(3).tobytes() == expected


def test_numpy_global_forgets_a_gaussian_that_was_not_there() -> None:
    np.random.seed(7)
    tree = rng.capture()
    expected = np.random.standard_normal(2).tobytes()

    np.random.standard_normal()
    rng.restore(tree)

    assert np.random.standard_normal(2).tobytes() == expected


@pytest.mark.parametrize("drawn", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_generators_continue_bit_exact(kind: str, drawn: int) -> None:
    source, target = generator(kind), generator(kind, seed=6)
    source.integers(0, 2**32, size=drawn, dtype=np.uint32)
    tree = rng.capture({"data": source})
    expected = [draws(source) for _ in range(3)]

    rng.restore(tree, {"data": target})

    assert [draws(target) for _ in range(3)] == expected


def test_several_generators_are_told_apart_by_name() -> None:
    named = {
        "a/b": generator("PCG64", 1),
        "": generator("PCG64", 2),
        "c": generator("SFC64", 1),
    }
    tree = rng.capture(named)
    expected = {name: draws(source) for name, source in named.items()}

    rng.restore(tree, {name: named[name] for name in reversed(named)})

    assert {name: draws(source) for name, source in named.items()} == expected


def test_capture_changes_nothing() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = everything()

    random.seed(1)
    np.random.seed(1)
    rng.capture()

    assert everything() == expected


def test_capture_shares_no_memory_with_the_generators() -> None:
    source = generator("Philox")
    tree = rng.capture({"g": source})
    before = {path: copy.deepcopy(leaf) for path, leaf in leaves_of(tree)}

    everything()
    draws(source)

    for path, leaf in leaves_of(tree):
        assert np.array_equal(np.asarray(leaf), np.asarray(before[path])), path


def test_restore_shares_no_memory_with_the_tree() -> None:
    source = generator("Philox")
    tree = rng.capture({"g": source})
    before = {path: copy.deepcopy(leaf) for path, leaf in leaves_of(tree)}

    rng.restore(tree, {"g": source})
    everything()
    draws(source)

    for path, leaf in leaves_of(tree):
        assert np.array_equal(np.asarray(leaf), np.asarray(before[path])), path


@pytest.mark.parametrize("kind", KINDS)
def test_tree_has_plain_leaves_and_unsigned_arrays_only(kind: str) -> None:
    random.gauss(0, 1)
    source = generator(kind)
    draws(source)

    found = dict(leaves_of(rng.capture({"g": source})))

    assert "generators/g/bit_generator" in found
    for path, leaf in found.items():
        if isinstance(leaf, np.ndarray):
            assert leaf.dtype in (np.uint32, np.uint64), path
        else:
            assert type(leaf) in leaves.PLAIN_TYPES, path


def test_numpy_parts_have_the_shape_of_numpys_own_state() -> None:
    source, target = generator("PCG64"), generator("PCG64", 6)
    tree: Any = rng.capture({"g": source})

    target.bit_generator.state = tree["generators"]["g"]

    assert draws(target) == draws(source)


def test_a_tree_in_other_byte_order_or_read_only_memory_is_the_same() -> None:
    source = generator("Philox")
    tree: Any = rng.capture({"g": source})
    expected = [everything(), draws(source)]
    for part in (tree["python"], tree["numpy"]["state"]):
        part["key"] = part["key"].astype(part["key"].dtype.newbyteorder())
        part["key"].flags.writeable = False

    rng.restore(tree, {"g": source})

    assert [everything(), draws(source)] == expected


WORDS = np.zeros(624, np.uint32)
WRONG: list[tuple[str, object]] = [
    ("python", None),
    ("python/version", 2),
    ("python/version", 4),
    ("python/version", "3"),
    ("python/key", WORDS[1:]),
    ("python/key", WORDS.astype(np.int32)),
    ("python/key", WORDS.astype(np.uint64)),
    ("python/key", WORDS.reshape(1, 624)),
    ("python/key", WORDS.tolist()),
    ("python/pos", -1),
    ("python/pos", 625),
    ("python/pos", True),
    ("python/pos", 1.0),
    ("python/gauss", 1),
    ("python/gauss", "0.5"),
    ("numpy", []),
    ("numpy/bit_generator", "mt19937"),
    ("numpy/bit_generator", None),
    ("numpy/state", 7),
    ("numpy/state/key", WORDS[:-1]),
    ("numpy/state/pos", -1),
    ("numpy/state/pos", 10**9),
    ("numpy/has_gauss", 2),
    ("numpy/gauss", None),
    ("generators/philox/state/counter", np.zeros(5, np.uint64)),
    ("generators/philox/state/key", np.zeros(2, np.uint32)),
    ("generators/philox/buffer", np.zeros(3, np.uint64)),
    ("generators/philox/buffer_pos", -1),
    ("generators/philox/buffer_pos", 5),
    ("generators/philox/has_uint32", 2),
    ("generators/philox/uinteger", 2**32),
    ("generators/pcg/state/state", -1),
    ("generators/pcg/state/state", 2**128),
    ("generators/pcg/state/inc", 0.5),
    ("generators/pcg/state/inc", 2**128),
    ("generators/pcg/bit_generator", "PCG65"),
    ("generators/pcg", 3),
    ("generators/mt/state/pos", -1),
    ("generators/mt/state/pos", 625),
    ("generators/sfc/state/state", np.zeros(4, np.int64)),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_a_wrong_part_is_named_and_nothing_changes(path: str, value: object) -> None:
    kinds = {"philox": "Philox", "pcg": "PCG64", "sfc": "SFC64", "mt": "MT19937"}
    named = {name: generator(kind) for name, kind in kinds.items()}
    tree = rng.capture(named)
    put(tree, path, value)
    everything()
    now = rng.capture(named)
    expected = [everything(), *map(draws, named.values())]
    rng.restore(now, named)

    with pytest.raises(MismatchError) as caught:
        rng.restore(tree, named)

    assert caught.value.where["path"] == path.removesuffix("/bit_generator")
    assert [everything(), *map(draws, named.values())] == expected


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("", lambda tree: tree.pop("numpy")),
        ("", lambda tree: tree.update(torch=1)),
        ("", lambda tree: tree.update({1: 1})),
        ("python", lambda tree: tree["python"].pop("gauss")),
        ("numpy", lambda tree: tree["numpy"].pop("gauss")),
        ("numpy/state", lambda tree: tree["numpy"]["state"].update(extra=1)),
        ("generators/g", lambda tree: tree["generators"]["g"].pop("uinteger")),
        ("generators", lambda tree: tree["generators"].clear()),
    ],
)
def test_missing_and_unexpected_parts_are_refused(
    path: str, change: Callable[[Any], object]
) -> None:
    source = generator("SFC64")
    tree = rng.capture({"g": source})
    change(tree)

    with pytest.raises(MismatchError, match="expected the keys") as caught:
        rng.restore(tree, {"g": source})

    assert caught.value.where["path"] == path


def test_a_state_without_a_target_is_refused() -> None:
    tree = rng.capture({"data": generator("PCG64")})

    with pytest.raises(MismatchError, match=r"missing \[\], unexpected \['data'\]"):
        rng.restore(tree)


@pytest.mark.parametrize("tree", [None, 3, [], b"\x80\x04"])
def test_a_tree_that_is_no_dict_is_refused(tree: object) -> None:
    with pytest.raises(MismatchError, match="expected a dict, got"):
        rng.restore(tree)


def test_another_bit_generator_is_refused_with_the_way_out() -> None:
    tree = rng.capture({"g": generator("PCG64")})

    with pytest.raises(MismatchError) as caught:
        rng.restore(tree, {"g": generator("PCG64DXSM")})

    assert str(caught.value) == (
        "the state is of a PCG64, the target runs on 'PCG64DXSM': build the target on the same "
        "bit generator [path='generators/g', expected='PCG64', found='PCG64DXSM']"
    )


def test_another_global_bit_generator_is_refused_and_carried() -> None:
    ours = np.random.get_bit_generator()
    tree = rng.capture()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        with pytest.raises(MismatchError, match="the target runs on 'PCG64'") as caught:
            rng.restore(tree)
        assert caught.value.where["path"] == "numpy"
        other = rng.capture()
        expected = np.random.random_sample(3).tobytes()
        rng.restore(other)

        assert np.random.random_sample(3).tobytes() == expected
    finally:
        np.random.set_bit_generator(ours)


@pytest.mark.parametrize("wrong", [None, 7, np.random.RandomState(1), np.random.PCG64(1)])
def test_only_generators_have_names(wrong: object) -> None:
    with pytest.raises(StateError, match=r"expected a numpy.random.Generator") as caught:
        rng.capture({"data": wrong})  # type: ignore[dict-item]

    assert caught.value.where["path"] == "generators/data"


def test_a_bit_generator_that_is_not_numpys_cannot_be_captured() -> None:
    class Mine(np.random.PCG64):
        pass

    with pytest.raises(StateError, match="got 'Mine'"):
        rng.capture({"g": np.random.Generator(Mine(1))})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("python/key", WORDS[:3].astype(np.int8), "expected uint32[624], got int8[3]"),
        ("python/key", 7, "expected uint32[624], got int 7"),
        ("python/pos", 625, "expected an integer from 0 to 624, got 625"),
        ("python/gauss", "x", "expected a float or None, got str 'x'"),
        ("numpy/gauss", None, "expected a float, got NoneType None"),
        ("numpy/state", 7, "expected a dict, got int"),
        (
            "numpy/state",
            {"pos": 1, "kex": 2},
            "expected the keys ['key', 'pos'], missing ['key'], unexpected ['kex']",
        ),
    ],
)
def test_messages_say_expected_found_and_path(path: str, value: object, message: str) -> None:
    tree = rng.capture()
    put(tree, path, value)

    with pytest.raises(MismatchError) as caught:
        rng.restore(tree)

    assert str(caught.value) == f"{message} [path={path!r}]"


def test_messages_are_bounded() -> None:
    tree: Any = rng.capture()
    tree["python"]["pos"] = 10**4000
    with pytest.raises(MismatchError) as caught:
        rng.restore(tree)
    assert len(str(caught.value)) < 300

    with pytest.raises(MismatchError) as caught:
        rng.restore({f"key{i}": i for i in range(10_000)})
    assert len(str(caught.value)) < 500


def test_a_plan_checks_all_and_changes_nothing_until_it_is_called() -> None:
    own = np.random.default_rng(1)
    tree = rng.capture({"own": own})
    expected = random.random(), np.random.random(), own.random()
    apply = rng.plan(tree, {"own": own})
    assert (random.random(), np.random.random(), own.random()) != expected

    with pytest.raises(MismatchError, match="generators"):
        rng.plan(tree, {})
    apply()

    assert (random.random(), np.random.random(), own.random()) == expected
