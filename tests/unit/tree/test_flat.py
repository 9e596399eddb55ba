"""State tree → Flat: what may be in a tree, what is tied, and what is refused with advice."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import pathlib
import random
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from ckptfmt import tree
from ckptfmt.dtypes import DTYPES
from ckptfmt.errors import StateError
from ckptfmt.leaves import MAX_DEPTH, MAX_PATH_NBYTES, ArrayRef
from ckptfmt.testing.strategies import assert_same


def test_arrays_become_rows_in_order() -> None:
    a, b = np.zeros(2, "f4"), np.ones((), ">i2")

    flat = tree.flatten({"model": {"w": a, 3: (b, None)}, "step": 7})

    assert flat.structure == {
        "model": {"w": ArrayRef(0), 3: (ArrayRef(1), None)},
        "step": 7,
    }
    assert [(leaf.path, leaf.dtype.name) for leaf in flat.leaves] == [
        ("model/w", "F32"),
        ("model/3/0", "I16"),
    ]
    assert flat.leaves[0].array is a
    assert flat.leaves[1].array is b
    assert flat.overlaps == ()


def test_containers_are_new_and_of_base_types() -> None:
    inner: list[object] = [1]
    state = collections.OrderedDict(b=collections.defaultdict(list, x=inner), a=())

    structure = tree.flatten(state).structure

    assert_same(structure, {"b": {"x": [1]}, "a": ()})
    assert type(structure) is dict
    assert type(structure["b"]) is dict
    assert structure["b"]["x"] is not inner


@pytest.mark.parametrize("shared", [[np.zeros(1)], (np.zeros(1),), {0: np.zeros(1)}])
def test_a_shared_container_is_no_cycle(shared: object) -> None:
    flat = tree.flatten({"a": shared, "b": [shared, shared]})

    assert flat.leaves[0].aliases == ("b/0/0", "b/1/0")


def test_values_stand_for_themselves() -> None:
    zone = datetime.timezone(-datetime.timedelta(hours=3, seconds=1))
    state: dict[str, object] = {
        "plain": [None, True, 0, 10**5000, -0.0, 1j, "ü", b"\xff"],
        "times": [DAY, DAY.replace(tzinfo=datetime.UTC), DAY.replace(tzinfo=zone)],
        "scalars": (np.float64(1), np.bool_(False), np.longlong(1), ml_dtypes.int4(-1)),
    }

    assert_same(tree.flatten(state).structure, state)
    assert tree.check(state) == []


def test_a_memmap_is_an_array_over_the_same_memory(tmp_path: pathlib.Path) -> None:
    mapped = np.memmap(tmp_path / "x", "f4", "w+", shape=(3,))

    leaf = tree.flatten({"x": mapped}).leaves[0]

    assert type(leaf.array) is np.ndarray
    assert np.shares_memory(leaf.array, mapped)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_an_array_and_a_scalar(name: str) -> None:
    dtype = DTYPES[name].numpy
    array = np.ones(2, dtype)

    flat = tree.flatten({"array": array, "scalar": array[0], "0-d": np.ones((), dtype)})

    assert [leaf.dtype.name for leaf in flat.leaves] == [name, name]
    assert flat.structure["scalar"] is not None
    assert type(flat.structure["scalar"]) is dtype.type


# --- tied -------------------------------------------------------------------------------


W = np.arange(12, dtype="f4").reshape(3, 4)
TIED: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "the object": (W, W),
    "a view": (W, W[:]),
    "a view of a view": (W[1:], W[0:][1:]),
    "a transposed view": (W.T, W.T),
    "a row as a matrix": (W[:1], W[0][None]),
    "0-d": (W[0, 0, ...], W[0, 0, ...]),
    "strided": (W[:, ::2], W[:, 0:3:2]),
    "reversed": (W[::-1], W[::-1]),
    "through a base": (np.frombuffer(W.data, "f4"), W.ravel()),
}
APART: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "equal content": (W, W.copy()),
    "another shape": (W, W.ravel()),
    "another start": (W[:2], W[1:]),
    "other strides": (W[:3, :3], W.T[:3, :3]),
    "other strides along two": (W[:2], W[::2]),
    "other dtype": (W, W.view("i4")),
    "other byte order": (W, W.view(">f4")),
    "shorter": (W, W[:2]),
    "empty": (W[:0], W[:0]),
}


@pytest.mark.parametrize(("a", "b"), TIED.values(), ids=TIED)
def test_tied_arrays_are_one_row(a: np.ndarray, b: np.ndarray) -> None:
    flat = tree.flatten({"a": a, "b": {"c": b}, "d": a})

    assert flat.structure == {"a": ArrayRef(0), "b": {"c": ArrayRef(0)}, "d": ArrayRef(0)}
    assert [(leaf.path, leaf.aliases) for leaf in flat.leaves] == [("a", ("b/c", "d"))]
    assert flat.overlaps == ()


@pytest.mark.parametrize(("a", "b"), APART.values(), ids=APART)
def test_other_arrays_stay_apart(a: np.ndarray, b: np.ndarray) -> None:
    flat = tree.flatten({"a": a, "b": b})

    assert [(leaf.path, leaf.aliases) for leaf in flat.leaves] == [("a", ()), ("b", ())]
    assert flat.overlaps == ((("a", "b"),) if np.shares_memory(a, b) else ())


def test_many_views_from_one_address_are_told_apart() -> None:
    state: dict[str, object] = {f"{n}": W.ravel()[: n % 4 + 1] for n in range(12)}

    flat = tree.flatten(state)

    assert [(leaf.path, leaf.aliases) for leaf in flat.leaves] == [
        (f"{n}", (f"{n + 4}", f"{n + 8}")) for n in range(4)
    ]


# --- refused ----------------------------------------------------------------------------


class Point(collections.namedtuple("Point", "x")):
    __slots__ = ()


@dataclasses.dataclass
class Config:
    rate: float = 0.1


class Color(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Tensor:
    """As torch and jax have it."""

    def __dlpack__(self) -> None: ...

    def __array__(self) -> None: ...


class Module:
    def state_dict(self) -> None: ...

    def __call__(self) -> None: ...


class ArrayLike:
    def __array__(self) -> None: ...


class Size(tuple):
    __slots__ = ()


class Text(str):
    __slots__ = ()


class Lazy:
    """Says yes to every question, and breaks when asked."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


