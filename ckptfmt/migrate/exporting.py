"""Out again: arrays of a checkpoint as files of other tools.

`.npz` is NumPy's, `.pt` (`.pth`, `.bin`) a state dict that `torch.load(weights_only=True)`
accepts, `.weights.h5` and `.h5` are Keras's, `.safetensors` one file, or shards with an index
as Hugging Face reads them. Every byte is verified on its way; a file appears whole or not at
all.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

import ckptfmt
from ckptfmt import Checkpoint, dtypes, tree
from ckptfmt._engine import plan
from ckptfmt._engine.restore import Patterns
from ckptfmt.backends.base import Buffer
from ckptfmt.backends.single import open_file, publish
from ckptfmt.errors import NotFoundError, UsageError
from ckptfmt.migrate import keras_files
from ckptfmt.migrate.source import Array
from ckptfmt.migrate.tensors import STORAGES, TYPES
from ckptfmt.options import Progress

TORCH: Final = ".pt", ".pth", ".bin"
NUMPY: Final = ".npz"
SAFETENSORS: Final = ".safetensors"
_BLOCK: Final = 2**22
_STORAGE_OF: Final = {np.dtype(spec): name for name, spec in reversed(STORAGES.items())}
_TYPE_OF: Final = {np.dtype(spec): name for name, spec in reversed(TYPES.items())}

_Names = list[tuple[str, tuple[str, ...]]]  # path of each array, and the names it gets


def export(
    checkpoint: Checkpoint,
    url: str | os.PathLike[str],
    *,
    select: Patterns = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write arrays to one file, of the kind that its suffix names.

    Names are as in `ckptfmt.export`. In a `.pt` file tied arrays share a storage; in `.npz`
    each name has its array. `.weights.h5` (Keras 3) and `.h5` (Keras 1 and 2) take checkpoints
    that were migrated from Keras, and name arrays as they were.

    Raises:
        ConflictError: the file exists and `overwrite` is False.
        NotFoundError: `select` matches nothing.
        UsageError: no format has this suffix, the format has no name for a dtype, or Keras none
            for an array.
        IntegrityError: the checkpoint is damaged; no file is left.
    """
    text = os.fspath(url)
    if text.endswith(keras_files.KERAS_2):
        _keras(checkpoint, url, select, overwrite, progress)
        return
    if not text.endswith((SAFETENSORS, NUMPY, *TORCH)):
        raise UsageError(
            "the file's name says what to write",
            expected=[SAFETENSORS, NUMPY, *TORCH, *keras_files.KERAS_2],
            found=text,
        )
    if text.endswith(SAFETENSORS):
        ckptfmt.export(checkpoint, url, select=select, overwrite=overwrite, progress=progress)
        return
    names = _names(checkpoint, select)
    fill = _npz if text.endswith(NUMPY) else _torch
    backend, key = open_file(url)
    with tempfile.TemporaryFile() as scratch:
        with zipfile.ZipFile(scratch, "w") as archive:
            fill(checkpoint, names, archive, _counted(checkpoint, names, progress))
        nbytes = scratch.tell()
        scratch.seek(0)
        publish(backend, key, _blocks(scratch), nbytes=nbytes, overwrite=overwrite)


