"""Foreign `state_dict`s as state trees, and back into the types their owners use.

A state tree knows dict, list, tuple and plain leaves (ckptfmt's spec §6.4). A scheduler keeps
a Counter, a callback a deque: these are stored as the plain type below them, and what comes
back takes the type that the live object has in the same place.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ckptfmt.errors import MismatchError
from ckptfmt.tree import join
from ckptfmt_torch import tensors


def to_tree(value: Any, path: str, view: tensors.View = tensors.view) -> Any:
    """Return a state tree of a value; `view` makes arrays of its tensors.

    Raises:
        StateError: it holds a tensor that cannot be stored. Other objects are left for
            `ckptfmt.Store.save` to refuse, which names the way out.
    """
    if isinstance(value, torch.Tensor):
        return view(value, path)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_tree(child, join(path, key), view) for key, child in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_tree(child, path, view) for child in value)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_tree(value._asdict(), path, view)
    if isinstance(value, tuple):
        return tuple(to_tree(child, f"{path}/{n}", view) for n, child in enumerate(value))
    if isinstance(value, list | collections.deque):
        return [to_tree(child, f"{path}/{n}", view) for n, child in enumerate(value)]
    if isinstance(value, torch.dtype | torch.device | torch.Size):
        return tuple(value) if isinstance(value, torch.Size) else str(value)
    return value


def like(stored: Any, live: Any, path: str) -> Any:
    """Return what was stored, in the types that the live value has.

    Where the live value says nothing (None, an empty container), arrays become CPU tensors
    and the rest stays as it was stored.

    Raises:
        MismatchError: the live value is of a kind that what was stored cannot become.
    """
    if isinstance(stored, np.ndarray):
        return _array_like(stored, live, path)
    if isinstance(live, enum.Enum):
        return type(live)(stored)
    if isinstance(live, torch.dtype) and isinstance(stored, str):
        return getattr(torch, stored.removeprefix("torch."))
    if isinstance(live, torch.device) and isinstance(stored, str):
        return torch.device(stored)
    if isinstance(stored, dict):
        return _dict_like(stored, live, path)
    if isinstance(stored, list | tuple):
        return _sequence_like(stored, live, path)
    return stored


def _array_like(stored: np.ndarray[Any, Any], live: Any, path: str) -> Any:
    if isinstance(live, np.ndarray | np.generic):
        return stored
    with torch.inference_mode(False):  # what is made within it cannot be trained on
        tensor = tensors.tensor_of(np.array(stored))
        return tensor.to(live.device) if isinstance(live, torch.Tensor) else tensor


def _dict_like(stored: dict[Any, Any], live: Any, path: str) -> Any:
    known = live._asdict() if hasattr(live, "_asdict") else live
    known = known if isinstance(known, Mapping) else {}
    found = {key: like(child, known.get(key), join(path, key)) for key, child in stored.items()}
    if hasattr(live, "_asdict"):
        return type(live)(**found)
    if isinstance(live, collections.Counter | collections.OrderedDict):
        return type(live)(found)
    if isinstance(live, collections.defaultdict):
        return collections.defaultdict(live.default_factory, found)
    if live is None or isinstance(live, Mapping):
        return found
    raise _mismatch(path, stored, live)


def _sequence_like(stored: list[Any] | tuple[Any, ...], live: Any, path: str) -> Any:
    known = list(live) if isinstance(live, list | tuple | collections.deque) else []
    known += [known[-1] if known else None] * (len(stored) - len(known))
    found = [like(child, known[n], f"{path}/{n}") for n, child in enumerate(stored)]
    make: Callable[[list[Any]], Any] = type(stored)
    if isinstance(live, collections.deque):
        return collections.deque(found, live.maxlen)
    if isinstance(live, list | set | frozenset | torch.Size):
        make = type(live)
    elif isinstance(live, tuple) and not hasattr(live, "_asdict"):
        make = tuple
    elif live is not None and not isinstance(live, tuple):
        raise _mismatch(path, stored, live)
    return make(found)


def _mismatch(path: str, stored: object, live: object) -> MismatchError:
    return MismatchError(
        "the checkpoint has another kind of value here than the object that is to be restored:"
        " build the object as it was built for the save",
        path=path,
        expected=type(live).__name__,
        found=type(stored).__name__,
    )


def is_array(value: object) -> bool:
    """Return whether a value of a loaded tree is an array, lazy or in memory."""
    return hasattr(value, "__array__") and not isinstance(value, np.generic)


def has_arrays(value: object) -> bool:
    """Return whether there are arrays in a value of a loaded tree."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(has_arrays, value))
    return is_array(value)


def loaded(value: Any) -> Any:
    """Return a tree with lazy arrays read into memory."""
    if is_array(value):
        return np.asarray(value)
    if isinstance(value, dict):
        return {key: loaded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(loaded(child) for child in value)
    return value