class Half(np.float16): ...


class Zone(datetime.tzinfo):
    def utcoffset(self, at: datetime.datetime | None) -> datetime.timedelta | None:
        raise AssertionError("a zone's code must not run")


DAY = datetime.datetime(2026, 1, 2)
HOUR = datetime.timedelta(hours=1)
REFUSED: list[tuple[object, str]] = [
    (Point(1), "value._asdict()"),
    (Config(), "dataclasses.asdict(value)"),
    (Color.RED, "value.name or value.value"),
    (Level.LOW, "value.name or value.value"),
    (Level, "store its name"),
    (Tensor(), "an adapter's capture(), or convert it with .numpy()"),
    (Module(), "value.state_dict()"),
    (ArrayLike(), "numpy.asarray(value)"),
    (Lazy(), "leave it out"),
    (Size((1,)), "tuple(value)"),
    (Text("a"), "str(value)"),
    ({1}, "sorted list"),
    (frozenset(), "sorted list"),
    (range(3), "list(value)"),
    ({}.keys(), "list(value)"),
    (iter([]), "list(value)"),
    (collections.deque(), "list(value)"),
    (collections.Counter(), "dict(value)"),
    (bytearray(), "bytes(value)"),
    (memoryview(b""), "bytes(value)"),
    (decimal.Decimal(1), "str(value)"),
    (pathlib.PurePosixPath("a"), "os.fspath(value)"),
    (len, "store its name"),
    (lambda: None, "store its name"),
    (object(), "leave it out"),
    (DAY.date(), "value.isoformat()"),
    (DAY.time(), "value.isoformat()"),
    (HOUR, "value.total_seconds()"),
    (DAY.replace(fold=1), "fold 0: use value.astimezone(datetime.timezone.utc)"),
    (DAY.replace(tzinfo=datetime.timezone(HOUR, "CET")), "astimezone"),
    (DAY.replace(tzinfo=Zone()), "astimezone"),
    (np.ma.array([1]), "value.data and value.mask"),
    (W.view(np.matrix), "numpy.asarray(value)"),
    (np.zeros(1, [("a", "i4")]).view(np.recarray), "each field as an array"),
    (np.random.default_rng(0), "ckptfmt.rng"),
    (np.random.RandomState(0), "ckptfmt.rng"),
    (random.Random(0), "value.getstate()"),
    (np.array([None]), "numeric array or a list"),
    (np.array(["a"]), "list of str or bytes"),
    (np.array([b"a"]), "list of str or bytes"),
    (np.array(["2026"], "M8[s]"), "array.view('int64')"),
    (np.zeros(1, [("a", "i4")]), "each field as an array"),
    (np.zeros(1, "V3"), "array.view('uint8')"),
    (np.zeros(1, "g"), "not portable"),
    (np.str_("a"), "str(value)"),
    (np.bytes_(b"a"), "bytes(value)"),
    (np.datetime64("2026"), "value.item(), or value.view('int64')"),
    (np.timedelta64(1, "s"), "value.item().total_seconds()"),
    (np.void(b"a"), "value.tobytes()"),
    (np.longdouble(1), "float(value)"),
    (np.clongdouble(1), "complex(value)"),
    (Half(1), "float(value)"),
    ("\ud800", "lone surrogates"),
]
if hasattr(ml_dtypes, "int1"):  # not in the oldest release
    REFUSED += [
        (np.zeros(1, ml_dtypes.int1), "convert it to int8"),
        (ml_dtypes.uint1(1), "int(value)"),
    ]


