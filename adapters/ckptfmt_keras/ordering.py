"""The order in which a plain `fit` takes its data: what of it a run goes on with.

Arrays, data sets by number and loaders without a generator of their own draw their order from
generators that each checkpoint has. A loader's own generators are saved here. Of the rest
nobody can tell, and a run that goes on says so. `fit` tells callbacks nothing of its data: it
is looked up in the frame of `fit`, and where it is not there any more, a run says that, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, Final

import keras
import numpy as np

from ckptfmt_keras import loaders

KIND: Final = "fit"
_SAMPLERS: Final = frozenset(
    {"SequentialSampler", "RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler"}
)


class Order:
    """The data of the `fit` that runs; of none where it cannot be found.

    Made by a callback, while its hook runs.
    """

    def __init__(self) -> None:
        self._iterator: Any = _iterator()
        self._adapter: Any = getattr(self._iterator, "data_adapter", None)
        self._loader: Any = getattr(self._adapter, "_dataloader", None)
        self._set: Any = getattr(self._adapter, "py_dataset", None)

    def state(self) -> dict[str, Any] | None:
        """Return what the order of the next epoch comes from, or None: checkpoints have it."""
        state: dict[str, Any] = {"kind": KIND}
        if self._loader is not None:
            if keras.backend.backend() != "torch":
                state["torch"] = _torch().get_rng_state().numpy().copy()
            for number, one in enumerate(self._generators()):
                state[f"generator.{number}"] = one.get_state().numpy().copy()
        elif hasattr(self._set, "state_dict"):
            state["set"] = self._set.state_dict()
        return state if len(state) > 1 else None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state; that of another kind of data is left alone."""
        if state.get("kind") != KIND:
            return
        if self._loader is not None:
            if "torch" in state:
                _torch().set_rng_state(_tensor(state["torch"]))
            for number, one in enumerate(self._generators()):
                if f"generator.{number}" in state:
                    one.set_state(_tensor(state[f"generator.{number}"]))
        elif "set" in state and hasattr(self._set, "load_state_dict"):
            self._set.load_state_dict(state["set"])

    def unknown(self) -> str | None:
        """Return why the next epoch may have other data than without the interruption."""
        steps, adapter = getattr(self._iterator, "steps_per_epoch", None), self._adapter
        name = type(adapter).__name__
        if adapter is None:
            return "this release of Keras does not show what `fit` takes its batches from"
        if name == "GeneratorDataAdapter":
            return "a generator begins anew, wherever in its data it was"
        if steps is not None and steps != adapter.num_batches:
            return "with steps_per_epoch an epoch is no pass over the data: it begins anew"
        if name == "ArrayDataAdapter":
            shuffled = keras.backend.backend() == "tensorflow" and adapter._shuffle
            return (
                "TensorFlow shuffles arrays where nobody can restore it" if shuffled else None
            )
        if name == "TFDatasetAdapter":
            shuffled = any("Shuffle" in kind for kind in _kinds(adapter._dataset))
            return (
                "a tf.data.Dataset shuffles where nobody can restore it" if shuffled else None
            )
        if self._loader is not None:
            sampler = type(self._loader.sampler).__name__
            known = sampler in _SAMPLERS or self._loader.sampler is None
            return None if known else f"nobody knows the state of a {sampler}"
        own = type(self._set)
        changes = any(
            getattr(own, hook, None) is not getattr(keras.utils.PyDataset, hook, None)
            for hook in ("on_epoch_begin", "on_epoch_end")
        )
        if self._set is not None and changes and not hasattr(own, "load_state_dict"):
            return (
                f"{own.__name__} changes with each epoch: give it state_dict() and"
                " load_state_dict(state), or it begins anew"
            )
        return None

    def _generators(self) -> list[Any]:
        """Return a loader's own generators, each once."""
        found = [one.generator for one in loaders.drawing(self._loader)]
        return list({id(one): one for one in found if one is not None}.values())


def _iterator() -> Any:
    """Return what the innermost `fit` of Keras takes its batches from, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit" and "epoch_iterator" in frame.f_locals:
            return frame.f_locals["epoch_iterator"]
        frame = frame.f_back
    return None


def _kinds(dataset: Any) -> list[str]:
    """Return the classes of a `tf.data.Dataset` and of all that it is made of."""
    inputs: Any = getattr(dataset, "_inputs", list)()
    return [type(dataset).__name__, *(kind for one in inputs for kind in _kinds(one))]


def _torch() -> Any:
    return sys.modules["torch"]


def _tensor(state: Any) -> Any:
    return _torch().from_numpy(np.array(state))
