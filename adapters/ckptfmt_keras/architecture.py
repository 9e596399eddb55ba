"""What a model is built from: its config in words that every backend knows, and a digest.

Keras' config names layers as they happen to be numbered in a process, and some classes by
private modules of one backend. Here names are replaced by their order for the digest, and
private modules by public ones, so that equal models have equal digests.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import keras

import ckptfmt
from ckptfmt.errors import MismatchError, NotFoundError, UsageError
from ckptfmt_keras import releases, variables

_PUBLIC: Final = (
    "layers", "optimizers", "losses", "metrics", "initializers", "regularizers", "constraints",
    "activations", "random", "dtype_policies", "optimizers.schedules",
)  # fmt: skip
_PRIVATE: Final = "keras.src."
_TRAINING: Final = ("compile_config", "build_config")  # not what the model computes
_DTYPES: Final = ("dtype", "dtype_policy")
_ADAPTED: Final = ("vocabulary_size",)  # state, which comes back with the layer's files


def describe(model: Any) -> dict[str, Any]:
    """Return config, digest, dtype policies and labels of a model as plain values.

    A model whose constructor Keras cannot write down has no config, and `reason` says why: it
    can be restored into a model that was built by code, but not be made from the checkpoint.
    """
    try:
        with without_tensorflow():
            config, reason = canonical(keras.saving.serialize_keras_object(model)), None
    except (TypeError, ValueError, NotImplementedError) as error:
        config, reason = None, str(error).splitlines()[0]
    return {
        "framework": "keras",
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "floatx": keras.config.floatx(),
        "dtype_policy": keras.config.dtype_policy().name,
        "config": config,
        "reason": reason,
        "defaults": releases.defaults(config),
        "sha256": None if config is None else digest(config),
        "policies": policies(model),
        "labels": {entry.key: entry.label for entry in variables.weights(model)},
    }


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keep Keras from importing TensorFlow, for seconds, to see that no object is of it."""
    lazy: Any = getattr(sys.modules.get("keras.src.utils.module_utils"), "tensorflow", None)
    if "tensorflow" in sys.modules or getattr(lazy, "_available", False) is not None:
        yield
        return
    lazy._available = False
    try:
        yield
    finally:
        lazy._available = None


def canonical(config: Any) -> Any:
    """Return a config of plain values in which classes have their public names."""
    if isinstance(config, Mapping):
        found = {str(key): canonical(value) for key, value in config.items()}
        module, name = found.get("module"), found.get("class_name")
        if isinstance(module, str) and module.startswith(_PRIVATE) and isinstance(name, str):
            public = _public(name)
            if public is not None:
                found |= {"module": public, "registered_name": None}
        return found
    if isinstance(config, list | tuple):
        return [canonical(value) for value in config]
    return config


@functools.cache
def _public(name: str) -> str | None:
    for place in _PUBLIC:
        owner: Any = keras
        for part in place.split("."):
            owner = getattr(owner, part, None)
        if hasattr(owner, name):
            return f"keras.{place}"
    return None


