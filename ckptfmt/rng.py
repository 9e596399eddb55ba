"""State of Python's and NumPy's random number generators as a state tree, and back.

Nothing but dicts, integers, floats, strings and arrays of uint32 and uint64: what `random`
and NumPy would pickle is spelled out, so that any reader can continue the sequence. Each
NumPy part has the shape of NumPy's own `bit_generator.state`. Framework generators belong to
the adapters. Not covered is `SeedSequence`: after a restore `Generator.spawn` continues from
the target's own seed.

Neither function is atomic against other threads: call them while nobody draws.
"""

from __future__ import annotations

import random
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from ckptfmt.errors import CheckpointError, MismatchError, StateError
from ckptfmt.leaves import join

WORDS: Final = 624  # uint32 words of a Mersenne Twister


@dataclass(frozen=True, slots=True)
class _Array:
    """A 1-d array of exactly this dtype and length."""

    dtype: str
    length: int


@dataclass(frozen=True, slots=True)
class _Integer:
    """An integer, start <= value < stop."""

    stop: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class _Float:
    """A float, or None if that is allowed."""

    optional: bool = False


_Layout: TypeAlias = "Mapping[str, _Array | _Integer | _Float | _Layout]"

# Version 3 of `random.getstate()`, unchanged since Python 3.2.
_PYTHON: Final[_Layout] = {
    "version": _Integer(start=3, stop=4),
    "key": _Array("uint32", WORDS),
    "pos": _Integer(WORDS + 1),
    "gauss": _Float(optional=True),
}
# All but MT19937 keep the unused half of a 64-bit draw.
_HALF: Final[_Layout] = {"has_uint32": _Integer(2), "uinteger": _Integer(2**32)}
_PCG: Final[_Layout] = {
    "state": {"state": _Integer(2**128), "inc": _Integer(2**128)},
    **_HALF,
}
# Bounds matter: NumPy's C code indexes with `pos` and `buffer_pos` without a check.
_BIT_GENERATORS: Final[Mapping[str, _Layout]] = {
    "MT19937": {"state": {"key": _Array("uint32", WORDS), "pos": _Integer(WORDS + 1)}},
    "PCG64": _PCG,
    "PCG64DXSM": _PCG,
    "Philox": {
        "state": {"counter": _Array("uint64", 4), "key": _Array("uint64", 2)},
        "buffer": _Array("uint64", 4),
        "buffer_pos": _Integer(5),
        **_HALF,
    },
    "SFC64": {"state": {"state": _Array("uint64", 4)}, **_HALF},
}
# The legacy functions of `numpy.random` also keep the second of each pair of normals.
_GAUSS: Final[_Layout] = {"has_gauss": _Integer(2), "gauss": _Float()}


def capture(generators: Mapping[str, np.random.Generator] | None = None) -> dict[str, object]:
    """Return the state of `random`, of `numpy.random` and of named generators.

    The tree shares no memory with the generators. Nothing is drawn or changed.

    Args:
        generators: Any number of NumPy generators, by the names to restore them under.

    Raises:
        StateError: a generator is not a `numpy.random.Generator` over one of NumPy's own
            bit generators, or its state has a layout that this release does not know.
    """
    version, words, gauss = random.getstate()
    python = {
        "version": version,
        "key": np.array(words[:-1], dtype=np.uint32),
        "pos": words[-1],
        "gauss": gauss,
    }
    named: dict[str, object] = {}
    for name, generator in (generators or {}).items():
        at = join("generators", name)
        named[name] = _bit_generator(_state_of(generator, at), at, StateError)
    return {
        "python": _checked(python, _PYTHON, "python", StateError),
        "numpy": _bit_generator(_legacy_state(), "numpy", StateError, _GAUSS),
        "generators": named,
    }


def restore(tree: object, generators: Mapping[str, np.random.Generator] | None = None) -> None:
    """Continue every sequence exactly where `capture` found it.

    All or nothing: the whole tree is checked, against the targets too, before the first
    generator changes.

    Args:
        tree: What `capture` returned, possibly saved and loaded in between.
        generators: The targets, under the names given to `capture`; changed in place. Each
            must run on the bit generator it had then.

    Raises:
        MismatchError: a part is missing, unexpected, of another type, dtype or length, or
            out of range, or a target runs on another bit generator. `where["path"]` names
            the part, relative to `tree`.
        StateError: a target is not a `numpy.random.Generator`.
    """
    plan(tree, generators)()


