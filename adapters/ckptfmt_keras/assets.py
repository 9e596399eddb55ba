"""What layers keep in files of their own: vocabularies and tables that were adapted.

Keras lets such a layer write a folder of files; here each file is a leaf of bytes, so that they
are verified and travel with the weights.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import keras

from ckptfmt.errors import MismatchError
from ckptfmt_keras import architecture


def owners(model: Any) -> dict[str, Any]:
    """Return the layers that write files, by their ordinal among all layers."""
    return {
        f"{number:04d}": layer
        for number, layer in enumerate(architecture.layers_of(model))
        if _has_own(layer, "save_assets")
    }


def capture(model: Any) -> dict[str, dict[str, bytes]]:
    """Return ordinal of the layer → name of the file → content."""
    found = {}
    for key, layer in owners(model).items():
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            found[key] = {
                file.relative_to(folder).as_posix().replace("/", "|"): file.read_bytes()
                for file in sorted(pathlib.Path(folder).rglob("*"))
                if file.is_file()
            }
    return {key: files for key, files in found.items() if files}


def check(stored: Mapping[str, Any], model: Any) -> list[str]:
    """Return what does not fit: files without a layer that takes them."""
    lost = sorted(stored.keys() - owners(model).keys())
    return [f"assets/{key} is in the checkpoint, no layer here takes it" for key in lost]


def restore(stored: Mapping[str, Mapping[str, bytes]], model: Any) -> None:
    """Give each layer its files, then let layers compute what follows from their weights.

    Raises:
        MismatchError: a layer does not take its files.
    """
    here = owners(model)
    for key, files in stored.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = pathlib.Path(folder, *name.split("|"))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                here[key].load_assets(folder)
            except (OSError, ValueError) as error:
                raise MismatchError(
                    "a layer does not take the files it wrote",
                    layer=here[key].name,
                    cause=str(error),
                ) from error


def finish(model: Any) -> None:
    """Let layers compute what they derive from their weights, such as a normalisation."""
    for layer in architecture.layers_of(model):
        if isinstance(layer, keras.layers.Normalization):  # others have it in their config
            layer.finalize_state()


def _has_own(layer: Any, name: str) -> bool:
    own = getattr(type(layer), name, None)
    return own is not None and own is not getattr(keras.Layer, name, None)