def digest(config: Any) -> str:
    """Return the SHA-256 of what a config computes, whatever its layers are called."""
    text = json.dumps(essence(config), separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def essence(config: Any) -> Any:
    """Return a config without names, dtypes and what concerns training only."""
    order: dict[str, str] = {}
    for name in _names(config):
        order.setdefault(name, f"#{len(order)}")
    return _without(config, order)


def _names(config: Any) -> Iterator[str]:
    """Yield the names of layers, models and so on in the order of the config."""
    if isinstance(config, Mapping):
        inner = config.get("config")
        if "class_name" in config and isinstance(inner, Mapping):
            name = inner.get("name")
            if isinstance(name, str):
                yield name
        for key, value in config.items():
            if key not in _TRAINING:
                yield from _names(value)
    elif isinstance(config, list):
        for value in config:
            yield from _names(value)


def _without(config: Any, order: Mapping[str, str]) -> Any:
    if isinstance(config, Mapping):
        if config.get("class_name") == "__lambda__":
            return "code"  # Python writes the same code down in several ways
        return {
            key: _without(value, order)
            for key, value in config.items()
            if key not in (*_TRAINING, *_DTYPES, *_ADAPTED)
        }
    if isinstance(config, list):
        return [_without(value, order) for value in config]
    return order.get(config, config) if isinstance(config, str) else config


def recorded(checkpoint: ckptfmt.Checkpoint) -> Mapping[str, Any]:
    """Return what `architecture.describe` recorded of the saved model.

    Raises:
        NotFoundError: the checkpoint was not saved by this adapter.
    """
    saved = checkpoint.architecture
    if not isinstance(saved, Mapping) or saved.get("framework") != "keras":
        raise NotFoundError(
            "this checkpoint holds no Keras model: it was not saved by ckptfmt_keras",
            checkpoint=checkpoint.number,
        )
    return saved


def parted(saved: Any, now: Any) -> list[tuple[str, object, object]]:
    """Return path, value when saved and value now of each value that differs."""
    before, after = dict(flat(saved, "")), dict(flat(now, ""))
    return [
        (name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def flat(value: Any, path: str) -> list[tuple[str, object]]:
    """Return path and value of each leaf of nested dicts and lists, empty ones included."""
    if isinstance(value, Mapping) and value:
        return [row for key, child in value.items() for row in flat(child, f"{path}/{key}")]
    if isinstance(value, list) and value:
        return [row for n, child in enumerate(value) for row in flat(child, f"{path}/{n}")]
    return [(path.removeprefix("/"), value)]


def policies(model: Any) -> list[str]:
    """Return the dtype policy of each layer, in order; inner layers follow their owner."""
    return [layer.dtype_policy.name for layer in layers_of(model)]


def layers_of(model: Any) -> list[Any]:
    """Return all layers below a model, inner ones behind their owner, each once."""
    found: dict[int, Any] = {}
    for layer in getattr(model, "layers", None) or getattr(model, "_layers", []):
        for one in (layer, *layers_of(layer)):
            found.setdefault(id(one), one)
    return list(found.values())


def carried(model: Any) -> dict[str, Any]:
    """Return the variables that stateful RNNs carry over batches: no list of Keras has them."""
    found = [
        state
        for layer in layers_of(model)
        if getattr(layer, "stateful", False)
        for state in keras.tree.flatten(getattr(layer, "states", None) or [])
    ]
    return {f"{number:04d}.{variables.local_name(v)}": v for number, v in enumerate(found)}


def build(saved: Mapping[str, Any], *, unsafe: Iterable[str] = (), compile: bool = True) -> Any:
    """Return a new model from what `describe` recorded.

    Args:
        unsafe: Names of classes that may run code from the checkpoint, such as "Lambda".
        compile: Whether to compile it as it was, too.

    Raises:
        UsageError: the checkpoint holds no config, or a Lambda that was not allowed.
        MismatchError: a class of yours is not registered here, or cannot be built.
    """
    config = saved.get("config")
    if config is None:
        raise UsageError(
            "this checkpoint cannot make a model: build it by code, then call restore()",
            reason=saved.get("reason"),
        )
    allowed = set(unsafe)
    _check_classes(config, allowed)
    wanted = config if compile else {k: v for k, v in config.items() if k != "compile_config"}
    if saved["backend"] != keras.backend.backend() and wanted.get("compile_config"):
        # "auto" was resolved on the other backend; here it may mean minutes of compilation.
        settings = {**wanted["compile_config"], "jit_compile": "auto"}
        wanted = {**wanted, "compile_config": settings}
    if saved["keras"] != keras.__version__:
        wanted = releases.without_later(wanted, saved.get("defaults") or {})
    before = keras.config.dtype_policy(), keras.config.floatx()
    try:
        # Loss scaling and new layers go by the global policy, not by that of the layers.
        keras.config.set_floatx(saved["floatx"])
        keras.config.set_dtype_policy(saved["dtype_policy"])
        model = keras.saving.deserialize_keras_object(wanted, safe_mode=not allowed)
    except (TypeError, ValueError) as error:
        raise MismatchError(
            "Keras cannot build this model from its config", cause=str(error)[:1000]
        ) from error
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_floatx(before[1])
    return model


def _check_classes(config: Any, allowed: set[str]) -> None:
    """Raise for classes whose building would run code that came with the checkpoint."""
    for kind in releases.classes(config):
        name, module = str(kind["class_name"]), str(kind.get("module") or "")
        if name in ("Lambda", "__lambda__") and "Lambda" not in allowed:
            raise UsageError(
                "this model has a Lambda layer, whose code lies in the checkpoint and would be"
                " run: pass unsafe=['Lambda'] if you trust it, or write the layer as a class",
                layer=kind.get("config", {}).get("name"),
            )
        ours = not module or module == "builtins" or module.split(".")[0] == "keras"
        registered = kind.get("registered_name") or name
        if not ours and keras.saving.get_registered_object(registered) is None:
            raise MismatchError(
                "a class of this model is not registered here: import its module, and decorate"
                " it with @keras.saving.register_keras_serializable()",
                expected=registered,
                module=module,
            )
