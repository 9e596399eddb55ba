"""HDF5 files of Keras: full models, weights, optimizers; `.keras` archives hold one too.

h5py finds its way in the file, in a process of its own (`apart.py`): a file that makes it hang
or crash is an error. A contiguous dataset is then a view of the mapped bytes. What a file could
use to reach beyond itself, or to ask for more memory than it has, is refused: links other than
hard ones, external storage, virtual datasets, filters other than gzip, shuffle and Fletcher-32,
a user block. Configuration is text and stays text.
"""

from __future__ import annotations

import ast
import base64
import functools
import importlib.util
import math
from typing import Any, Final

import ml_dtypes
import numpy as np

from ckptfmt.errors import FormatError, UnsupportedError
from ckptfmt.migrate import apart
from ckptfmt.migrate.files import Place, Span
from ckptfmt.migrate.source import Array, Contents, Lazy

MAGIC: Final = b"\x89HDF\r\n\x1a\n"


def read(place: Place) -> Contents | None:
    """Return what one file holds, or None.

    Raises:
        UnsupportedError: h5py is not installed.
    """
    span = place.span()
    if span is None or span.head(8) != MAGIC:
        return None
    if importlib.util.find_spec("h5py") is None:
        raise UnsupportedError(
            "reading HDF5 needs h5py: pip install 'ckptfmt[h5]'", file=span.name
        )
    root = _built(span, apart.ask(span))
    version = root.get("@keras_version")
    return Contents(
        format="keras-h5" if _is_keras(root) else "hdf5",
        root=root,
        files=(span.name,),
        producer=f"Keras {version}" if isinstance(version, str) else None,
        roles={"@model_config": "architecture", "@training_config": "hyperparameters"},
    )


def _is_keras(root: dict[str, Any]) -> bool:
    return any(name in root for name in ("@layer_names", "model_weights", "layers", "vars"))


def _built(span: Span, node: list[Any]) -> Any:
    """Return what a node of `h5walk.py` stands for."""
    match node:
        case ["group", rows]:
            return {name: _built(span, below) for name, below in rows}
        case ["list", items]:
            return [_built(span, item) for item in items]
        case ["bytes", text]:
            return base64.b64decode(text)
        case ["data", dtype, shape, text, is_scalar]:
            array = np.frombuffer(base64.b64decode(text), _dtype(dtype)).reshape(shape)
            return array[()] if is_scalar else Lazy.of(array)
        case ["array", dtype, shape, path, offset]:
            return _array(span, _dtype(dtype), shape, path, offset)
        case ["value", value]:
            return value
    raise FormatError("the process that reads HDF5 answers nonsense", file=span.name)


def _dtype(text: str) -> np.dtype[Any]:
    return np.lib.format.descr_to_dtype(ast.literal_eval(text))


def _array(
    span: Span, dtype: np.dtype[Any], shape: list[int], path: str, offset: int | None
) -> Lazy:
    if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
        dtype = np.dtype(ml_dtypes.bfloat16)
    nbytes = math.prod(shape) * dtype.itemsize
    if offset is not None or not nbytes:
        data = span.cut(offset or 0, nbytes, path)
        return Lazy(dtype, shape, lambda: np.frombuffer(data, dtype).reshape(shape))
    return Lazy(dtype, shape, functools.partial(_loaded, span, dtype, shape, path))


def _loaded(span: Span, dtype: np.dtype[Any], shape: list[int], path: str) -> Array:
    array = np.empty(shape, dtype)
    apart.ask(span, path, array.reshape(-1).view(np.uint8).data)
    return array