@pytest.mark.parametrize(("value", "advice"), REFUSED, ids=lambda x: type(x).__name__)
def test_what_cannot_be_stored_is_refused_with_a_way_out(value: object, advice: str) -> None:
    with pytest.raises(StateError) as caught:
        tree.flatten({"a": {"b/c": [value]}})

    assert caught.value.where == {"path": "a/b~1c/0"}
    assert advice in str(caught.value)


KEYS: list[tuple[dict[object, object], str, str]] = [
    ({True: 1}, "a/<bool>", "use str(key)"),
    ({None: 1}, "a/<NoneType>", "use str(key)"),
    ({(1, 2): 1}, "a/<tuple>", "use str(key)"),
    ({np.int64(1): 1}, "a/<numpy.int64>", "use str(key)"),
    ({Text("a"): 1}, f"a/<{__name__}.Text>", "use str(key)"),
    ({2**64: 1}, "a/<int>", "64-bit int"),
    ({-(2**63) - 1: 1}, "a/<int>", "64-bit int"),
    ({10**5000: 1}, "a/<int>", "64-bit int"),
    ({"\ud800": 1}, "a/\ud800", "lone surrogates"),
    ({1: 1, "1": 2}, "a", "rename one"),
]


@pytest.mark.parametrize(
    ("keys", "path", "advice"), KEYS, ids=lambda x: ascii(x)[:20] if isinstance(x, str) else ""
)
def test_keys_that_cannot_be_stored_are_refused(
    keys: dict[object, object], path: str, advice: str
) -> None:
    with pytest.raises(StateError) as caught:
        tree.flatten({"a": keys})

    assert caught.value.where == {"path": path}
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        (None, "wrap it, as in {'model': value}"),
        ([], "wrap it, as in {'model': value}"),
        ((), "wrap it, as in {'model': value}"),
        (np.zeros(1), "wrap it, as in {'model': value}"),
        (collections.Counter(), "use dict(value)"),
        (Config(), "use dataclasses.asdict(value)"),
    ],
)
def test_the_root_is_a_dict(state: dict[str, object], advice: str) -> None:
    with pytest.raises(StateError, match="expected a dict at the root, got") as caught:
        tree.flatten(state)

    assert advice in str(caught.value)


def test_the_root_has_str_keys() -> None:
    with pytest.raises(StateError, match="expected str keys at the root, got int"):
        tree.flatten({1: 2})  # type: ignore[dict-item]


def test_the_root_has_no_empty_key() -> None:
    with pytest.raises(StateError, match="give the section a name"):
        tree.flatten({"": 1})
    assert len(tree.check({"": {2}})) == 2


def test_extreme_keys_are_kept() -> None:
    keys = {2**64 - 1: 1, -(2**63): 2, "": 3, "a/b~": 4}

    flat = tree.flatten({"x": keys})

    assert flat.structure == {"x": keys}
    assert [path for path, _ in tree.paths(flat.structure)] == [
        "x/18446744073709551615",
        "x/-9223372036854775808",
        "x/",
        "x/a~1b~0",
    ]


def by_dict(inner: object) -> object:
    return {"a": inner}


def by_list(inner: object) -> object:
    return [inner]


def by_tuple(inner: object) -> object:
    return (inner,)


@pytest.mark.parametrize("wrap", [by_dict, by_list, by_tuple])
def test_depth_is_limited(wrap: Callable[[object], object]) -> None:
    value: object = None
    for _ in range(MAX_DEPTH - 1):
        value = wrap(value)

    tree.flatten({"x": value})
    with pytest.raises(StateError, match=f"more than {MAX_DEPTH} levels"):
        tree.flatten({"x": wrap(value)})


def test_cycles_are_found() -> None:
    by_list: list[object] = []
    by_list.append({"again": (by_list,)})
    by_dict: dict[str, object] = {}
    by_dict["self"] = by_dict

    with pytest.raises(StateError, match="contains itself") as caught:
        tree.flatten({"x": by_list})
    assert caught.value.where == {"path": "x/0/again/0"}
    with pytest.raises(StateError, match="contains itself") as caught:
        tree.flatten(by_dict)
    assert caught.value.where == {"path": "self"}