def plan(
    tree: object, generators: Mapping[str, np.random.Generator] | None = None
) -> Callable[[], None]:
    """Check all that `restore` checks, and change nothing; return what then cannot fail.

    For a restore that changes other things first.

    Raises:
        MismatchError, StateError: as `restore`.
    """
    targets = generators or {}
    parts = _parts(tree, {"python", "numpy", "generators"}, "", MismatchError)
    saved = _parts(parts["generators"], set(targets), "generators", MismatchError)
    python = _checked(parts["python"], _PYTHON, "python", MismatchError)
    legacy = _bit_generator(parts["numpy"], "numpy", MismatchError, _GAUSS)
    _same_kind(legacy, _legacy_state(), "numpy")
    named: dict[str, dict[str, Any]] = {}
    for name, generator in targets.items():
        at = join("generators", name)
        named[name] = _bit_generator(saved[name], at, MismatchError)
        _same_kind(named[name], _state_of(generator, at), at)

    words = (*python["key"].tolist(), python["pos"])

    def apply() -> None:
        random.setstate((python["version"], words, python["gauss"]))
        np.random.set_state(legacy)
        for name, generator in targets.items():
            generator.bit_generator.state = named[name]

    return apply


def _legacy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)  # typed as a tuple by some NumPy releases
    return dict(state)


def _state_of(generator: object, at: str) -> Mapping[str, Any]:
    if not isinstance(generator, np.random.Generator):
        raise StateError(
            f"expected a numpy.random.Generator, got {type(generator).__name__}", path=at
        )
    return generator.bit_generator.state


def _bit_generator(
    state: object, at: str, error: type[CheckpointError], extra: _Layout | None = None
) -> dict[str, Any]:
    """Return a checked private copy of a NumPy state dict, laid out as its kind says."""
    kind = state.get("bit_generator") if isinstance(state, Mapping) else None
    layout = _BIT_GENERATORS.get(kind) if isinstance(kind, str) else None
    if layout is None or not isinstance(state, Mapping):
        raise error(
            f"expected the state of one of {list(_BIT_GENERATORS)}, got {_short(kind)}", path=at
        )
    rest = {name: value for name, value in state.items() if name != "bit_generator"}
    return {"bit_generator": kind, **_checked(rest, {**layout, **(extra or {})}, at, error)}


def _same_kind(saved: Mapping[str, Any], target: Mapping[str, Any], at: str) -> None:
    expected, found = saved["bit_generator"], target["bit_generator"]
    if expected != found:
        raise MismatchError(
            f"the state is of a {expected}, the target runs on {_short(found)}: "
            "build the target on the same bit generator",
            path=at,
            expected=expected,
            found=found,
        )


def _checked(
    value: object, layout: _Layout, at: str, error: type[CheckpointError]
) -> dict[str, Any]:
    """Return a private copy of `value`, of which every part has been checked."""
    parts = _parts(value, set(layout), at, error)
    copy: dict[str, Any] = {}
    for name, field in layout.items():
        path = join(at, name)
        if isinstance(field, Mapping):
            copy[name] = _checked(parts[name], field, path, error)
        else:
            copy[name] = _leaf(parts[name], field, path, error)
    return copy


def _leaf(
    value: object, field: _Array | _Integer | _Float, path: str, error: type[CheckpointError]
) -> object:
    match field, value:
        case _Array(dtype=dtype, length=length), np.ndarray():
            if value.dtype.newbyteorder("=") == np.dtype(dtype) and value.shape == (length,):
                return np.array(value, dtype=dtype)
            found = f"{value.dtype}{list(value.shape)}"
        case _Integer(start=start, stop=stop), int() if type(value) is int:
            if start <= value < stop:
                return value
            found = _short(value)
        case _Float(), float():
            return value
        case _Float(optional=True), None:
            return None
        case _:
            found = f"{type(value).__name__} {_short(value)}"
    raise error(f"expected {_description(field)}, got {found}", path=path)


def _parts(
    value: object, names: set[str], at: str, error: type[CheckpointError]
) -> Mapping[str, object]:
    """Return `value` if it is a dict of exactly these keys."""
    if not isinstance(value, Mapping):
        raise error(f"expected a dict, got {type(value).__name__}", path=at)
    if value.keys() != names:
        missing = sorted(names - value.keys())
        unexpected = sorted(map(str, value.keys() - names))
        raise error(
            f"expected the keys {_short(sorted(names))}, missing {_short(missing)}, "
            f"unexpected {_short(unexpected)}",
            path=at,
        )
    return value


def _description(field: _Array | _Integer | _Float) -> str:
    match field:
        case _Array():
            return f"{field.dtype}[{field.length}]"
        case _Integer():
            return f"an integer from {field.start} to {field.stop - 1}"
        case _Float():
            return "a float or None" if field.optional else "a float"


def _short(value: object) -> str:
    return reprlib.repr(value)  # foreign data: bounded in length and in depth