def export_shards(
    checkpoint: Checkpoint,
    folder: str | os.PathLike[str],
    *,
    shard_nbytes: int,
    select: Patterns = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write arrays as `model-00001-of-….safetensors` with an index; return the files' names.

    The index is written last: until then nobody takes the folder for a model.

    Args:
        shard_nbytes: Largest shard; an array that is larger gets one of its own.

    Raises:
        UsageError: `shard_nbytes` is not positive, or a name holds `*` or `?`.
        ConflictError, NotFoundError, IntegrityError: as in `export`.
    """
    if shard_nbytes < 1:
        raise UsageError("expected a positive length", argument="shard_nbytes")
    shards: list[list[str]] = []
    room = 0
    names = dict(_names(checkpoint, select))
    for path in names:
        if set("*?") & set(path):
            raise UsageError("a name with * or ? cannot be sharded", path=path)
        nbytes = checkpoint.arrays[path].nbytes
        if nbytes > room:
            shards.append([])
            room = shard_nbytes
        shards[-1].append(path)
        room -= nbytes
    weight_map: dict[str, str] = {}
    files = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    base = os.fspath(folder).rstrip("/")
    for file, paths in zip(files, shards, strict=True):
        ckptfmt.export(
            checkpoint, f"{base}/{file}", select=paths, overwrite=overwrite, progress=progress
        )
        weight_map |= {names[path][0]: file for path in paths}
    total = sum(checkpoint.arrays[path].nbytes for path in names)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    data = json.dumps(index, indent=2).encode()
    backend, key = open_file(f"{base}/model.safetensors.index.json")
    publish(backend, key, [data], nbytes=len(data), overwrite=overwrite)
    return [*files, key]


def _names(checkpoint: Checkpoint, select: Patterns) -> _Names:
    keep = tree.matcher(select)
    found: _Names = []
    for path, info in checkpoint.arrays.items():
        chosen = tuple(_natural(one) for one in (path, *info.aliases) if keep(one))
        if chosen:
            found.append((path, chosen))
    flat = [name for _, names in found for name in names]
    if not flat:
        raise NotFoundError("nothing is selected", select=select)
    if len(set(flat)) != len(flat):
        raise UsageError("two arrays would get one name: select fewer", count=len(flat))
    return found


def _natural(path: str) -> str:
    section, name = plan.section_of(path), plan.natural_name(path, full=False)
    return name if section == "model" else f"{section}/{name}"


def _counted(
    checkpoint: Checkpoint, names: _Names, progress: Progress | None
) -> Callable[[int], None]:
    total = sum(checkpoint.arrays[path].nbytes for path, _ in names)
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress("write", done, total)

    return count


def _keras(
    checkpoint: Checkpoint,
    url: str | os.PathLike[str],
    select: Patterns,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    names = _names(checkpoint, select)
    keep = tree.matcher(select)
    infos = [checkpoint.arrays[path] for path, _ in names]
    paths = [one for info in infos for one in (info.path, *info.aliases) if keep(one)]
    backend, key = open_file(url)
    with tempfile.TemporaryFile() as scratch:
        keras_files.fill(
            checkpoint,
            paths,
            scratch,
            _counted(checkpoint, names, progress),
            keras_3=os.fspath(url).endswith(keras_files.KERAS_3),
        )
        nbytes = scratch.seek(0, os.SEEK_END)
        scratch.seek(0)
        publish(backend, key, _blocks(scratch), nbytes=nbytes, overwrite=overwrite)


def _blocks(file: Any) -> Iterator[Buffer]:
    while block := file.read(_BLOCK):
        yield block


def _npz(
    checkpoint: Checkpoint,
    names: _Names,
    archive: zipfile.ZipFile,
    count: Callable[[int], None],
) -> None:
    for path, chosen in names:
        array = np.asarray(checkpoint.lazy(path))
        if array.dtype.kind == "V" or array.dtype.isbuiltin != 1:
            raise UsageError(
                "NumPy's files have no name for this dtype: export safetensors or .pt",
                path=path,
                dtype=str(array.dtype),
            )
        for name in chosen:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        count(array.nbytes)


def _torch(
    checkpoint: Checkpoint,
    names: _Names,
    archive: zipfile.ZipFile,
    count: Callable[[int], None],
) -> None:
    pickle = [b"\x80\x02}("]
    for number, (path, chosen) in enumerate(names):
        info = checkpoint.arrays[path]
        for name in chosen:
            pickle += [_text(name), _tensor(info, str(number))]
    archive.writestr("archive/data.pkl", b"".join([*pickle, b"u."]))
    archive.writestr("archive/byteorder", b"little")
    for number, (path, _) in enumerate(names):
        array: Array = np.ascontiguousarray(checkpoint.lazy(path))
        with archive.open(f"archive/data/{number}", "w", force_zip64=True) as member:
            member.write(array.reshape(-1).view(np.uint8).data)
        count(array.nbytes)
    archive.writestr("archive/version", b"3\n")


def _tensor(info: Any, key: str) -> bytes:
    """Return the opcodes of one tensor over a storage of its own."""
    dtype = dtypes.by_name(info.dtype).numpy
    storage, kind = _STORAGE_OF.get(dtype), _TYPE_OF.get(dtype)
    if kind is None:
        raise UsageError("torch has no such dtype", path=info.path, dtype=info.dtype)
    size = 1
    strides = []
    for n in reversed(info.shape):
        strides.append(size)
        size *= max(n, 1)
    count = info.nbytes if storage is None else info.nbytes // dtype.itemsize
    home = (
        b"ctorch.storage\nUntypedStorage\n"
        if storage is None
        else (f"ctorch\n{storage}\n".encode())
    )
    rebuild = (
        b"ctorch._utils\n_rebuild_tensor_v3\n("
        if storage is None
        else (b"ctorch._utils\n_rebuild_tensor_v2\n(")
    )
    parts = [
        rebuild, b"(", _text("storage"), home, _text(key), _text("cpu"), _integer(count), b"tQ",
        _integer(0), _tuple(info.shape), _tuple(reversed(strides)), b"\x89",
        b"ccollections\nOrderedDict\n)R",
    ]  # fmt: skip
    if storage is None:
        parts.append(f"ctorch\n{kind}\n".encode())
    return b"".join([*parts, b"tR"])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x09" + number.to_bytes(9, "little")


def _tuple(numbers: Any) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