@pytest.mark.parametrize(
    ("key", "bytes_each"), [("k", 1), ("ü", 2), ("~", 2), ("/", 2), ("€", 3), ("😀", 4)]
)
def test_paths_are_limited_in_bytes(key: str, bytes_each: int) -> None:
    longest = key * ((MAX_PATH_NBYTES - 2) // bytes_each)

    tree.flatten({"x": {longest: 1}})
    with pytest.raises(StateError, match=f"longer than {MAX_PATH_NBYTES} bytes") as caught:
        tree.flatten({"x": {longest + key: 1}})
    assert len(str(caught.value)) < 1000


def test_indexes_count_for_the_path() -> None:
    state: dict[str, object] = {"k" * (MAX_PATH_NBYTES - 2): [0] * 10}

    tree.flatten(state)
    state["k" * (MAX_PATH_NBYTES - 2)] = [0] * 11
    with pytest.raises(StateError, match="longer than"):
        tree.flatten(state)


# --- check, plain -----------------------------------------------------------------------


def test_check_lists_every_problem_in_order() -> None:
    cycle: list[object] = [{1}]
    cycle.append(cycle)
    state: dict[str, object] = {
        "good": np.zeros(1),
        "a": [np.array(["x"]), {None: {2}, "b": np.longdouble(1)}],
        "c": cycle,
        "k" * 9000: {3},
        "d": {1: 1, "1": object()},
        "\ud800": "\ud801",
    }

    problems = tree.check(state)

    assert [str(error.where["path"])[:6] for error in problems] == [
        "a/0", "a/1/<N", "a/1/<N", "a/1/b", "c/0", "c/1", "kkkkkk", "d/1", "d",
        "\ud800", "\ud800",
    ]  # fmt: skip
    assert {type(error) for error in problems} == {StateError}


def test_check_of_a_good_tree_finds_nothing() -> None:
    assert tree.check({"a": [np.zeros(3), ml_dtypes.bfloat16(1), None]}) == []


def test_check_finds_problems_below_a_bad_root() -> None:
    assert len(tree.check({1: {2}, "a": {3}})) == 3  # type: ignore[dict-item]
    assert len(tree.check([])) == 1  # type: ignore[arg-type]


def test_plain_gives_base_types() -> None:
    value = collections.OrderedDict(b=[1, (2.0, np.float32(3))])

    assert_same(tree.plain(value), {"b": [1, (2.0, np.float32(3))]})
    assert_same(tree.plain([1]), [1])
    assert_same(tree.plain(None), None)


@pytest.mark.parametrize(
    ("value", "path", "advice"),
    [
        ({"lr": np.zeros(2)}, "lr", "array.tolist()"),
        ({"kind": [Color.RED]}, "kind/0", "value.name"),
        ([{"a": {1}}], "0/a", "sorted list"),
    ],
)
def test_plain_refuses_with_a_way_out(value: object, path: str, advice: str) -> None:
    with pytest.raises(StateError) as caught:
        tree.plain(value)

    assert caught.value.where == {"path": path}
    assert advice in str(caught.value)


def test_plain_values_may_be_as_deep_as_trees() -> None:
    value: object = None
    for _ in range(MAX_DEPTH):
        value = [value]

    assert tree.plain(value) == value
    with pytest.raises(StateError, match=f"more than {MAX_DEPTH} levels"):
        tree.plain([value])


@pytest.mark.parametrize("value", [np.zeros(2), {1}, "\ud800"])
def test_plain_refuses_a_bad_value_without_a_path(value: object) -> None:
    with pytest.raises(StateError) as caught:
        tree.plain(value)

    assert caught.value.where == {}


@pytest.mark.parametrize("first", ["owner", "view"])
def test_an_array_and_a_view_of_it_are_found_in_either_order(first: str) -> None:
    """Addresses are asked for from the first view on, also those of arrays before it."""
    before, owner = np.zeros(3), np.zeros((4, 2))
    pair = {"owner": owner, "view": owner[:]}
    own = {first: pair.pop(first), **pair}
    state = {"a": before, "m": own, "again": before, "part": owner[1:], "z": np.zeros(2)}

    flat = tree.flatten(state)

    assert [leaf.path for leaf in flat.leaves] == ["a", f"m/{first}", "part", "z"]
    assert [leaf.aliases for leaf in flat.leaves] == [
        ("again",),
        (f"m/{next(iter(pair))}",),
        (),
        (),
    ]
    assert flat.overlaps == ((f"m/{first}", "part"),)


def test_arrays_of_a_probe_are_not_tied_to_those_of_the_state() -> None:
    owner = np.zeros(4)

    flat = tree.flatten({"w": owner}, {"inputs": owner, "outputs": [owner[:], owner[1:]]})

    assert [(leaf.path, leaf.aliases) for leaf in flat.leaves] == [
        ("w", ()),
        ("~probe/inputs", ("~probe/outputs/0",)),
        ("~probe/outputs/1", ()),
    ]
    assert flat.overlaps == ()
