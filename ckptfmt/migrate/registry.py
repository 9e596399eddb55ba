"""Which reader a source belongs to: asked in order, told apart by bytes and never by names.

A reader is a module of `ckptfmt.migrate.readers` with one function, `read(place)`: it returns
the source's `Contents`, or None when the bytes are not of its format. It raises only when they
are, and are damaged or unsafe. Formats of several files come first: a member of such a set
would otherwise be taken for a checkpoint of its own. See docs/migration.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, Protocol

from ckptfmt.migrate import hints
from ckptfmt.migrate.files import Place
from ckptfmt.migrate.source import Contents, refusing

# Reader → what it reads. Its module is imported when the readers before it did not know the
# bytes; a reader that needs an extra imports it inside, and its error names the extra.
READERS: Final[Mapping[str, str]] = {
    "dcp": "folders of torch.distributed.checkpoint",
    "deepspeed": "DeepSpeed sets of ZeRO 1, 2 and 3, the ranks joined",
    "universal": "DeepSpeed universal folders: each parameter in files of its own",
    "orbax": "Orbax folders: OCDBT and Zarr, read without tensorstore",
    "tensorflow": "TensorFlow V1 and V2 checkpoints, variables of SavedModels",
    "shards": "Hugging Face weights in several files with an index",
    "safetensors": "safetensors",
    "torchscript": "TorchScript archives: the weights",
    "torch_zip": "PyTorch since 1.6, Lightning: .pt, .pth, .bin, .ckpt",
    "torch_stream": "PyTorch before 1.6: pickles in a row",
    "torch_tar": "PyTorch 0.1: tar archives",
    "numpy": "NumPy .npy and .npz",
    "pickled": "plain pickles of NumPy or JAX arrays, joblib",
    "hdf5": "HDF5 of Keras 1, 2 and 3, with the extra ckptfmt[h5]; .keras archives",
    "flax": "Flax msgpack",
    "ggml": "files of ggml before GGUF: refused, with the way out",
    "gguf": "GGUF of llama.cpp; quantised arrays as blocks",
    "mxnet": "MXNet .params",
    "paddle": "Paddle .pdiparams and files of Fluid",
    "xgboost": "XGBoost JSON, UBJSON and binary models",
    "onnx": "ONNX initialisers and constants",
    "caffe": "Caffe .caffemodel",
    "archive": "zip, tar and tar.gz of such files; one packed file; Stable-Baselines3",
    "folder": "a folder of such files",
}


class Reader(Protocol):
    """What the module of a reader provides."""

    def read(self, place: Place) -> Contents | None:
        """Return the contents, or None when the bytes are not of this format."""


def read(place: Place) -> Contents:
    """Return the contents of a source.

    Raises:
        UnsupportedError: no reader knows these bytes.
        FormatError: and its kinds, when they are damaged or unsafe.
    """
    found = find(place)
    if found is None and place.name is not None and hints.PARTS.fullmatch(place.name):
        found = find(Place(place.folder, None))
    if found is None:
        raise hints.unknown(place, find)
    return found


def find(place: Place, *, without: frozenset[str] = frozenset()) -> Contents | None:
    """Return the contents of a source, or None when no reader knows its bytes.

    Raises:
        FormatError: and its kinds, when they are known, and are damaged or unsafe.
    """
    for name in READERS:
        if name not in without:
            known = reader(name)
            with refusing("malformed", file=place.name, folder=place.folder.path, reader=name):
                found = known.read(place)
            if found is not None:
                return found
    return None


def reader(name: str) -> Reader:
    """Return a reader's module."""
    module: Reader = importlib.import_module(f"ckptfmt.migrate.readers.{name}")
    return module
