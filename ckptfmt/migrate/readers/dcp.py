"""Folders of `torch.distributed.checkpoint`: `.metadata`, and slices in `*.distcp` files.

`.metadata` is a pickle of dataclasses, which torch itself loads with Python's pickle. Each
slice of a data file is a small PyTorch archive.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ckptfmt.errors import FormatError, NotFoundError
from ckptfmt.migrate import archives
from ckptfmt.migrate.archives import Zip
from ckptfmt.migrate.boxes import Slice, joined
from ckptfmt.migrate.files import Names, Place, Span
from ckptfmt.migrate.pickles import Machine
from ckptfmt.migrate.readers import torch_stream, torch_zip
from ckptfmt.migrate.source import Contents, Lazy, Record
from ckptfmt.migrate.tensors import Tensors

METADATA: Final = ".metadata"
SUFFIX: Final = ".distcp"
CLASS: Final = "torch.distributed.checkpoint.metadata.Metadata"
_TENSOR: Final = "torch.distributed.checkpoint.metadata.TensorStorageMetadata"
_BYTES: Final = "torch.distributed.checkpoint.metadata.BytesStorageMetadata"

_Spot = tuple[str, tuple[int, ...]]  # flat name and start of a slice


def read(place: Place) -> Contents | None:
    """Return what a folder holds, named itself or by any file in it, or None."""
    if place.name is not None and place.name != METADATA and not place.name.endswith(SUFFIX):
        return None
    if not place.folder.has(METADATA):
        parts = [place.name] if place.name else place.folder.names()
        if lone := [name for name in parts if name.endswith(SUFFIX)]:
            raise NotFoundError("a part is missing", file=METADATA, needed_by=lone[0])
        return None
    span = place.folder.span(METADATA)
    machine = Machine(span.data, table=Tensors(span.name).table(), file=span.name)
    metadata = machine.load()
    if not isinstance(metadata, Record) or metadata.cls != CLASS:
        return None
    return _Reader(place.folder, metadata).contents()


class _Reader:
    def __init__(self, folder: Names, metadata: Record) -> None:
        self._folder = folder
        self._described = _field(metadata, "state_dict_metadata", dict)
        planned = metadata.state.get("planner_data")
        self._paths = planned if isinstance(planned, dict) else {}
        self._stored: dict[_Spot, tuple[Any, Any, Any]] = {}
        self._files: dict[str, None] = {}
        for index, info in _field(metadata, "storage_data", dict).items():
            start = index.state.get("offset") if _has_state(index) else None
            name = _field(index, "fqn", str)
            spot = name, _sizes(start if start is not None else ())
            where = tuple(_field(info, key, kind) for key, kind in _INFO)
            self._stored[spot] = where[0], where[1], where[2]

    def contents(self) -> Contents:
        """Return everything, nested as it was before it was flattened."""
        root: dict[Any, Any] = {}
        for name, described in self._described.items():
            path = self._paths.get(name, (name,))
            if not isinstance(path, tuple) or not path:
                raise FormatError("malformed path", file=METADATA, found=path)
            _put(root, path, self._value(str(name), described))
        return Contents(
            format="dcp",
            root=root,
            files=(METADATA, *self._files),
            producer="PyTorch distributed checkpoint",
        )

    def _value(self, name: str, described: Any) -> Any:
        if _has_state(described) and described.cls == _TENSOR:
            return self._array(name, described)
        if isinstance(described, Record) and described.cls == _BYTES:
            return self._slice(name, ())
        raise FormatError("unknown kind of entry", file=METADATA, path=name)

    def _array(self, name: str, described: Record) -> Lazy:
        shape = _sizes(_field(described, "size", tuple))
        slices = []
        for chunk in _field(described, "chunks", list):
            start, size = (_sizes(_field(chunk, key, tuple)) for key in ("offsets", "sizes"))
            array = self._slice(name, start)
            if not isinstance(array, Lazy) or array.shape != size or len(start) != len(shape):
                raise FormatError("a slice has another shape", file=METADATA, path=name)
            slices.append(Slice(start, array))
        return joined(name, shape, slices)

    def _slice(self, name: str, start: tuple[int, ...]) -> Any:
        """Return what one range of a data file holds."""
        where = self._stored.get((name, start)) or self._stored.get((name, ()))
        if where is None:
            raise FormatError("a slice without a place", file=METADATA, path=name, start=start)
        file, offset, nbytes = where
        whole = self._folder.inside(file, said_by=METADATA)
        self._files[file] = None
        span = Span(f"{file}+{offset}", whole.cut(offset, nbytes, name))
        if span.head(4) != archives.ZIP_MAGIC:
            return torch_stream.load(span)
        archive = Zip(span)
        root = torch_zip.root_of(archive)
        if root is None:
            raise FormatError("a slice without a pickle", file=file, offset=offset)
        tree, _ = torch_zip.unpickle(archive, f"{root}/data.pkl", f"{root}/data", root)
        return tree


_INFO: Final = ("relative_path", str), ("offset", int), ("length", int)


def _put(root: dict[Any, Any], path: Iterable[Any], value: Any) -> None:
    *above, last = path
    node = root
    for key in above:
        node = node.setdefault(_key(key), {})
        if not isinstance(node, dict):
            raise FormatError("a path through a value", file=METADATA, found=key)
    if _key(last) in node:
        raise FormatError("two values at one path", file=METADATA, found=last)
    node[_key(last)] = value


def _key(key: Any) -> Any:
    if type(key) not in (str, int):
        raise FormatError("malformed path", file=METADATA, found=key)
    return key


def _has_state(node: Any) -> bool:
    return isinstance(node, Record) and isinstance(node.state, dict)


def _field(node: Any, name: str, kind: type) -> Any:
    """Return a field of a record after checking its type."""
    value = node.state.get(name) if _has_state(node) else None
    if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
        raise FormatError(f"malformed field {name!r}", file=METADATA)
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise FormatError("malformed sizes", file=METADATA, found=value)
    return value
